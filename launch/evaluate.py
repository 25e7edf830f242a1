"""Scores a trained run and writes the figures as JSON.

  python -m launch.evaluate --checkpoint=runs/shapes --protocol=shapes --num_samples=64 --out=F.json

Protocol "shapes": samples prompts that training showed, and as many of compositions that it never
showed, and reads the captions' facts back from the pixels (evaluation/oracle.py). A factor counts
only where a shape is recognizable, so noise scores 0 and not chance. --sheet=FILE.png also draws
the samples, each marked right or wrong.

Several steps or guidance weights are swept, from the same prompts and noise, and drawn:

  python -m launch.evaluate --checkpoint=runs/shapes --guidance=0,0.5,1,2,4 --out=F.json \\
      --plot=F.png

The file then is the first one's report, and its `sweep` has a row of scores for each.
"""

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import entry, number_flags, screen
from snapvideo_jax import build, fields, storage
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.evaluation import plots, protocol
from snapvideo_jax.files import video
from snapvideo_jax.generator import SamplerSettings
from snapvideo_jax.kinds import Several, Whole
from snapvideo_jax.sampling import trained
from snapvideo_jax.sampling.generate import Progress, generate
from snapvideo_jax.sampling.trained import Trained

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run (its --workdir).", required=True
)
STEP = number_flags.define("step", None, fields.STEP, "Which checkpoint; default: the newest.")
PROTOCOL = flags.DEFINE_enum("protocol", "shapes", ["shapes"], "What is sampled and how scored.")
NUM = number_flags.define("num_samples", 64, Whole(1, 100_000), "Videos of each kind of prompt.")
OUT = entry.define_file("out", "JSON file to write.", required=True)
SHEET = entry.define_file("sheet", "PNG file for a contact sheet of the samples.")
SEED = number_flags.define("seed", 0, Whole(0, 2**30), "Chooses prompts and noise.")
BATCH = number_flags.define("batch_size", 64, Whole(1, 65_536), "Videos made at a time.")
PLOT = entry.define_file("plot", "PNG file for the scores of a sweep.")
STEPS = number_flags.define(
    "steps", None, Several(fields.FIELDS["sampling.steps"], 1, 64), "Steps of the sampler."
)
GUIDANCE = number_flags.define(
    "guidance",
    None,
    Several(fields.FIELDS["sampling.guidance"], 1, 64),
    "Weight w; 0 is no guidance.",
)


def run() -> None:
    """Samples what the protocol asks for, and writes its scores."""
    if PLOT.value:
        check_plot()
    model = trained.load(Path(CHECKPOINT.value), STEP.value, log=screen.say).cast_kernels()
    if model.config.data.source != "shapes":
        raise ConfigError("--protocol=shapes needs a run trained with data.source=shapes")
    sweep = sweep_of(model)
    scores = score_all(model, sweep)
    if screen.speaks():
        write(model, sweep, scores)


def write(
    model: Trained, sweep: Sequence[SamplerSettings], scores: Sequence[protocol.Result]
) -> None:
    """Writes the figures to --out and the screen, and the pictures that the flags ask for."""
    first = scores[0]
    report = first.report | {"checkpoint_step": model.step, "sampling": vars(sweep[0])}
    rows = [row(settings, score.report) for settings, score in zip(sweep, scores, strict=True)]
    if len(rows) > 1:
        report["sweep"] = rows
    storage.write(OUT.value, json.dumps(report, indent=2).encode() + b"\n")
    screen.say(summary(rows, report["chance"]))
    if SHEET.value:
        sheet = video.contact_sheet(list(first.videos), first.prompts, marks=first.right)
        video.write_png(SHEET.value, sheet)
    if PLOT.value:
        storage.write(PLOT.value, plots.png(rows))


def check_plot() -> None:
    """Raises ConfigError if --plot cannot be drawn, before anything is sampled."""
    if max(len(STEPS.value or ()), len(GUIDANCE.value or ())) < 2:
        raise ConfigError("--plot draws a sweep; give several --steps=N,N,.. or --guidance=W,W,..")


def sweep_of(model: Trained) -> list[SamplerSettings]:
    """Combines --steps and --guidance; takes the config's where a flag is missing."""
    rate = build.world(model.config).frame_rates[0]
    return [
        build.sampler_settings(model.config, steps=steps, guidance=guidance, frame_rate=rate)
        for steps, guidance in itertools.product(STEPS.value or [None], GUIDANCE.value or [None])
    ]


def score_all(model: Trained, sweep: Sequence[SamplerSettings]) -> list[protocol.Result]:
    """Scores each of the settings; the screen shows how many denoising steps are done."""
    progress, videos = screen.progress("denoising steps"), 2 * NUM.value
    total, before = sum(settings.steps for settings in sweep) * videos, 0
    scores = []
    for settings in sweep:
        step = settings.steps
        report = lambda done, of, step=step, before=before: progress(before + step * done, total)
        scores.append(score(model, settings, report))
        before += step * videos
    return scores


def score(model: Trained, settings: SamplerSettings, progress: Progress) -> protocol.Result:
    """Scores one setting; `progress` counts videos."""
    make = functools.partial(generate, model, settings, progress=progress)
    return protocol.shapes_protocol(
        build.world(model.config),
        settings.frame_interval,
        lambda prompts, seeds: make(prompts, seeds, min(BATCH.value, len(prompts))),
        NUM.value,
        SEED.value,
    )


def row(settings: SamplerSettings, report: dict) -> plots.SweepPoint:
    """Returns what a sweep says of one setting."""
    return {"steps": settings.steps, "guidance": settings.guidance, "oracle": report["oracle"]}


def summary(rows: Sequence[plots.SweepPoint], chance: dict[str, float]) -> str:
    """Returns the scores as a small table."""
    factors = ("present", "shape", "color", "direction", "speed", "all")
    table = {}
    for one in rows:
        name = f"{one['steps']} steps, w {one['guidance']:g}, " if len(rows) > 1 else ""
        table[f"{name}seen"] = one["oracle"]
        table[f"{name}held out"] = one["oracle"]["held_out"]
    table["chance"] = chance
    width = max(map(len, table)) + 1
    lines = [" " * width + "".join(f"{name:>10}" for name in factors)]
    for name, rated in table.items():
        rates = (rated.get(factor) for factor in factors)
        cells = ("-" if rate is None else f"{rate:.0%}" for rate in rates)
        lines.append(f"{name:{width}}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    entry.run(run)
