"""What may change between the runs of one folder, and what must be the same on all processes."""

import copy
import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from snapvideo_jax.errors import ConfigError, DataError
from snapvideo_jax.fields import flatten

# Fields that may change between the runs of one folder; any other makes it another experiment.
MAY_CHANGE = (
    "mesh", "log", "checkpoint", "sampling", "training.steps", "training.max_skipped",
    "training.accumulate", "model.remat", "model.attention",
    "model.fit.unroll", "model.dit.unroll",
    "data.path", "data.vocabulary", "data.workers", "data.prefetch", "data.decode_seconds",
    "data.max_bad_fraction", "data.stall_seconds",
)  # fmt: skip

# Fields that configs of earlier versions lack, and the value that was theirs.
LATER_FIELDS: dict[str, Any] = {
    "model.fit.write_scale": 1.0,
    "model.dit.patch": 4,
    "model.dit.channels": 1024,
    "model.dit.blocks": 30,
    "model.dit.head_channels": 64,
    "model.dit.factorised": False,
    "model.dit.unroll": 1,
    "model.attention": "fastest",
    "data.mixture": [],  # as JSON has it
    "data.aspect": "crop",
    "data.random_crop": False,
    "data.random_flip": False,
    "data.tfds.split": "train",
    "data.tfds.images": "images",
    "data.tfds.video": "video",
    "data.tfds.caption": "caption",
    "data.tfds.frame_rate": "frame_rate",
    "data.decode_seconds": 60.0,
    "data.max_bad_fraction": 0.01,
    "data.stall_seconds": 300.0,
    "log.evaluate_every": 0,
    "log.evaluate_samples": 64,
    "log.evaluate_path": "",
    "sampling.solver": "heun",
    "sampling.guidance_sigma_min": 0.0,
    "sampling.guidance_sigma_max": 1e6,
}

# Fields that may differ between the processes of one job.
MAY_DIFFER = (
    "data.path", "data.vocabulary", "data.workers", "data.prefetch", "data.decode_seconds",
    "data.max_bad_fraction", "data.stall_seconds",
)  # fmt: skip
VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def check_same_experiment(workdir: Path, saved: dict, meta: dict) -> None:
    """Compares what a checkpoint of `workdir` was saved with and what the run has now.

    Args:
        workdir: for messages.
        saved: {"config", "data", "text", "numerics", "step"} of the checkpoint; earlier versions
            had no numerics, {}.
        meta: {"config", "data", "text", "numerics"} of the run.

    Raises:
        ConfigError: numerics differ, or fields that are not in MAY_CHANGE.
        DataError: the data or the text encoder differ.
    """
    before = flatten(with_later_fields(saved["config"])) | saved.get("numerics", {})
    now = flatten(meta["config"]) | (meta["numerics"] if saved.get("numerics") else {})
    differences = [
        f"{name}={before.get(name)!r} there, {now.get(name)!r} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not _may_change(name)
    ]
    if differences:
        raise ConfigError(
            f"{workdir} holds another experiment ({'; '.join(differences[:5])}); choose another "
            "--workdir or set the fields back"
        )
    same_text = saved["text"] in ("", meta["text"])  # earlier versions had none of a vocabulary
    if saved["data"] != meta["data"] or not same_text:
        raise DataError(
            f"the {'data' if same_text else 'text encoder or vocabulary'} of {workdir} changed "
            f"after step {saved['step']}; put back what was there, or choose another --workdir"
        )


def with_later_fields(config: dict) -> dict:
    """Returns a stored config with the fields that came after it, or in the place of others."""
    config = copy.deepcopy(config)
    sampling = config.get("sampling")
    if isinstance(sampling, dict) and sampling.pop("heun", True) is False:
        sampling["solver"] = "euler"  # which was a field of its own
    for name, value in LATER_FIELDS.items():
        first, *sections, field = name.split(".")
        place = config.get(first)
        for section in sections:
            if isinstance(place, dict):
                place = place.setdefault(section, {})
        if isinstance(place, dict):
            place.setdefault(field, value)
    return config


def job_facts(config: dict) -> dict[str, Any]:
    """Returns what all processes of a job must share: config, packages, the code itself."""
    facts = {name: value for name, value in flatten(config).items() if name not in MAY_DIFFER}
    package = Path(__file__).parent.parent
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(f"{path.relative_to(package)} ".encode() + path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    return facts | versions | {"the code of snapvideo_jax": code.hexdigest()[:16]}


def _may_change(name: str) -> bool:
    return any(name == field or name.startswith(field + ".") for field in MAY_CHANGE)
