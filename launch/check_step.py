"""Checks a training step on this machine's first device against its CPU.

  python -m launch.check_step
  python -m launch.check_step --configs=configs/shapes_fit.py,tests/tiny_unet.py --out=DIR

The first step of each config runs on the CPU in float32, then on the device: in float32, with
products that are not rounded to fewer bits, where the gradient's distance from the CPU's must be
below 1e-4 of its size; and in bfloat16, where attention by the device's kernel may be at most 1.5
times as far off as plain attention. The state is the same, and so is the batch of random videos,
8 of them. It needs neither tensorflow nor clu.

DIR gets report.json and report.md, if --out names one.

Exit codes: 0 they agree, 1 they do not, 2 bad flags or config, 5 DIR cannot be written.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from launch import entry, provenance, screen
from snapvideo_jax import build, storage
from snapvideo_jax.benchmark import agreement, report
from snapvideo_jax.errors import ConfigError, UserError

VIDEOS = 8
CONFIGS = flags.DEFINE_list(
    "configs", ["configs/shapes_fit.py"], "Configuration files, whose steps are checked."
)
OUT = entry.define_folder("out", "Folder for the report.", required=False)


def run() -> None:
    """Checks the configs that the flags name, and says which do not agree."""
    device = jax.devices()[0]
    configs = {}
    for path in CONFIGS.value:
        config = build.check_without_data(entry.load_config(path))
        configs[path] = build.with_batch_size(config, VIDEOS)
    if not configs:
        raise ConfigError("--configs names no file")
    facts = provenance.facts("launch.check_step", [device])
    agreements = []
    for path, config in configs.items():
        screen.say(f"{path}: a training step on the CPU and on {device.device_kind}")
        agreements += agreement.check(path, config, device)
        write(agreements, facts)  # what is known, should the next one end it all
    screen.say(report.for_screen(agreement.table(agreements, facts)))
    if apart := [one for one in agreements if not one.holds]:
        raise UserError(f"{len(apart)} of {len(agreements)} steps do not agree with the CPU's")


def write(agreements: Sequence[agreement.Agreement], facts: Mapping[str, Any]) -> None:
    """Writes the report as JSON and Markdown, if --out names a folder."""
    if not OUT.value:
        return
    folder = storage.make_folder(OUT.value)
    tree = {**facts, "agreements": [one._asdict() for one in agreements]}
    paragraphs = report.markdown_section(agreement.table(agreements, facts), facts["command"])
    storage.write(folder / "report.json", json.dumps(tree, indent=2).encode() + b"\n")
    storage.write(folder / "report.md", ("\n\n".join(paragraphs) + "\n").encode())


if __name__ == "__main__":
    entry.run(run)
