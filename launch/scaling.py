"""Trains FITs and U-Nets of four sizes on moving shapes and compares what they reach.

  python -m launch.scaling --out=DIR
  python -m launch.scaling --steps=3000 --sizes=1,2 --out=DIR

All networks see the same examples for the same number of steps, in turns, on the first device; data
are those of configs/shapes.py. The held-out loss is that of the EMA on captions never shown, over
all noise levels and in six ranges of them. The default is for two CPU cores and half an hour; it
needs neither tensorflow nor clu. Stopped, it starts from the beginning.

DIR gets scaling.json, scaling.md and, where matplotlib is installed, two pictures. What it shows
and what it does not: docs/benchmarks.md.

Exit codes: 0 done, 2 bad flags, 5 DIR cannot be written.
"""

import datetime
import json
import shlex
import sys

import jax
from absl import flags

from launch import main, number_lists
from snapvideo_jax import build, storage
from snapvideo_jax.benchmark import machine, plots, scaling, scaling_plots, scaling_report
from snapvideo_jax.benchmark.report import aligned
from snapvideo_jax.data.text import train_vocabulary

OUT = main.define_folder("out", "Folder for the report.")
STEPS = flags.DEFINE_integer("steps", 400, f"Of training, with {scaling.BATCH} videos each.")
SIZES = number_lists.define_integers("sizes", "Some of 1,2,3,4; default: all.", lower_bound=1)


def run() -> None:
    """Flags in, a folder of figures out."""
    sizes = SIZES.value or list(scaling.SIZES)
    scaling.check(sizes, STEPS.value)
    folder = storage.make_folder(OUT.value)
    config = main.load_config("configs/shapes.py")
    vocabulary = folder / "vocabulary.model"
    train_vocabulary(build.source(config, lambda path, why: None).captions(), vocabulary)
    text = build.text(config, vocabulary)
    study = scaling.run(config, sizes, STEPS.value, text, main.say, main.progress) | facts()
    if not plots.available():
        main.say(plots.MISSING)
    pictures = scaling_plots.pngs(study) if plots.available() else {}
    storage.write(folder / "scaling.json", json.dumps(study, indent=2).encode() + b"\n")
    storage.write(folder / "scaling.md", scaling_report.markdown(study, pictures).encode())
    for name, content in pictures.items():
        storage.write(folder / name, content)
    for table in scaling_report.tables(study):
        main.say(f"\n{table.title}\n{aligned(table)}")
    main.say(f"\n{folder / 'scaling.md'} has it all")


def facts() -> dict:
    """Device, versions, date (of Greenwich) and command."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    command = shlex.join(["python", "-m", "launch.scaling", *sys.argv[1:]])
    return machine.facts(jax.devices()) | {"date": today, "command": command}


if __name__ == "__main__":
    main.run(run)
