"""Repeats the paper's Tables 2 and 3 and Figures 2, 5 and 6 in miniature, on moving shapes.

  python -m launch.reproduce --preset=cpu --out=DIR
  python -m launch.reproduce --preset=cpu --seeds=0 --steps=100 --out=DIR     a quick look

Small FITs under seven noise laws, and a U-Net, are trained from nothing and scored: by the noise
that they leave, by the oracle, and by a Frechet distance. Preset cpu is for two cores and about
80 minutes; gpu has 8 frames of 32 x 32 pixels and four times the steps. Neither needs tensorflow.

DIR gets reproduce.md with the tables beside the paper's, reproduce.json and three pictures. Each
network is a file in DIR/units: stopped, the same command does again only the one that it was in.
What came of it: docs/miniature.md.

Exit codes: 0 done, 2 bad flags or DIR is of another study, 5 DIR is damaged or cannot be written.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from configs import miniature
from launch import entry, number_flags, provenance, screen, study_report
from snapvideo_jax import build, fields, storage
from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.kinds import Kind, Several, Table, Whole
from snapvideo_jax.studies.miniature import averaging, plots, report, scoring, units

OUT = entry.define_folder("out", "Folder for the report; a study that it holds goes on.")
PRESET = flags.DEFINE_enum("preset", "cpu", ["cpu", "gpu"], "Size of videos and networks.")
SEEDS = number_flags.define("seeds", None, Several(fields.SEED, 1, 64), "Default: 0,1,2.")
STEPS = number_flags.define(
    "steps", None, Whole(2, 10_000_000), "Training steps of each FIT; default: the preset's."
)
STUDY = {"configs": Table(), "timing": Table()}  # of study.json


def run() -> None:
    """Trains and scores what DIR lacks, and writes the report."""
    rows = configs(PRESET.value, STEPS.value)
    fit = rows[units.FIT]
    seeds = SEEDS.value or [0, 1, 2]
    folder = storage.make_folder(OUT.value)
    storage.make_folder(folder / "units")
    text = study_report.text_of(fit, folder)
    before = provenance.facts("launch.reproduce", jax.devices())  # and the load before
    timing = timing_of(folder / "study.json", rows, text)
    study = {
        "rows": run_all(folder / "units", units.units(rows, timing["unet_steps"], seeds), text),
        "laws": {name: config.diffusion.to_dict() for name, config in rows.items()},
        "averages": [one._asdict() for one in averages(fit)],
        "timing": timing,
    }
    study |= before
    pictures = plots.pngs(study)
    study_report.write(
        folder,
        "reproduce",
        study=study,
        markdown=report.markdown(study, pictures),
        pictures=pictures,
        tables=report.tables(study),
    )


def configs(preset: str, steps: int | None) -> dict[str, Any]:
    """Returns the config of each row; of rows that are alike, which some are at 4 frames, one."""
    size = "" if preset == "cpu" else ",gpu"
    rows: dict[str, Any] = {}
    for name in miniature.ROWS:
        config = entry.load_config(f"configs/miniature.py:{name}{size}")
        if config not in rows.values():
            rows[name] = config
    if steps is not None:
        rows = {name: units.with_steps(config, steps) for name, config in rows.items()}
    return rows


def timing_of(path: Path, rows: Mapping[str, Any], text: build.Text) -> dict[str, Any]:
    """Returns the U-Net's share of steps: that of the study in DIR, or measured and stored there.

    Raises ConfigError where DIR holds a study of other settings, StorageError where what it says
    of them is damaged.
    """
    settings = json.loads(json.dumps({name: config.to_dict() for name, config in rows.items()}))
    if path.exists():
        try:
            stored = read(path, STUDY)
        except storage.Damaged as error:
            raise StorageError(f"{path} {error}; give another --out") from error
        if stored["configs"] != settings:
            raise ConfigError(f"{path.parent} holds a study of other settings; give another --out")
        return stored["timing"]
    screen.say("timing FIT and U-Net in turns")
    timing = units.steps_in_equal_time(rows[units.FIT], rows[units.UNET], text)
    write(path, {"configs": settings, "timing": timing})
    return timing


def run_all(
    folder: Path, all_units: Sequence[units.Unit], text: build.Text
) -> list[dict[str, Any]]:
    """Returns the figures of all units, those in `folder` and those that it lacks."""
    path = lambda unit: folder / f"{unit.name}.json"
    figures = {unit.name: old for unit in all_units if (old := figures_of(path(unit)))}
    missing = [unit for unit in all_units if unit.name not in figures]
    total = sum(unit.config.training.steps for unit in missing)
    report_steps, before = screen.progress("training steps"), 0
    for place, unit in enumerate(missing, start=1):
        screen.say(f"network {place} of {len(missing)}: {unit.name}")
        progress = lambda done, of, before=before: report_steps(before + done, total)
        figures[unit.name] = units.run(unit, text, progress)
        write(path(unit), figures[unit.name])
        before += unit.config.training.steps
    return [figures[unit.name] for unit in all_units]


def figures_of(path: Path) -> dict[str, Any] | None:
    """Reads a unit's figures; None where they are missing or damaged."""
    if not path.exists():
        return None
    try:
        return read(path, {})
    except storage.Damaged as error:
        screen.say(f"{path} {error}; that network is trained again")
        return None


def read(path: Path, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Reads what `write` wrote; raises Damaged for anything else."""
    entries = storage.parse_object(storage.read(path), kinds)
    storage.check_seal(entries)
    return {name: value for name, value in entries.items() if name != "seal"}


def write(path: Path, entries: Mapping[str, Any]) -> None:
    """Writes entries with their digest."""
    storage.write(path, json.dumps(storage.sealed(entries), indent=2).encode() + b"\n")


def averages(fit: Any) -> list[averaging.Average]:
    """Returns Figure 2's rows, of videos of the test split."""
    return averaging.averages(scoring.real_videos(build.world(fit), scoring.VIDEOS))


if __name__ == "__main__":
    entry.run(run)
