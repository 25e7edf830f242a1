"""What people look at: TensorBoard's own reader finds it, and a tracker gets the same."""

import functools
import sys
import types

import numpy as np
import pytest

from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.files import video
from snapvideo_jax.training import boards

TEXTS = "config", "samples/prompts"
CONFIG = {"seed": 7, "log": {"sample_prompts": ["a red circle", "a blue square"]}}


@pytest.fixture
def moving(tmp_path):
    """A GIF of 3 frames of 8 x 6 pixels."""
    video.write_gif(tmp_path / "000040.gif", np.eye(3, dtype=np.uint8)[:, None, None] * np.full(
        (3, 8, 6, 3), 200, np.uint8), 8, scale=1)  # fmt: skip
    return tmp_path / "000040.gif"


def show(opened, moving):
    """What a run shows in its life."""
    for board in opened:
        board.scalars(40, {"loss": 0.5})
        board.samples(40, moving)
        board.close()


def test_tensorboard_has_curves_moving_samples_and_texts(tmp_path, moving):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import img_mime_type_detector, tensor_util

    show(boards.open_all(tmp_path, CONFIG, None, pytest.fail), moving)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (loss,) = events.Tensors("loss")
    assert (loss.step, tensor_util.make_ndarray(loss.tensor_proto)) == (40, 0.5)
    width, height, content = events.Tensors("samples")[0].tensor_proto.string_val
    assert (width, height, content) == (b"6", b"8", moving.read_bytes())
    assert img_mime_type_detector.from_bytes(content) == "image/gif"
    assert events.SummaryMetadata("samples").plugin_data.plugin_name == "images"
    text = {name: events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in TEXTS}
    assert '"seed": 7' in text["config"]
    assert text["samples/prompts"] == "1. a red circle\n1. a blue square"


class Package(types.ModuleType):
    """A tracker that notes what it is called with."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []
        for function in ("init", "log", "finish"):
            setattr(self, function, functools.partial(self.note, function))
        self.Video = lambda path, format: ("video", path, format)

    def note(self, function, /, *arguments, **named):
        self.calls.append((function, arguments, named))


@pytest.mark.parametrize("name", boards.TRACKERS)
def test_a_tracker_gets_config_curves_and_samples(tmp_path, moving, monkeypatch, name):
    package = Package(name)
    monkeypatch.setitem(sys.modules, name, package)
    show(boards.open_all(tmp_path / "mine", CONFIG, name, pytest.fail)[1:], moving)
    (_, _, opened), *rest = package.calls
    fixed = {"project": "snapvideo_jax", "name": "mine", "config": CONFIG, "resume": "allow"}
    assert {key: opened[key] for key in fixed} == fixed
    assert ("id" in opened) == (name == "wandb")
    assert rest == [
        ("log", ({"loss": 0.5},), {"step": 40}),
        ("log", ({"samples": ("video", str(moving), "gif")},), {"step": 40}),
        ("finish", (), {}),
    ]


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(boards.importlib.util, "find_spec", lambda name: None)
    boards.check_tracker(None)
    with pytest.raises(ConfigError, match="--tracker=wandb needs .*: pip install wandb"):
        boards.check_tracker("wandb")


def test_a_board_that_fails_is_said_a_single_time_and_the_other_goes_on(
    tmp_path, moving, monkeypatch
):
    package, lines = Package("wandb"), []

    def log(values, step):
        raise OSError(28, "No space left on device")

    package.log = log
    monkeypatch.setitem(sys.modules, "wandb", package)
    show(boards.open_all(tmp_path, CONFIG, "wandb", lines.append), moving)
    assert lines == ["wandb ends here: No space left on device"]
    package.init = log
    boards.open_all(tmp_path, CONFIG, "wandb", lines.append)[1].scalars(1, {"loss": 1.0})
    assert len(lines) == 2


def test_a_folder_of_curves_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(StorageError, match="cannot make the folder .*tensorboard"):
        boards.open_all(tmp_path, CONFIG, None, print)
