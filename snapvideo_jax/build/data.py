"""Config -> the data that it names, and how captions enter."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from snapvideo_jax.build.config import Config
from snapvideo_jax.data import order, pipeline, shapes, sources
from snapvideo_jax.data.decoders import Decoders
from snapvideo_jax.data.embeddings import Embeddings
from snapvideo_jax.data.text import Tokenizer


def world(config: Config) -> shapes.World:
    """Returns what source "shapes" can draw."""
    fields = config.data.shapes
    return shapes.World(
        num_frames=config.data.num_frames,
        height=config.data.height,
        width=config.data.width,
        radius=fields.radius,
        shapes=tuple(fields.shapes),
        colors=tuple(fields.colors),
        directions=tuple(fields.directions),
        speeds=tuple((word, speed) for word, speed in fields.speeds),
        frame_rates=tuple(config.data.frame_rates),
        background=fields.background,
        spread=fields.spread,
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """What the pipeline reads: example(g, image), the captions there are, and a fingerprint.

    decoders: the processes that read files, if there are any.
    """

    example: pipeline.Example
    captions: Callable[[], list[str]]
    fingerprint: str
    decoders: Decoders | None = None


def source(
    config: Config,
    report_bad: Callable[[str, str], None],
    report_good: Callable[[], None] = lambda: None,
) -> Source:
    """Opens the data that the config names; raises DataError if it is not there.

    report_bad: called with path and reason of each file that cannot be used. report_good: called
    for each that can.
    """
    data, seed = config.data, config.seed
    if data.source == "shapes":
        shown = world(config)
        example = lambda g, image: shapes.example(shown, seed, g, image=image)
        return Source(example, lambda: shapes.all_captions(shown), repr(shown))
    folder = sources.open_folder(data.path)
    spec = sources.ClipSpec(
        num_frames=data.num_frames,
        height=data.height,
        width=data.width,
        frame_rates=tuple(data.frame_rates),
    )
    decoders = Decoders(data.decode_seconds)

    def example(g: int, image: bool) -> sources.Example:
        row = folder.example(
            g, image=image, seed=seed, spec=spec, report_bad=report_bad, read=decoders.read
        )
        report_good()
        return row

    return Source(example, folder.captions, folder.fingerprint, decoders)


class Text(NamedTuple):
    """How captions enter: encode(captions) -> the text entries of a batch.

    vocabulary_size: ids there are; 0 for states. encoder: fingerprint of the encoder that made the
    states; "" for ids.
    """

    encode: pipeline.Encode
    vocabulary_size: int
    encoder: str


class TextSettings(NamedTuple):
    """trained: whether the text encoder is trained along; else states of a published one are read.

    length: tokens a caption is padded or cut to. dtype: of matrix products, a name of DTYPES.
    """

    trained: bool
    length: int
    dtype: str


def text_settings(config: Config) -> TextSettings:
    """Returns what an encoder of prompts has to know."""
    trained = config.model.text_encoder.source == "trained"
    return TextSettings(trained, config.data.text_length, config.model.dtype)


def text(config: Config, vocabulary: Path) -> Text:
    """Reads the sentencepiece model `vocabulary`, or the stored states that the config names.

    Raises DataError if that is not there.
    """
    length = config.data.text_length
    if config.model.text_encoder.source == "stored":
        states = Embeddings(config.data.text_states)
        states.check(config.model.text_encoder.channels, length)
        return Text(as_batch("text", states), 0, states.encoder)
    tokenizer = Tokenizer(vocabulary)
    ids = as_batch("text_ids", lambda captions: tokenizer(captions, length))
    return Text(ids, tokenizer.vocabulary_size, "")


def as_batch(name: str, encode: Callable[[Sequence[str]], tuple]) -> pipeline.Encode:
    """Returns captions -> the entries `name` and text_mask of a batch, from (values, mask)."""
    return lambda captions: dict(zip((name, "text_mask"), encode(captions), strict=True))


def vocabulary_path(config: Config, workdir: Path) -> Path:
    """Returns the sentencepiece model of a run: the config's, or the one in the run's folder."""
    return Path(config.data.vocabulary or workdir / "vocabulary.model")


def feed_spec(
    config: Config,
    source: Source,
    text: Text,
    rows: Sequence[int],
    box: tuple[slice, slice, slice],
) -> pipeline.FeedSpec:
    """Returns what a host needs to make `rows` of every batch, and the `box` of each video."""
    data, batch_size = config.data, config.training.batch_size
    return pipeline.FeedSpec(
        example=source.example,
        encode=text.encode,
        box=box,
        batch_size=batch_size,
        images=order.image_rows(batch_size, data.image_fraction),
        rows=rows,
        workers=data.workers,
        prefetch=data.prefetch,
        stall_seconds=data.stall_seconds,
        decoders=source.decoders,
    )
