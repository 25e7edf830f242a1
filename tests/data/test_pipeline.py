"""Global batches are a function of (seed, step): not of hosts, threads, or where a run started."""

import contextlib
import dataclasses
import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from snapvideo_jax.data import order, pipeline, shapes, text
from snapvideo_jax.errors import DataError, Stalled, StorageError

WORLD = shapes.World(
    num_frames=2,
    height=16,
    width=16,
    radius=2.8,
    shapes=("circle", "square"),
    colors=("red", "green", "blue"),
    directions=("left", "right"),
    speeds=(("slowly", 4.0), ("quickly", 8.0)),
    frame_rates=(4.0, 8.0),
)
B = 8


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "v.model"
    text.train_vocabulary(shapes.all_captions(WORLD), path)
    tokenizer = text.Tokenizer(path)
    return pipeline.FeedSpec(
        example=lambda g, image: shapes.example(WORLD, 0, g, image=image),
        encode=lambda captions: dict(
            zip(("text_ids", "text_mask"), tokenizer(captions, 8), strict=True)
        ),
        box=(slice(0, 2), slice(0, 16), slice(0, 16)),
        batch_size=B,
        images=2,
        rows=range(B),
        workers=2,
        prefetch=2,
    )


def take(spec, start, stop):
    feed = pipeline.Feed(spec, start, stop)
    batches = list(feed)
    feed.close()
    return batches


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        assert all(np.array_equal(x[name], y[name]) for name in x)


def test_batches_have_the_documented_shapes_and_types(spec):
    (batch,) = take(spec, 0, 1)
    seen = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert seen == {
        "video": ((B, 2, 16, 16, 3), "uint8"),
        "frame_interval": ((B,), "float32"),
        "source_size": ((B, 2), "int32"),
        "text_ids": ((B, 8), "int32"),
        "text_mask": ((B, 8), "bool"),
    }


def test_the_first_rows_are_images_that_stand_still(spec):
    for batch in take(spec, 0, 3):
        still = [bool((v[0] == v[1]).all()) for v in batch["video"]]
        assert still == [True] * 2 + [False] * 6
        assert ((batch["frame_interval"] == 0) == still).all()


@pytest.mark.parametrize("start", [1, 2, 3])
def test_starting_later_yields_the_same_batches(spec, start):
    assert_same(take(spec, 0, 4)[start:], take(spec, start, 4))


@pytest.mark.parametrize("rows, workers, several", [(32, 2, 16), (7, 2, 1), (9, 2, 3), (2, 8, 1)])
def test_all_threads_make_parts_of_each_batch(rows, workers, several):
    assert pipeline._rows_a_call(rows, workers) == several


def test_captions_reach_the_encoder_as_they_are(spec):
    captions, seen = ["", "zeros at the end\0\0", "日本", "a" * 1000], []
    example = lambda g, image: (np.zeros((2, 16, 16, 3), np.uint8), captions[g], 0.0, (1, 2))
    encode = lambda texts: seen.extend(texts) or {}
    changed = dataclasses.replace(
        spec, example=example, encode=encode, batch_size=4, rows=range(4), images=0
    )
    (batch,) = take(changed, 0, 1)
    assert seen == captions and batch["source_size"].tolist() == [[1, 2]] * 4


def test_threads_do_not_change_the_order(spec):
    assert_same(take(spec, 0, 3), take(dataclasses.replace(spec, workers=7), 0, 3))


@pytest.mark.parametrize("rows", [[range(4), range(4, 8)], [(0, 1, 4, 5), (2, 3, 6, 7)]])
def test_two_hosts_make_the_batches_of_one(spec, rows):
    parts = [take(dataclasses.replace(spec, rows=own), 0, 2) for own in rows]
    for whole, *halves in zip(take(spec, 0, 2), *parts, strict=True):
        for name in whole:
            for own, half in zip(rows, halves, strict=True):
                assert np.array_equal(whole[name][list(own)], half[name])


def test_a_host_cuts_videos_to_the_pixels_of_its_devices(spec):
    box = slice(0, 2), slice(8, 16), slice(4, 8)
    (whole,), (part,) = take(spec, 0, 1), take(dataclasses.replace(spec, box=box), 0, 1)
    assert np.array_equal(part["video"], whole["video"][:, :, 8:16, 4:8])
    assert_same([part | {"video": 0}], [whole | {"video": 0}])


def test_an_epoch_shows_every_video_and_every_image_once(spec):
    seen = {True: [], False: []}

    def example(g, image):
        n = 4 if image else 12
        seen[image].append(int(order.index(np.array([g]), n, 0)[0]))
        return np.zeros((2, 16, 16, 3), np.uint8), "", 0.0, (16, 16)

    take(dataclasses.replace(spec, example=example, workers=1), 0, 2)
    assert sorted(seen[True]) == list(range(4)) and sorted(seen[False]) == list(range(12))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("a.mp4: is cut"), r"^a\.mp4: is cut$"),
        (
            KeyError("x"),
            r"^row 3 of step 2 cannot be made: KeyError at test_pipeline.py:\d+: 'x'$",
        ),
        (SystemExit(1), r"^row 3 of step 2 cannot be made: SystemExit at "),
    ],
)
def test_what_a_thread_raises_ends_the_feed_where_its_batch_is_due(spec, error, line):
    def example(g, image):
        if not image and g == 7:  # the second video of step 2: row 3
            raise error
        return spec.example(g, image)

    feed = pipeline.Feed(dataclasses.replace(spec, example=example), 0, 9)
    with contextlib.closing(feed):
        next(feed)
        for _ in range(2):
            with pytest.raises(DataError, match=line):
                next(feed)


def test_data_out_of_reach_end_the_feed_as_an_error_of_storage(spec):
    def example(g, image):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    feed = pipeline.Feed(dataclasses.replace(spec, example=example), 0, 9)
    with contextlib.closing(feed), pytest.raises(StorageError, match="of step 1 .* is mounted"):
        next(feed)


def test_what_is_raised_for_captions_or_shapes_ends_the_feed_in_one_line(spec):
    def encode(captions):
        raise ValueError("no\nvocabulary")

    small = lambda g, image: (np.zeros((1, 2, 2, 3), np.uint8), "", 0.0, (2, 2))
    for part in ({"encode": encode}, {"example": small}):
        feed = pipeline.Feed(dataclasses.replace(spec, **part), 0, 9)
        with contextlib.closing(feed), pytest.raises(DataError, match="cannot be made") as caught:
            next(feed)
        assert "\n" not in str(caught.value)


def test_input_that_stalls_is_named_with_the_stacks_of_all_threads(spec, capfd):
    ends = threading.Event()

    def example(g, image):
        if not image and g == 7:
            ends.wait(60)
        return spec.example(g, image)

    late = dataclasses.replace(spec, example=example, stall_seconds=1.0)
    feed = pipeline.Feed(late, 0, 9)
    next(feed)
    with pytest.raises(Stalled, match=r"^the input stalled at step 2: .*makes row 3 of step 2$"):
        next(feed)
    assert "in example" in capfd.readouterr().err
    ends.set()
    feed.close()


ENDS = """
import numpy as np
from snapvideo_jax.data import pipeline
spec = pipeline.FeedSpec(
    example=lambda g, image: (np.zeros((2, 16, 16, 3), np.uint8), "", 0.0, (16, 16)),
    encode=lambda captions: {}, box=(slice(0, 2), slice(0, 16), slice(0, 16)),
    batch_size=4, images=0, rows=range(4), workers=2, prefetch=2)
feed = pipeline.Feed(spec, 0, 10**9)
next(feed)
raise SystemExit(7)
"""


def test_a_process_that_ends_with_a_live_feed_does_not_hang():
    done = subprocess.run([sys.executable, "-c", ENDS], timeout=60, capture_output=True)
    assert done.returncode == 7, done.stderr.decode()
