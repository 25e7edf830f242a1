"""The folder of a page's videos: what a restart finds, what a stop leaves, and the commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from snapvideo_jax.errors import StorageError
from snapvideo_jax.page import form, gallery
from snapvideo_jax.page.gallery import Gallery
from tests.page import served
from tests.page.served import VALUES, settings

ROOT = Path(__file__).parent.parent.parent
FRAMES = np.zeros((1, 16, 16, 3), np.uint8)
SECOND = {"checkpoint": "/models/up", "checkpoint_step": 2600, "text_encoder": "abc"}
SECOND |= {"steps": 16, "guidance": 0.0, "frame_rate": 8.0}


def add(folder, **changes):
    """Adds a video with other settings, as a page does; returns its name."""
    return Gallery(folder).add("a red circle", 7, FRAMES, settings(VALUES, **changes))


def test_videos_are_there_after_a_restart_the_newest_first(tmp_path):
    with served.page(tmp_path) as client:
        for prompt in ("one", "two", "three"):
            client.video(prompt=prompt)
    with served.page(tmp_path) as client:
        client.video(prompt="four")
        _, content = client.get("/api/videos")
        prompts = [video["values"]["prompt"] for video in content["videos"]]
        assert prompts == ["four", "three", "two", "one"] and content["older"] is None
        for video in content["videos"]:
            file = (tmp_path / video["name"] / "00000.mp4").read_bytes()
            assert client.request("GET", f"/videos/{video['name']}.mp4")[2] == file
            assert video["settings"]["samples"][0]["prompt"] == video["values"]["prompt"]


def test_a_long_gallery_comes_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "AT_A_TIME", 2)
    names = [add(tmp_path) for _ in range(5)]
    with served.page(tmp_path) as client:
        listed, before = [], ""
        for _ in range(3):
            _, content = client.get(f"/api/videos{before and f'?before={before}'}")
            assert len(content["videos"]) <= 2
            listed += [video["name"] for video in content["videos"]]
            before = content["older"]
        assert listed == names[::-1] and before is None
        for bad in ("x", "-1", "", "1&before=2", "9" * 5000):
            assert client.get(f"/api/videos?before={bad}")[0] in (200, 400)
        assert client.get("/api/videos?before=x")[0] == 400


SAMPLE = {"index": 0, "prompt": "a", "seed": 1, "digest": ""}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        settings(VALUES),
        settings(VALUES, samples=3),
        settings(VALUES, samples=[SAMPLE, SAMPLE]),
        settings(VALUES, samples=[{"index": 0}]),
        settings(VALUES, samples=[SAMPLE], steps="x"),
        settings(VALUES, samples=[SAMPLE], upsampler=3),
        settings(VALUES, samples=[SAMPLE], upsampler={}),
    ],
)
def test_what_is_no_video_of_a_page_is_left_out(tmp_path, content):
    add(tmp_path)
    (tmp_path / "00007").mkdir()
    (tmp_path / "00008").mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "00007" / "samples.json").write_text(text)
    (tmp_path / "holiday").mkdir()
    assert [video["name"] for video in Gallery(tmp_path).newest()["videos"]] == ["00000"]
    assert add(tmp_path) == "00009"


def test_a_video_that_was_not_finished_is_not_shown_and_its_remains_go(tmp_path):
    remains = tmp_path / ".unfinished"
    remains.mkdir()
    (remains / "00000.mp4").write_bytes(b"half")
    (remains / ".00000.mp4.7.tmp").write_bytes(b"half")  # of a write that was killed
    (remains / "samples.jsonl").write_text('{"settings": {"steps": 9}}\n{"file"')
    assert Gallery(tmp_path).newest() == {"videos": [], "older": None}
    assert add(tmp_path) == "00000" and not remains.exists()
    assert sorted(os.listdir(tmp_path / "00000")) == ["00000.mp4", "samples.json", "sheet.png"]


def test_a_link_does_not_lead_out_of_the_folder(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    add(outside)
    (inside / "00000").symlink_to(outside / "00000")
    (inside / "00001").mkdir()
    (inside / "00001" / "00000.mp4").symlink_to("/etc/passwd")
    with served.page(inside) as client:
        for name in ("00000", "00001"):
            assert client.request("GET", f"/videos/{name}.mp4")[0] == 404


def test_a_full_disk_is_one_line(disk):
    folder = disk(16 << 10)
    with pytest.raises(StorageError, match="^cannot write .*: No space left on device$"):
        for _ in range(9):
            add(folder)
    assert all(video["name"] for video in Gallery(folder).newest()["videos"])


PROMPT = 'a "red" circle\'s $HOME `ls` \\ ! -- *'


def flags_of(command):
    """The flags of a command, as the shell splits it."""
    program = "import sys, json; print(json.dumps(sys.argv[1:]))"
    shell = command.replace("python -m launch.sample", f"{sys.executable} -c '{program}'")
    words = subprocess.run(["bash", "-c", shell], capture_output=True, check=True).stdout
    return dict(word.removeprefix("--").split("=", 1) for word in json.loads(words))


def test_a_command_holds_every_setting_whatever_the_prompt(tmp_path):
    Gallery(tmp_path).add(PROMPT, 7, FRAMES, settings(VALUES, upsampler=SECOND))
    [video] = Gallery(tmp_path, {"abc": "/t5"}).newest()["videos"]
    assert flags_of(video["command"]) == {
        "checkpoint": "/models/shapes", "step": "9000", "upsampler": "/models/up",
        "upsampler_step": "2600", "t5": "/t5", "prompt": PROMPT, "seed": "7", "steps": "3",
        "guidance": "1.5", "frame_rate": "8.0", "upsampler_steps": "16",
        "upsampler_guidance": "0.0", "out": "samples",
    }  # fmt: skip


def test_a_model_of_another_text_encoder_gets_no_t5_and_a_near_folder_a_short_name(tmp_path):
    add(tmp_path, checkpoint=str(Path.cwd() / "models" / "shapes"))
    [video] = Gallery(tmp_path, {"xyz": "/t5"}).newest()["videos"]
    flags = flags_of(video["command"])
    assert flags["checkpoint"] == "models/shapes" and not {"t5", "upsampler"} & set(flags)


def test_the_fields_of_the_form_are_those_of_the_stages():
    first, second = settings(VALUES), SECOND | {"frame_rate": 2.0}
    values = form.of_stages([first, second])
    assert values == {
        "steps": 3, "guidance": 1.5, "frame_rate": 8.0, "upsampler_steps": 16,
        "upsampler_guidance": 0.0,
    }  # fmt: skip
    assert form.by_stage(values) == [
        {"steps": 3, "guidance": 1.5, "frame_rate": 8.0},
        {"steps": 16, "guidance": 0.0, "frame_rate": 8.0},  # that of the first stage's videos
    ]
    assert form.by_stage(form.of_stages([first])) == form.by_stage(values)[:1]


def test_what_is_installed_holds_the_page(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build", f"--build-base={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    installed = tmp_path / "lib" / "snapvideo_jax" / "page" / "static"
    there = ROOT / "snapvideo_jax" / "page" / "static"
    assert sorted(os.listdir(installed)) == sorted(os.listdir(there))
