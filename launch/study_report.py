"""What the commands that train small networks share: their texts, and the report in DIR."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import screen
from snapvideo_jax import build, storage
from snapvideo_jax.benchmark.report import Table, for_screen
from snapvideo_jax.build import Config
from snapvideo_jax.data.text import train_vocabulary


def text_of(config: Config, folder: Path) -> build.Text:
    """Returns how captions enter; makes the vocabulary of the config's captions in `folder`."""
    vocabulary = folder / "vocabulary.model"
    train_vocabulary(build.source(config, lambda path, why: None).captions(), vocabulary)
    return build.text(config, vocabulary)


def write(
    folder: Path,
    name: str,
    *,
    study: Mapping[str, Any],
    markdown: str,
    pictures: Mapping[str, bytes],
    tables: Sequence[Table],
) -> None:
    """Writes the tables to the screen, and NAME.json, NAME.md and the pictures to `folder`.

    The screen comes first: where the disk is full, it has what hours of training have come to.
    """
    for table in tables:
        screen.say(for_screen(table))
    storage.write(folder / f"{name}.json", json.dumps(study, indent=2).encode() + b"\n")
    storage.write(folder / f"{name}.md", markdown.encode())
    for picture, content in pictures.items():
        storage.write(folder / picture, content)
    screen.say(f"\n{folder / f'{name}.md'} has it all")
