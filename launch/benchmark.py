"""Times networks against each other: the same videos, batch and devices, in turns.

  python -m launch.benchmark --out=DIR
  python -m launch.benchmark --configs=configs/fit_3b9.py:fsdp,configs/unet_284m.py:fsdp \\
      --batch_sizes=8,16 --repeats=20 --out=DIR

Mode train times the training step as training runs it, infer one call of the network. The
videos are random and on the devices already, so data, text encoder and sampler are in neither.

The report has the ratio of each pair, the earlier of --configs over the later ones, with its
parameters and FLOPs. By default FIT 500M meets U-Net 284M; DiT 500M and DiT 114M (dit_500m.py,
dit_114m.py, and the same factorised) have as many parameters and as many FLOPs as FIT 500M.

--videos=16x36x64,16x72x128,32x144x256 measures at each of these sizes, T x H x W, instead of the
configs' own: how cost grows with pixels and frames.
--sweep doubles the batch from the first of --batch_sizes until memory or --max_batch ends it.
--devices=1,2,4,8 lays each config's mesh over the first of the devices, with --batch_sizes videos
for each. --dtype sets model.dtype of all configs, --attention model.attention;
--attention=fastest,plain times each config with both, in turns.

--topology=v5p:1x1x1 (or a slice: v5e-16, v5litepod-16) runs nothing: the TPU's compiler says what
each program would take there, at the slow end of its band, and the report marks it as predicted
(docs/plan.md). The first time, the two default configs in the two default modes take most of an
hour on two cores and 10 GB of host memory; the answers are cached.

DIR gets report.json, report.md, report.html (one file that holds all) and pictures. The tables say
how busy the machine was: times hold on an idle one, ratios in turns on a busy one too. How to read
them: docs/benchmark.md.

Exit codes: 0 done, 2 bad flags or config, or sizes that do not split, 5 DIR cannot be written.
"""

import copy
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from absl import flags

from launch import entry, number_flags, provenance, screen
from snapvideo_jax import build, storage
from snapvideo_jax.benchmark import measure, plots, programs, report
from snapvideo_jax.benchmark.rows import Row
from snapvideo_jax.build import Config
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.kinds import Several, Whole
from snapvideo_jax.planner import topology

START = time.monotonic()
BATCH = Whole(1, 2**20)
CONFIGS = flags.DEFINE_list(
    "configs", ["configs/fit_500m.py", "configs/unet_284m.py"], "Configuration files to compare."
)
OUT = entry.define_folder("out", "Folder for the report.")
MODES = flags.DEFINE_list("modes", list(programs.MODES), "What is timed: train, infer or both.")
BATCH_SIZES = number_flags.define(
    "batch_sizes", None, Several(BATCH, 1, 64), "Videos a step for each device; default: 8."
)
VIDEOS = flags.DEFINE_list(
    "videos", None, "Sizes of videos, as 16x36x64 (T x H x W); default: each config's own."
)
SWEEP = flags.DEFINE_bool("sweep", False, "Double the batch until memory or --max_batch ends it.")
MAX_BATCH = number_flags.define("max_batch", 1024, BATCH, "Where --sweep ends, for each device.")
DEVICES = number_flags.define(
    "devices",
    None,
    Several(Whole(1, 2**20), 1, 64),
    "How many devices to measure on; default: all.",
)
REPEATS = number_flags.define("repeats", 10, Whole(1, 1_000_000), "Timed steps of each program.")
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU slice, as v5p:2x2x1, to predict for instead of measuring here."
)
MAX_SECONDS = number_flags.define(
    "max_seconds", None, Whole(1, 10**6), "Compile nothing more after so long; default: no end."
)
ATTENTIONS = flags.DEFINE_list(
    "attention", None, "model.attention of all configs: fastest, plain or both; default: theirs."
)
DTYPE = flags.DEFINE_enum("dtype", None, list(build.DTYPES), "model.dtype of all configs.")


def run() -> None:
    """Times what the flags name, and writes the report to a folder."""
    if TOPOLOGY.value:
        jax.config.update("jax_platforms", "cpu")  # nothing is run
    devices = topology.devices(TOPOLOGY.value) if TOPOLOGY.value else jax.devices()
    request = request_of_flags(len(devices))
    measure.check(request, devices)
    rows_of = predicted_rows if TOPOLOGY.value else measured_rows
    folder = storage.make_folder(OUT.value)
    facts = provenance.facts("launch.benchmark", devices)  # with the load before
    rows, parts = [], measure.parts(request)
    progress = screen.progress("parts of the benchmark")
    for number, some in enumerate(measure.run(request, devices, rows_of), start=1):
        rows += some
        progress(number, len(parts))
        write(folder, report.tree(rows, facts), {})  # what is known, should the next one end it all
    tree = report.tree(rows, facts)
    write(folder, tree, plots.pngs(tree))
    for table in report.tables(tree):
        screen.say(report.for_screen(table))
    screen.say(f"\n{folder / 'report.html'} has it all")


def measured_rows(cases: list[programs.Case]) -> list[Row]:
    """Times the cases of one of the parts here."""
    end = math.inf if MAX_SECONDS.value is None else START + MAX_SECONDS.value
    in_time = lambda: time.monotonic() < end
    return measure.measure(cases, REPEATS.value, screen.say, screen.progress, in_time)


def predicted_rows(cases: list[programs.Case]) -> list[Row]:
    """Predicts the cases of one of the parts, by the compiler of a slice."""
    from snapvideo_jax.benchmark import predicted  # plans sampling too, and needs all of it

    rows = []
    for case in cases:
        screen.say(f"{programs.describe(case)}: compiling; up to 40 minutes, the first time")
        rows.append(predicted.row(case, entry.cache_folder() / "plans"))
    return rows


def request_of_flags(num_devices: int) -> measure.Request:
    """Returns what to measure; raises ConfigError for what cannot be."""
    if TOPOLOGY.value:
        entry.refuse_unread(
            "measuring here, without --topology", DEVICES, SWEEP, REPEATS, MAX_SECONDS
        )
    if not SWEEP.value:
        entry.refuse_unread("--sweep", MAX_BATCH)
    unknown = set(MODES.value) - set(programs.MODES)
    if unknown or not MODES.value:
        raise ConfigError(
            f"--modes={','.join(MODES.value)}: choose from {', '.join(programs.MODES)}"
        )
    names = [name(path) for path in CONFIGS.value]
    if len(set(names)) < len(names) or not names:
        raise ConfigError(f"--configs={','.join(CONFIGS.value)}: name each one once")
    devices = sorted(set(DEVICES.value or [num_devices]))
    return measure.Request(
        configs=dict(itertools.chain(*map(variants, CONFIGS.value))),
        modes=list(dict.fromkeys(MODES.value)),
        batch_sizes=batch_sizes(),
        devices=devices,
        videos=[video(text) for text in VIDEOS.value] if VIDEOS.value else [None],
    )


def video(text: str) -> tuple[int, int, int]:
    """Reads T x H x W; raises ConfigError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise ConfigError(f"--videos={text}: write sizes as 16x36x64, frames x height x width")
    frames, height, width = map(int, match.groups())
    return frames, height, width


def name(path: str) -> str:
    """Returns what reports call a config: configs/fit_3b9.py:fsdp -> fit_3b9:fsdp."""
    file, colon, mesh = path.partition(":")
    return Path(file).stem + colon + mesh


def variants(path: str) -> Iterator[tuple[str, Config]]:
    """Yields a config's name, with --dtype and each --attention; the name tells several apart.

    Raises ConfigError if it cannot be built.
    """
    config = entry.load_config(path)
    choices = list(dict.fromkeys(ATTENTIONS.value or [config.model.attention]))
    for choice in choices:
        config.model.update(dtype=DTYPE.value or config.model.dtype, attention=choice)
        label = f"{name(path)} {choice}" if len(choices) > 1 else name(path)
        yield label, build.check_without_data(copy.deepcopy(config))


def batch_sizes() -> list[int]:
    """Returns the videos for each device, ascending: --batch_sizes, or those of a sweep."""
    sizes = BATCH_SIZES.value or [8]
    if not SWEEP.value:
        return sorted(set(sizes))
    if sizes[0] > MAX_BATCH.value:
        raise ConfigError(f"--batch_sizes={sizes[0]} is above --max_batch={MAX_BATCH.value}")
    doubles = (sizes[0] * 2**i for i in itertools.count())
    return list(itertools.takewhile(lambda size: size <= MAX_BATCH.value, doubles))


def write(folder: Path, tree: report.Report, pictures: Mapping[str, bytes]) -> None:
    """Writes the report as JSON, Markdown and a page, from the job's first process."""
    if not screen.speaks():
        return
    files = {
        "report.json": json.dumps(tree, indent=2) + "\n",
        "report.md": report.markdown(tree, pictures),
        "report.html": report.page(tree, pictures),
    }
    contents = {name: text.encode() for name, text in files.items()} | dict(pictures)
    for name, content in contents.items():
        storage.write(folder / name, content)


if __name__ == "__main__":
    entry.run(run)
