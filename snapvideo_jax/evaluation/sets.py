"""What each protocol samples, and the real videos that samples are compared with.

Text that belongs to a data set comes from the user's copy of it; nothing of it is here.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from snapvideo_jax.data import order, shapes, sources
from snapvideo_jax.data.choice import Aspect
from snapvideo_jax.data.sources import ClipSpec, Example
from snapvideo_jax.data.world import World, compositions
from snapvideo_jax.errors import ConfigError, DataError, reason
from snapvideo_jax.evaluation import video_set
from snapvideo_jax.evaluation.choices import digest

FRAMES = 16  # of a video in the protocols of UCF-101 and MSR-VTT
UCF101_VIDEOS, UCF101_SIZE = 10_000, (240, 320)  # samples; (height, width) of the data set
TEMPLATE = "a video of {action}"  # of a class without a prompt of its own
SHAPES_REAL = 1024  # videos drawn for the protocol "shapes"
SEED = 0  # of real clips: the same ones whatever is sampled


class SampleSet(NamedTuple):
    """Video i is sampled from prompt i, with the noise of seed + i.

    source_size: (height, width) in pixels that the network reads; None: that of its videos.
    """

    prompts: list[str]
    seed: int
    source_size: tuple[int, int] | None = None


class RealSet(NamedTuple):
    """Real videos 0 .. count - 1.

    name: data set and which clips of it, for the record. fingerprint: of what decides the clips.
    video_shape: (T, H, W). is_captioned: whether examples have the captions, frame intervals and
    size of training, so that its loss can be measured on them.
    """

    name: str
    count: int
    fingerprint: str
    video_shape: tuple[int, int, int]
    example: Callable[[int], Example]
    is_captioned: bool


class Sets(NamedTuple):
    """The two sets of a protocol."""

    protocol: str
    samples: SampleSet
    real: RealSet


def of_shapes(world: World, frame_rate: float, num: int, seed: int) -> Sets:
    """Returns `num` captions that training shows and as many that it never shows, and such videos.

    The compositions come in a random order, again and again, so all of them come equally often.
    """
    seen, unseen = (shapes_prompts(world, num, held_out, seed) for held_out in (False, True))
    return Sets("shapes", SampleSet([*seen, *unseen], seed), real_shapes(world, frame_rate))


def shapes_prompts(world: World, num: int, held_out: bool, seed: int) -> list[str]:
    """Returns `num` captions of compositions that training shows or, held out, never shows."""
    captions = [shapes.caption(c) for c in compositions(world, held_out)]
    shuffled = np.random.default_rng(seed).permutation(len(captions))
    return [captions[shuffled[i % len(captions)]] for i in range(num)]


def real_shapes(world: World, frame_rate: float) -> RealSet:
    """Returns videos that training never drew, every other one of a held-out composition."""
    world = dataclasses.replace(world, frame_rates=(frame_rate,))
    size = world.height, world.width

    def example(i: int) -> Example:
        g = shapes.TEST_START + i
        scene = shapes.draw_scene(world, SEED, g, image=False, held_out=i % 2 == 1)
        return shapes.render(world, scene), shapes.caption(scene), 1 / frame_rate, size

    return RealSet(
        name="shapes, half of them held out",
        count=SHAPES_REAL,
        fingerprint=digest({"world": repr(world)}),
        video_shape=(world.num_frames, *size),
        example=example,
        is_captioned=True,
    )


def of_reference(
    folder: str,
    video_shape: tuple[int, int, int],
    frame_rate: float,
    num: int | None,
    seed: int,
    aspect: Aspect = "crop",
) -> Sets:
    """Returns captions of a folder of captioned videos, and the videos as training would cut them.

    Args:
        folder: as of data.source=folder.
        video_shape: (T, H, W) of the samples, which the clips get too.
        frame_rate: of both.
        num: how many of the videos, in a random order that SEED decides; None: all.
        seed: of the noise of video 0.
        aspect: how training fits videos of another shape: data.aspect.
    """
    T, H, W = video_shape
    spec = ClipSpec(num_frames=T, height=H, width=W, frame_rates=(frame_rate,), aspect=aspect)
    source = sources.open_folder(folder)
    num = _check_count(num, len(source.videos), f"videos in {folder}")
    rows = order.index(np.arange(num), len(source.videos), SEED)
    texts = [sources.texts(source.videos[row][1]) for row in rows]
    prompts = [sources.choose_caption(text, SEED, i) for i, text in enumerate(texts)]
    draw = functools.partial(
        source.draw, image=False, seed=SEED, spec=spec, report_bad=_refuse(folder)
    )
    real = RealSet(
        name="a folder, one clip a video, cut as in training",
        count=num,
        fingerprint=digest({"folder": source.fingerprint, "clips": repr(spec), "count": num}),
        video_shape=video_shape,
        example=lambda i: draw(i).example(),
        is_captioned=True,
    )
    return Sets("reference", SampleSet(prompts, seed), real)


def of_ucf101(folder: str, split: str, class_prompts: str, num: int | None, seed: int) -> Sets:
    """Returns a prompt a class, drawn as often as the class is in the split, and the split.

    Args:
        folder: the data set's, one folder of videos a class.
        split: its list of the videos, trainlist01.txt ("Biking/v_Biking_g08_c01.avi 11").
        class_prompts: file of "Biking: a man is riding a bicycle", a line for every class; "":
            TEMPLATE with the words of the class.
        num: samples; None: UCF101_VIDEOS.
        seed: of the draw, and of the noise of video 0.
    """
    names = [line.split()[0] for line in _lines(split)]
    classes = [name.partition("/")[0] for name in names]
    prompts = _class_prompts(class_prompts, sorted(set(classes)))
    paths = [Path(folder) / name for name in names]
    lacking = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if lacking:
        raise DataError(
            f"{folder}: lacks {len(lacking)} of the {len(names)} videos that {split} lists, the "
            f"first {lacking[0]}; complete the set"
        )
    drawn = np.random.default_rng(seed).choice(len(names), size=num or UCF101_VIDEOS)
    samples = SampleSet([prompts[classes[row]] for row in drawn], seed, UCF101_SIZE)
    return Sets("ucf101", samples, of_files("UCF-101, " + Path(split).stem, paths))


def _class_prompts(path: str, classes: Sequence[str]) -> dict[str, str]:
    if not path:
        words = lambda name: " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)).lower()
        return {name: TEMPLATE.format(action=words(name)) for name in classes}
    pairs = [line.partition(":") for line in _lines(path)]
    prompts = {name.strip(): text.strip() for name, _, text in pairs}
    lacking = [name for name in classes if not prompts.get(name)]
    if lacking:
        raise DataError(
            f"{path}: lacks a line '{lacking[0]}: PROMPT' and {len(lacking) - 1} more; every "
            "class of the split needs one"
        )
    return prompts


def of_msrvtt(folder: str, captions: str, num: int | None, seed: int) -> Sets:
    """Returns the captions of MSR-VTT's test videos, one sample for each, and the videos.

    Args:
        folder: the videos.
        captions: the data set's JSON ({"videos": [{"video_id", "split"}], "sentences":
            [{"video_id", "caption"}]}), or a text file with a caption a line, of all videos.
        num: samples, the first ones of a random order; None: one a caption.
        seed: of that order, and of the noise of video 0.
    """
    if Path(captions).suffix == ".json":
        names, texts = _msrvtt(captions)
        files = {path.stem: path for path in video_set.paths(folder)}
        lacking = [name for name in names if name not in files]
        if lacking:
            raise DataError(
                f"{folder}: lacks {len(lacking)} of the {len(names)} test videos of {captions}, "
                f"the first {lacking[0]}; complete the set"
            )
        paths = [files[name] for name in names]
    else:
        texts, paths = _lines(captions), video_set.paths(folder)
    num = _check_count(num, len(texts), f"captions in {captions}")
    # In a random order, so that parts of the set are like the whole.
    chosen = np.random.default_rng(seed).permutation(len(texts))[:num]
    samples = SampleSet([texts[i] for i in chosen], seed)
    return Sets("msrvtt", samples, of_files("MSR-VTT, test", paths))


def _msrvtt(path: str) -> tuple[list[str], list[str]]:
    """Returns the names of the test videos, and their captions."""
    try:
        fields = json.loads(Path(path).read_bytes())
        names = [v["video_id"] for v in fields["videos"] if v.get("split", "test") == "test"]
        test = set(names)
        captions = [s["caption"] for s in fields["sentences"] if s["video_id"] in test]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: is not MSR-VTT's list of videos and sentences ({reason(error)})"
        ) from error
    if not captions or not all(isinstance(text, str) for text in (*names, *captions)):
        raise DataError(f"{path}: has no captions of test videos")
    return names, captions


def of_files(name: str, paths: list[Path]) -> RealSet:
    """Returns the first FRAMES frames of each file at its own rate and size, all of one size."""
    size = video_set.read(paths[0], FRAMES).shape[1:3]

    def example(i: int) -> Example:
        return video_set.read(paths[i], FRAMES, size), "", 0.0, size

    facts = {"frames": FRAMES, "files": {path.name: _bytes(path) for path in paths}}
    return RealSet(
        name=f"{name}, first {FRAMES} frames",
        count=len(paths),
        fingerprint=digest(facts),
        video_shape=(FRAMES, *size),
        example=example,
        is_captioned=False,
    )


def _bytes(path: Path) -> int:
    files = path.glob("*.png") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _refuse(folder: str) -> Callable[[str, str], None]:
    """Returns what raises DataError for an unusable file: the set would not be complete."""

    def refuse(name: str, why: str) -> None:
        raise DataError(f"{folder}/{name}: {why}; mend or remove it, as a distance needs every one")

    return refuse


def _check_count(num: int | None, count: int, things: str) -> int:
    if num is not None and num > count:
        raise ConfigError(f"--num_samples={num}: there are {count} {things}")
    return count if num is None else num


def _lines(path: str) -> list[str]:
    """Returns the lines of a text file that are not blank; DataError if there are none."""
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({reason(error)})") from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise DataError(f"{path}: holds no line")
    return lines
