"""Writes the EMA parameters of a run as safetensors, to be shared or used elsewhere.

  python -m launch.export --checkpoint=runs/shapes --out=exported

Writes model.safetensors (above 5 GB: shards and their index), config.json and, where the run
trained its text encoder, vocabulary.model into --out, all of it or nothing. --out must not be
there yet, or be empty.
Exit codes: 0 done, 2 bad flags, 3 bad data, 5 no usable checkpoint or --out cannot be written.
"""

import json
from pathlib import Path

from absl import flags

from launch import main
from snapvideo_jax import build, export, sample
from snapvideo_jax.parallel import cost

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run (its --workdir).", required=True
)
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of the run; default: the newest.")
OUT = main.define_folder("out", "Folder for the parameters; made where there is none.")


def run() -> None:
    """Flags in, a folder out."""
    export.check_free(OUT.value)
    workdir = Path(CHECKPOINT.value)
    trained = sample.load(workdir, STEP.value, log=main.say)
    encoder = trained.denoiser.text_encoder
    vocabulary = build.vocabulary_path(trained.config, workdir) if encoder else None
    config = json.loads(trained.config.to_json())
    export.write(OUT.value, config, trained.step, trained.params, vocabulary)
    count = cost.parameters(trained.params)
    main.say(f"{count:,} parameters (EMA) of step {trained.step} in {OUT.value}")


if __name__ == "__main__":
    main.run(run)
