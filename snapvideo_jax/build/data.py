"""Config -> the data that it names, and how captions enter."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snapvideo_jax.build.config import Config
from snapvideo_jax.data import mixture, order, pipeline, shapes, sources
from snapvideo_jax.data.choice import VideoInfo
from snapvideo_jax.data.decoders import Decoders
from snapvideo_jax.data.embeddings import Embeddings
from snapvideo_jax.data.text import Tokenizer, read_vocabulary
from snapvideo_jax.errors import ConfigError, DataError


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
        frame_rates=frame_rates(config),
        background=fields.background,
        spread=fields.spread,
    )


def frame_rates(config: Config) -> tuple[float, ...]:
    """Returns how many frames per second the videos of training have."""
    return tuple(config.data.frame_rates)


@dataclasses.dataclass(frozen=True)
class Source:
    """What training reads: draw(g, image), the captions there are, and a fingerprint.

    decoders: the processes that read files, if there are any.
    """

    draw: Callable[[int, bool], sources.Drawn]
    captions: Callable[[], list[str]]
    fingerprint: str
    decoders: Decoders | None = None

    def example(self, g: int, image: bool) -> sources.Example:
        """Returns what the pipeline reads of image g, or of video g."""
        return self.draw(g, image).example()


class _Part(NamedTuple):
    """A data set of the config, and how many images and videos of each batch are from it."""

    kind: str
    path: str
    images: int
    videos: int


def _parts(config: Config) -> list[_Part]:
    """Returns the data sets of a config; the first one has the rows that the others leave.

    Raises ConfigError where the others take more than there are.
    """
    data, batch_size = config.data, config.training.batch_size
    others = [_Part(*part) for part in data.mixture]
    images = order.image_rows(batch_size, data.image_fraction)
    videos = batch_size - images
    left = {
        "images": images - sum(part.images for part in others),
        "videos": videos - sum(part.videos for part in others),
    }
    for kind, rows in left.items():
        if rows < 0:
            raise ConfigError(
                f"data.mixture takes {-rows} {kind} more than the {images} images and {videos} "
                "videos of a batch (training.batch_size, data.image_fraction)"
            )
    return [_Part(data.source, data.path, **left), *others]


def source(
    config: Config,
    report_bad: Callable[[str, str], None],
    report_good: Callable[[], None] = lambda: None,
) -> Source:
    """Opens the data that the config names; raises DataError if it is not there.

    report_bad: called with path and reason of each file that cannot be used. report_good: called
    for each that can.
    """
    parts = _parts(config)
    read_files = any(part.kind == "folder" for part in parts)
    decoders = Decoders(config.data.decode_seconds) if read_files else None
    opened = [
        _open(config, part, mixture.part_seed(config.seed, number), report_bad, decoders)
        for number, part in enumerate(parts)
    ]
    whole = opened[0] if len(parts) == 1 else _mix(parts, opened)

    def draw(g: int, image: bool) -> sources.Drawn:
        drawn = whole.draw(g, image)
        report_good()
        return drawn

    return dataclasses.replace(whole, draw=draw, decoders=decoders)


def _mix(parts: Sequence[_Part], opened: Sequence[Source]) -> Source:
    """Returns the data sets of `parts` as one, each with its rows of every batch."""
    mixed = [
        mixture.Part(source.draw, part.images, part.videos)
        for part, source in zip(parts, opened, strict=True)
    ]
    facts = [
        (source.fingerprint, part.images, part.videos)
        for part, source in zip(parts, opened, strict=True)
    ]
    return Source(
        draw=lambda g, image: mixture.draw(mixed, g, image),
        captions=lambda: [caption for source in opened for caption in source.captions()],
        fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
    )


def _open(
    config: Config,
    part: _Part,
    seed: int,
    report_bad: Callable[[str, str], None],
    decoders: Decoders | None,
) -> Source:
    """Opens one data set; its files are read by `decoders`."""
    data = config.data
    if part.kind == "shapes":
        shown = world(config)
        draw = lambda g, image: _drawn_shape(g, shapes.example(shown, seed, g, image=image))
        return Source(draw, lambda: shapes.all_captions(shown), repr(shown))
    spec = sources.ClipSpec(
        num_frames=data.num_frames,
        height=data.height,
        width=data.width,
        frame_rates=tuple(data.frame_rates),
        aspect=data.aspect,
        random_crop=data.random_crop,
        random_flip=data.random_flip,
    )
    if part.kind == "folder":
        assert decoders is not None, "there is a pool where there is a folder"
        folder = sources.open_folder(part.path)
        draw = lambda g, image: folder.draw(
            g, image=image, seed=seed, spec=spec, report_bad=report_bad, read=decoders.read
        )
        return Source(draw, folder.captions, folder.fingerprint)
    build = _build(config, part, spec)
    draw = lambda g, image: build.draw(g, image=image, seed=seed, spec=spec, report_bad=report_bad)
    return Source(draw, build.captions, build.fingerprint)


def _drawn_shape(g: int, example: sources.Example) -> sources.Drawn:
    frames, caption, interval, (height, width) = example
    name, rate = f"shapes[{g}]", 1 / interval if interval else 0.0
    source = VideoInfo(name, len(frames) * interval, rate, height, width)
    return sources.Drawn(sources.Clip(frames, interval, source, start=0.0), caption, name)


def _build(config: Config, part: _Part, spec: sources.ClipSpec) -> Any:
    """Returns the `TfdsSource` of a part."""
    from snapvideo_jax.data import tfds_fields, tfds_source  # plans and benchmarks read no data

    fields = config.data.tfds
    build = tfds_source.open_build(
        part.path,
        split=fields.split,
        images=fields.images,
        fields=tfds_fields.Fields(fields.video, fields.caption, fields.frame_rate),
        spec=spec,
    )
    if build.videos is None and part.videos:
        raise ConfigError(
            f"{part.path} holds pictures alone, and {part.videos} videos of each batch are from "
            "it; train on it with --config.data.image_fraction=1, or in data.mixture"
        )
    return build


class Text(NamedTuple):
    """How captions enter: encode(captions) -> the text entries of a batch.

    vocabulary_size: ids there are; 0 for states. encoder: fingerprint of what encodes: of the
    encoder that made the states, or of the vocabulary that makes ids. unknown_words: of a caption,
    those that training never showed, as far as the vocabulary says.
    """

    encode: pipeline.Encode
    vocabulary_size: int
    encoder: str
    unknown_words: Callable[[str], Sequence[str]] = lambda caption: ()

    def unknown(self, captions: Sequence[str]) -> list[str]:
        """Lists the words of `captions` that training never showed, each one time."""
        return list(dict.fromkeys(w for caption in captions for w in self.unknown_words(caption)))


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


def text(config: Config, vocabulary: Path, encoder: str = "") -> Text:
    """Reads the sentencepiece model `vocabulary`, or the stored states that the config names.

    encoder: the fingerprint that it must have; "" takes any.
    Raises DataError if it is not there, or has another fingerprint.
    """
    length = config.data.text_length
    if config.model.text_encoder.source == "stored":
        states = Embeddings(config.data.text_states)
        states.check(config.model.text_encoder.channels, length)
        _check_encoder(config.data.text_states, states.encoder, encoder)
        return Text(as_batch("text", states), 0, states.encoder)
    fingerprint = hashlib.sha256(read_vocabulary(vocabulary)).hexdigest()
    _check_encoder(str(vocabulary), fingerprint, encoder)  # before its bytes reach a parser
    tokenizer = Tokenizer(vocabulary)
    ids = as_batch("text_ids", lambda captions: tokenizer(captions, length))
    return Text(ids, tokenizer.vocabulary_size, fingerprint, tokenizer.unknown_words)


def _check_encoder(path: str, fingerprint: str, expected: str) -> None:
    if expected and fingerprint != expected:
        raise DataError(
            f"{path} is not what the model was trained with, or a part of it has changed; put the "
            "file of the run back"
        )


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
