"""Config -> the data that it names, and how captions enter."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from snapvideo_jax.build.config import Config
from snapvideo_jax.data import pipeline, shapes, sources
from snapvideo_jax.data.embeddings import Embeddings
from snapvideo_jax.data.text import Tokenizer


def world(config: Config) -> shapes.World:
    """What source "shapes" can draw."""
    drawn = config.data.shapes
    return shapes.World(
        num_frames=config.data.num_frames,
        height=config.data.height,
        width=config.data.width,
        radius=drawn.radius,
        shapes=tuple(drawn.shapes),
        colors=tuple(drawn.colors),
        directions=tuple(drawn.directions),
        speeds=tuple((word, speed) for word, speed in drawn.speeds),
        frame_rates=tuple(config.data.frame_rates),
        background=drawn.background,
        spread=drawn.spread,
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """What the pipeline reads: example(g, image), the captions there are, and a fingerprint."""

    example: Callable[[int, bool], tuple]
    captions: Callable[[], list[str]]
    fingerprint: str


def source(config: Config, report_bad: Callable[[str, str], None]) -> Source:
    """The data the config names; DataError if it is not there. `report_bad(path, reason)`."""
    data, seed = config.data, config.seed
    if data.source == "shapes":
        drawn = world(config)
        example = lambda g, image: shapes.example(drawn, seed, g, image=image)
        return Source(example, lambda: shapes.all_captions(drawn), repr(drawn))
    folder = sources.open_folder(data.path)
    spec = sources.ClipSpec(
        num_frames=data.num_frames,
        height=data.height,
        width=data.width,
        frame_rates=tuple(data.frame_rates),
    )
    example = lambda g, image: folder.example(
        g, image=image, seed=seed, spec=spec, report_bad=report_bad
    )
    return Source(example, folder.captions, folder.fingerprint)


class Text(NamedTuple):
    """How captions enter: encode(captions) -> what batches hold of them.

    vocabulary_size: ids there are; 0 for states. encoder: fingerprint of the one whose states they
    are; "" for ids.
    """

    encode: pipeline.Encode
    vocabulary_size: int
    encoder: str


def text(config: Config, vocabulary: Path) -> Text:
    """The ids of the sentencepiece model `vocabulary`, or stored states. DataError if not there."""
    length = config.data.text_length
    if config.model.text_encoder.source == "stored":
        stored = Embeddings(config.data.text_states)
        stored.check(config.model.text_encoder.channels, length)
        return Text(as_batch("text", stored), 0, stored.encoder)
    tokenizer = Tokenizer(vocabulary)
    ids = as_batch("text_ids", lambda captions: tokenizer(captions, length))
    return Text(ids, tokenizer.vocabulary_size, "")


def as_batch(name: str, encode: Callable[[Sequence[str]], tuple]) -> pipeline.Encode:
    """encode(captions) -> (values, mask), as a part of a batch."""
    return lambda captions: dict(zip((name, "text_mask"), encode(captions), strict=True))


def vocabulary_path(config: Config, workdir: Path) -> Path:
    """The sentencepiece model of a run: the config's, or the one made in the run's folder."""
    return Path(config.data.vocabulary or workdir / "vocabulary.model")
