"""The sampler behind a page: the pixels of launch.sample, a report for each call, and an end."""

import dataclasses
import shlex

import pytest

from snapvideo_jax.page.gallery import Gallery
from snapvideo_jax.page.maker import VideoMaker
from snapvideo_jax.sampling import stage
from tests.in_process import launch

VALUES = {"prompt": "a red circle", "seed": 5, "steps": 3, "guidance": 1.0, "frame_rate": 8.0}
CALLS = 2 * VALUES["steps"] - 1  # of Heun's method


@pytest.fixture(scope="module")
def stages(trained_folder):
    return [stage.load(str(trained_folder))]


class Stopped(Exception):
    pass


def test_the_command_of_a_video_makes_the_same_files(stages, tmp_path):
    reports = []
    maker = VideoMaker(stages, Gallery(tmp_path))
    name = maker.make(VALUES, lambda things: lambda done, of: reports.append((done, of)))
    assert reports == [(done, CALLS) for done in range(1, CALLS)]
    [video] = Gallery(tmp_path).newest()["videos"]
    assert (video["name"], video["values"]) == (name, VALUES)

    _, *flags = shlex.split(video["command"].replace("python -m ", "").replace("\\\n", ""))
    launch("sample", *flags[:-1], f"--out={tmp_path / 'again'}")
    for file in ("00000.mp4", "samples.json", "sheet.png"):
        again = (tmp_path / "again" / file).read_bytes()
        assert (tmp_path / name / file).read_bytes() == again, file


def test_what_a_report_raises_ends_the_sampling_after_that_call(stages, tmp_path):
    reports = []

    def stop(done, of):
        reports.append(done)
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        VideoMaker(stages, Gallery(tmp_path)).make(VALUES, lambda things: stop)
    assert reports == [1, 2] and list(tmp_path.iterdir()) == []


def test_what_training_never_showed_is_noted(stages, tmp_path):
    maker = VideoMaker(stages, Gallery(tmp_path))
    assert maker.notes(VALUES) == []
    assert maker.notes(VALUES | {"prompt": "a red drum", "frame_rate": 7.5}) == [
        "no caption of training has the word drum",
        "training shows 4, 8 frames per second, and not 7.5",
    ]


def test_settings_of_the_form_reach_both_stages(stages, tmp_path, monkeypatch):
    seen = []

    def cascade(stages, *arguments, **options):
        seen.extend(each.settings for each in stages)
        raise Stopped

    monkeypatch.setattr(stage, "cascade", cascade)
    values = VALUES | {"upsampler_steps": 2, "upsampler_guidance": 3.0}
    with pytest.raises(Stopped):
        VideoMaker(stages * 2, Gallery(tmp_path)).make(values, lambda things: None)
    first, second = stages[0].settings, stages[0].settings
    assert seen == [
        dataclasses.replace(first, steps=3, guidance=1.0, frame_rate=8.0),
        dataclasses.replace(second, steps=2, guidance=3.0, frame_rate=8.0),
    ]
