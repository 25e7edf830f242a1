"""Times FIT against the U-Net: the same videos, batch and devices, in turns.

  python -m launch.benchmark --out=DIR
  python -m launch.benchmark --configs=configs/fit_3b9.py:fsdp,configs/unet_284m.py:fsdp \\
      --batch_sizes=8,16 --repeats=20 --out=DIR

Mode train is the training step as training runs it, infer one evaluation of the network. The videos
are random and on the devices already, so data, text encoder and sampler are in neither.

--sweep doubles the batch from the first of --batch_sizes until memory or --max_batch ends it.
--devices=1,2,4,8 lays each config's mesh over the first of the devices, with --batch_sizes videos
for each. --dtype sets model.dtype of all configs.

--topology=v5p:1x1x1 runs nothing: the TPU's compiler says what each program would take there, at
the slow end of its band, and the report marks it as predicted (docs/planning.md).

DIR gets report.json, report.md, report.html (one file that holds all) and, where matplotlib is
installed, pictures. How to read them: docs/benchmarks.md.

Exit codes: 0 done, 2 bad flags or config, or sizes that do not split, 5 DIR cannot be written.
"""

import datetime
import itertools
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from launch import entry, number_lists, screen
from snapvideo_jax import build, storage
from snapvideo_jax.benchmark import machine, measure, plots, programs, report
from snapvideo_jax.benchmark.rows import Row
from snapvideo_jax.build import Config
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.planner import topology

CONFIGS = flags.DEFINE_list(
    "configs", ["configs/fit_500m.py", "configs/unet_284m.py"], "Configuration files to compare."
)
OUT = entry.define_folder("out", "Folder for the report.")
MODES = flags.DEFINE_list("modes", list(programs.MODES), "What is timed: train, infer or both.")
BATCH_SIZES = number_lists.define_integers(
    "batch_sizes", "Videos a step for each device; default: 8.", lower_bound=1, upper_bound=2**20
)
SWEEP = flags.DEFINE_bool("sweep", False, "Double the batch until memory or --max_batch ends it.")
MAX_BATCH = flags.DEFINE_integer("max_batch", 1024, "Of --sweep, for each device.", lower_bound=1)
DEVICES = number_lists.define_integers(
    "devices", "How many devices to measure on; default: all.", lower_bound=1
)
REPEATS = flags.DEFINE_integer("repeats", 10, "Timed steps of each program.", lower_bound=1)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU slice, as v5p:2x2x1, to predict for instead of measuring here."
)
DTYPE = flags.DEFINE_enum("dtype", None, list(build.DTYPES), "model.dtype of all configs.")


def run() -> None:
    """Flags in, a folder of figures out."""
    if TOPOLOGY.value:
        jax.config.update("jax_platforms", "cpu")  # nothing is run
    devices = topology.devices(TOPOLOGY.value) if TOPOLOGY.value else jax.devices()
    wanted = asked(len(devices))
    measure.check(wanted, devices)
    rows_of = predicted if TOPOLOGY.value else measured
    source = measure.run(wanted, devices, rows_of)
    folder = storage.make_folder(OUT.value)
    facts = machine.facts(devices) | {"date": today(), "command": command()}
    rows, parts, tell = [], measure.parts(wanted), screen.progress("parts of the benchmark")
    for number, found in enumerate(source, start=1):
        rows += found
        tell(number, len(parts))
        write(folder, report.tree(rows, facts), {})  # what is known, should the next one end it all
    made = report.tree(rows, facts)
    if not plots.available():
        screen.say(plots.MISSING)
    write(folder, made, plots.pngs(made) if plots.available() else {})
    for table in report.tables(made):
        screen.say(f"\n{table.title}\n{report.aligned(table)}")
    screen.say(f"\n{folder / 'report.html'} has it all")


def measured(cases: list[programs.Case]) -> list[Row]:
    """The rows of one of the parts, timed here."""
    return measure.measured(cases, REPEATS.value, screen.say, screen.progress)


def predicted(cases: list[programs.Case]) -> list[Row]:
    """The rows of one of the parts, as the compiler of a slice predicts them."""
    from snapvideo_jax.benchmark import predicted  # plans sampling too, and needs all of it

    rows = []
    for case in cases:
        screen.say(f"{programs.described(case)}: compiling; minutes, if it is the first time")
        rows.append(predicted.row(case, entry.cache_folder() / "plans"))
    return rows


def asked(num_devices: int) -> measure.Asked:
    """What the flags ask for; ConfigError for what cannot be measured."""
    if TOPOLOGY.value and (DEVICES.value or SWEEP.value):
        raise ConfigError(
            "--topology predicts for one slice: it goes without --devices and --sweep"
        )
    unknown = set(MODES.value) - set(programs.MODES)
    if unknown or not MODES.value:
        raise ConfigError(
            f"--modes={','.join(MODES.value)}: choose from {', '.join(programs.MODES)}"
        )
    names = [name(path) for path in CONFIGS.value]
    if len(set(names)) < len(names) or not names:
        raise ConfigError(f"--configs={','.join(CONFIGS.value)}: name each one once")
    configs = {key: load(path) for key, path in zip(names, CONFIGS.value, strict=True)}
    devices = sorted(set(DEVICES.value or [num_devices]))
    return measure.Asked(configs, list(dict.fromkeys(MODES.value)), sizes(), devices)


def name(path: str) -> str:
    """configs/fit_3b9.py:fsdp -> fit_3b9:fsdp."""
    file, colon, mesh = path.partition(":")
    return Path(file).stem + colon + mesh


def load(path: str) -> Config:
    """A config that can be built, with --dtype; ConfigError if not."""
    config = entry.load_config(path)
    for field in ("path", "text_states"):  # no data is read
        config.data[field] = config.data[field] or "unnamed"
    config.model.dtype = DTYPE.value or config.model.dtype
    build.check(config)
    return config


def sizes() -> list[int]:
    """Videos for each device, ascending: --batch_sizes, or the powers of two of a sweep."""
    given = BATCH_SIZES.value or [8]
    if not SWEEP.value:
        return sorted(set(given))
    if given[0] > MAX_BATCH.value:
        raise ConfigError(f"--batch_sizes={given[0]} is above --max_batch={MAX_BATCH.value}")
    doubled = (given[0] * 2**i for i in itertools.count())
    return list(itertools.takewhile(lambda size: size <= MAX_BATCH.value, doubled))


def write(folder: Path, made: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
    """The report as JSON, Markdown and a page, from the job's first process."""
    if not screen.speaks():
        return
    files = {
        "report.json": json.dumps(made, indent=2) + "\n",
        "report.md": report.markdown(made, pictures),
        "report.html": report.page(made, pictures),
    }
    encoded = {name: text.encode() for name, text in files.items()}
    for file, content in (encoded | dict(pictures)).items():
        storage.write(folder / file, content)


def today() -> str:
    """The date, of Greenwich."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def command() -> str:
    """This run, as it was typed."""
    return shlex.join(["python", "-m", "launch.benchmark", *sys.argv[1:]])


if __name__ == "__main__":
    entry.run(run)
