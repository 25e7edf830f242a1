"""Where people look at a run's curves, samples and config: TensorBoard, and wandb or trackio.

A run can do without them. What cannot be written is said a single time, and then nothing more is.
"""

import hashlib
import importlib
import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, reason

TRACKERS = "wandb", "trackio"  # packages with the same functions: init, log, Video and finish
PROJECT = "snapvideo_jax"
T = TypeVar("T")


class Writer(Protocol):
    """What shows a run to people."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds a point to the curve of each name."""

    def samples(self, step: int, moving: Path) -> None:
        """Shows a GIF file of samples."""

    def close(self) -> None:
        """Writes what is pending."""


class Board:
    """A writer until it fails; what comes then is left out."""

    def __init__(self, title: str, open: Callable[[], Writer], log: Callable[[str], None]):
        """Opens the writer.

        Args:
            title: of it, for people.
            open: opens it.
            log: called with one line if it fails.
        """
        self._title, self._log = title, log
        self._writer = self._unless_it_fails(open)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds one point to the curve of each name."""
        if writer := self._writer:
            self._unless_it_fails(lambda: writer.scalars(step, values))

    def samples(self, step: int, moving: Path) -> None:
        """Shows a GIF file of samples."""
        if writer := self._writer:
            self._unless_it_fails(lambda: writer.samples(step, moving))

    def close(self) -> None:
        """Writes what is pending."""
        if writer := self._writer:
            self._unless_it_fails(writer.close)

    def _unless_it_fails(self, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except Exception as error:  # tensorflow's, clu's and the trackers' own kinds
            self._writer = None
            self._log(f"{self._title} ends here: {reason(error)[:200]}")


class TensorBoard:
    """Event files by clu, which alone knows tensorflow: curves, moving samples, and texts."""

    def __init__(self, folder: Path, texts: Mapping[str, str]):
        """Opens the folder, and writes `texts` (name -> Markdown) at step 0."""
        from clu import metric_writers  # imports tensorflow: only when a run really starts

        self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder)))
        self._writer.write_texts(0, texts)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds one point to the curve of each name."""
        self._writer.write_scalars(step, values)

    def samples(self, step: int, moving: Path) -> None:
        """Adds a GIF to the panel of images, which shows whatever a browser does, moving."""
        from tensorboard.plugins.image import metadata

        content = storage.read(moving)
        width, height = Image.open(io.BytesIO(content)).size
        kind = metadata.create_summary_metadata("samples", "")
        parts = np.array([str(width).encode(), str(height).encode(), content], object)  # its form
        self._writer.write_summaries(step, {"samples": parts}, {"samples": kind})

    def close(self) -> None:
        """Writes what is pending."""
        self._writer.close()


class Tracker:
    """wandb or trackio. A run that is resumed goes on under its name, the one of its folder."""

    def __init__(self, package: str, workdir: Path, config: Mapping[str, Any]):
        """Opens the run of `workdir` in the project PROJECT, where `package` keeps it."""
        self._package = importlib.import_module(package)
        own = {}
        if package == "wandb":  # names may occur twice there
            place = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:8]
            own = {"id": f"{workdir.name}-{place}", "dir": str(workdir)}
        self._package.init(
            project=PROJECT, name=workdir.name, config=dict(config), resume="allow", **own
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds one point to the curve of each name."""
        self._package.log(dict(values), step=step)

    def samples(self, step: int, moving: Path) -> None:
        """Adds a GIF."""
        self._package.log({"samples": self._package.Video(str(moving), format="gif")}, step=step)

    def close(self) -> None:
        """Writes what is pending."""
        self._package.finish()


def check_tracker(package: str | None) -> None:
    """Raises ConfigError where a tracker's package is not installed."""
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(f"--tracker={package} needs that package: pip install {package}")


def open_all(
    workdir: Path,
    config: Mapping[str, Any],
    tracker: str | None,
    log: Callable[[str], None],
) -> list[Board]:
    """Opens TensorBoard, and the tracker if there is one; raises StorageError without a folder.

    Args:
        workdir: folder of the run.
        config: its config, as JSON holds it; the boards show it.
        tracker: one of TRACKERS.
        log: called with a line when a board fails.
    """
    folder = storage.make_folder(workdir / "tensorboard")
    boards = [Board("TensorBoard", lambda: TensorBoard(folder, texts(config)), log)]
    if tracker is not None:
        boards.append(Board(tracker, lambda: Tracker(tracker, workdir, config), log))
    return boards


def texts(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the config, and the prompts of the samples in their order, as Markdown."""
    prompts = config["log"]["sample_prompts"]
    shown = {"config": f"```json\n{json.dumps(config, indent=2)}\n```"}
    if prompts:
        shown["samples/prompts"] = "\n".join(f"1. {prompt}" for prompt in prompts)
    return shown
