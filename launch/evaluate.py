"""Scores a trained run and writes the figures as JSON.

  python -m launch.evaluate --checkpoint=runs/shapes --protocol=shapes --num_samples=64 --out=F.json

Protocol "shapes": samples prompts that training showed, and as many of compositions that it never
showed, and reads the captions' facts back from the pixels (evaluation/oracle.py). A factor counts
only where a shape is recognizable, so noise scores 0 and not chance. --sheet=FILE.png also draws
the samples, each marked right or wrong.
"""

import json
from pathlib import Path

from absl import flags

from launch import main
from snapvideo_jax import build, sample, storage, video_io
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.evaluation import protocol

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run (its --workdir).", required=True
)
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of the run; default: the newest.")
PROTOCOL = flags.DEFINE_enum("protocol", "shapes", ["shapes"], "What is sampled and how scored.")
NUM = flags.DEFINE_integer("num_samples", 64, "Videos of each kind of prompt.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "JSON file to write.", required=True)
SHEET = flags.DEFINE_string("sheet", None, "PNG file for a contact sheet of the samples.")
SEED = flags.DEFINE_integer("seed", 0, "Chooses prompts and noise.", 0, 2**30)
BATCH = flags.DEFINE_integer("batch_size", 64, "Videos made at a time.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", None, "Steps of the sampler.", lower_bound=1)
GUIDANCE = flags.DEFINE_float("guidance", None, "Weight w; 0 is no guidance.", lower_bound=0)


def run() -> None:
    """Flags in, figures out."""
    trained = sample.load(Path(CHECKPOINT.value), STEP.value, log=main.say)
    if trained.config.data.source != "shapes":
        raise ConfigError("--protocol=shapes needs a run trained with data.source=shapes")
    world = build.world(trained.config)
    plan = sample.plan_from(
        trained.config,
        steps=STEPS.value,
        guidance=GUIDANCE.value,
        frame_rate=world.frame_rates[0],
    )
    generate = lambda prompts, seeds: sample.generate(
        trained, plan, prompts, seeds, min(BATCH.value, len(prompts)), main.progress("videos")
    )
    scored = protocol.shapes_protocol(world, plan.frame_interval, generate, NUM.value, SEED.value)
    report = scored.report | {"checkpoint_step": trained.step, "sampling": vars(plan)}
    storage.write(OUT.value, json.dumps(report, indent=2).encode() + b"\n")
    main.say(summary(report))
    if SHEET.value:
        sheet = video_io.contact_sheet(list(scored.videos), scored.prompts, marks=scored.right)
        video_io.write_png(SHEET.value, sheet)


def summary(report: dict) -> str:
    """The scores as a small table."""
    factors = ("present", "shape", "color", "direction", "speed", "all")
    rows = {
        "seen": report["oracle"],
        "held out": report["oracle"]["held_out"],
        "chance": report["chance"],
    }
    lines = [" " * 9 + "".join(f"{name:>10}" for name in factors)]
    for name, scores in rows.items():
        rates = (scores.get(factor) for factor in factors)
        cells = ("-" if rate is None else f"{rate:.0%}" for rate in rates)
        lines.append(f"{name:9}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main.run(run)
