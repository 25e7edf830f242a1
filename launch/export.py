"""Writes the EMA parameters of a run as safetensors, to be shared or used elsewhere.

  python -m launch.export --checkpoint=runs/shapes --out=exported
  python -m launch.export --checkpoint=runs/shapes --dtype=bfloat16 --out=half_as_large
  python -m launch.export --checkpoint=runs/shapes --orbax --out=for_jax

Writes model.safetensors (above 5 GB: shards and their index), config.json, where the run trained
its text encoder vocabulary.model, the model in PyTorch (torch_model.py), and the denoiser and the
sampler as programs for CPUs, GPUs and TPUs that need nothing of this package (StableHLO) into
--out, all of it or nothing. --orbax adds the parameters as a checkpoint that Orbax restores by
itself. --out must not be there yet, or be empty.
Exit codes: 0 done, 2 bad flags, 3 bad data, 5 no usable checkpoint or --out cannot be written.
"""

import json
from pathlib import Path

from absl import flags

from launch import entry, number_flags, screen
from snapvideo_jax import build, fields
from snapvideo_jax.export import export_folder, stablehlo
from snapvideo_jax.planner import cost
from snapvideo_jax.sampling import trained

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run (its --workdir).", required=True
)
STEP = number_flags.define("step", None, fields.STEP, "Which checkpoint; default: the newest.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", export_folder.DTYPES, "To which float32 parameters are rounded."
)
STABLEHLO = flags.DEFINE_bool(
    "stablehlo", True, "Whether to write denoiser.stablehlo and sampler.stablehlo."
)
ORBAX = flags.DEFINE_bool("orbax", False, "Whether to write the parameters as orbax/, too.")
OUT = entry.define_folder("out", "Folder for the parameters; made where there is none.")


def run() -> None:
    """Writes the folder that the flags ask for."""
    export_folder.check_free(OUT.value)
    workdir = Path(CHECKPOINT.value)
    model = trained.load(workdir, STEP.value, log=screen.say)
    encoder = model.denoiser.text_encoder
    vocabulary = build.vocabulary_path(model.config, workdir) if encoder else None
    config, files = json.loads(model.config.to_json()), export_folder.torch_model()
    if STABLEHLO.value:
        files |= stablehlo.artifacts(
            model.denoiser,
            build.sampler_settings(model.config),
            export_folder.stored(model.params, DTYPE.value),
            build.abstract_batch(model.config),
        )
    export_folder.write(
        OUT.value,
        config,
        model.step,
        model.params,
        vocabulary,
        text=model.text.encoder,
        dtype=DTYPE.value,
        files=files,
        orbax=ORBAX.value,
    )
    count = cost.parameters(model.params)
    screen.say(f"{count:,} parameters (EMA, {DTYPE.value}) of step {model.step} in {OUT.value}")


if __name__ == "__main__":
    entry.run(run)
