"""The folder of all videos that a page made, each in its own folder as launch.sample writes it.

What is in it:
    00000/, 00001/, ...   00000.mp4, sheet.png and samples.json of one video
    .unfinished/          the one that is being written; it gets its number when it is whole
    lock                  held by the page that writes here
"""

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapvideo_jax import storage
from snapvideo_jax.errors import StorageError, reason
from snapvideo_jax.fields import STEP
from snapvideo_jax.files.video import Video
from snapvideo_jax.kinds import Several, Table, Text
from snapvideo_jax.page import form
from snapvideo_jax.sampling.output_folder import RECORD, WHOLE, OutputFolder, Sample, Settings

NAME = re.compile(r"\d{5,9}")
MP4 = "00000.mp4"
AT_A_TIME = 24  # videos of an answer
STAGE = {"checkpoint": Text(), "checkpoint_step": STEP, "text_encoder": Text()}
STAGE |= {name: form.kind(name) for name in form.OF_FIRST_STAGE}
ONE_VIDEO = STAGE | {"samples": Several(Table(), 1, 1)}  # in samples.json


class Gallery:
    """The videos of a folder, into which one page writes at a time.

    encoders: fingerprint of a text encoder that launch.sample has to be shown -> its folder.
    """

    def __init__(self, folder: Path, encoders: Mapping[str, str] | None = None):
        self._folder, self._encoders = folder, encoders or {}

    def add(self, prompt: str, seed: int, frames: Video, settings: Settings) -> str:
        """Writes a video and what makes it again, whole or not at all; returns its name.

        Raises StorageError if it cannot be written.
        """
        unfinished, sample = self._folder / ".unfinished", Sample(0, prompt, seed)
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            written = OutputFolder(storage.make_folder(unfinished), settings, [sample])
            written.add(sample, frames)
            written.finish()
            names = self._names()
            name = f"{int(names[0]) + 1 if names else 0:05d}"
            unfinished.rename(self._folder / name)
        except OSError as error:
            raise StorageError(f"cannot write into {self._folder}: {reason(error)}") from error
        return name

    def newest(self, before: int | None = None) -> dict[str, Any]:
        """Describes the newest videos, or of those before the number `before` the newest.

        older: the number before which there are more; None where these are all.
        """
        names = [name for name in self._names() if before is None or int(name) < before]
        listed = names[:AT_A_TIME]
        return {
            "videos": [entry for name in listed if (entry := self.describe(name))],
            "older": int(listed[-1]) if len(names) > len(listed) else None,
        }

    def describe(self, name: str) -> dict[str, Any] | None:
        """Returns what the page shows beside a video; None where the folder is not as written."""
        try:
            settings = _read(self._folder / name / WHOLE)
        except storage.Damaged:
            return None
        values = _values(settings)
        return {
            "name": name,
            "values": values,
            "command": self._command(settings, values),
            "settings": settings,
        }

    def path(self, name: str) -> Path | None:
        """Returns the file of a video; None where this folder has none of that name."""
        if not NAME.fullmatch(name):
            return None
        path = (self._folder / name / MP4).resolve()
        inside = path.is_relative_to(self._folder.resolve())  # a link may lead elsewhere
        return path if inside and path.is_file() else None

    def _names(self) -> list[str]:
        """Lists the names of all videos, the newest first."""
        names = [name for name in os.listdir(self._folder) if NAME.fullmatch(name)]
        return sorted(names, key=int, reverse=True)

    def _command(self, settings: Settings, values: form.Values) -> str:
        """Returns what makes the video again, pixel for pixel, as a shell reads it."""
        flags = _model_flags("checkpoint", "step", settings)
        if settings["upsampler"]:
            flags |= _model_flags("upsampler", "upsampler_step", settings["upsampler"])
        if t5 := self._encoders.get(settings["text_encoder"]):
            flags["t5"] = t5
        flags |= values | {"out": "samples"}
        words = [f"--{name}={shlex.quote(str(value))}" for name, value in flags.items()]
        return " \\\n    ".join(["python -m launch.sample", *words])


def _model_flags(folder: str, step: str, stage: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flags that name a stage's model; a folder below the working one is relative."""
    path, here = Path(stage["checkpoint"]), Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return {folder: shown, step: stage["checkpoint_step"]}


def _values(settings: Settings) -> form.Values:
    """Returns what the form held when a video was made."""
    [sample] = settings["samples"]
    stages = [settings, settings["upsampler"]] if settings["upsampler"] else [settings]
    return {"prompt": sample["prompt"], "seed": sample["seed"]} | form.of_stages(stages)


def _read(path: Path) -> Settings:
    """Reads the samples.json of one video; raises Damaged for what is none."""
    settings = storage.parse_object(storage.read(path), ONE_VIDEO)
    storage.check_kinds(settings["samples"][0], RECORD)
    if settings.get("upsampler") is not None:
        storage.check_kinds(settings, {"upsampler": Table()})
        storage.check_kinds(settings["upsampler"], STAGE)
    return settings | {"upsampler": settings.get("upsampler")}
