"""Folders of videos: complete sets come as batches, and any fault names its file."""

import numpy as np
import pytest

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation import video_set
from snapvideo_jax.files import video
from tests.evaluation import inputs

VIDEOS = inputs.pixels((5, 6, 16, 24, 3), 0)


@pytest.fixture
def folder(tmp_path):
    for i, clip in enumerate(VIDEOS[:4]):
        video.write_npz(tmp_path / f"{i}.npz", clip, 8)
    video.write_frames(tmp_path / "4", VIDEOS[4], 8)
    (tmp_path / "report.json").write_text("{}")
    return tmp_path


def test_a_set_comes_in_the_order_of_names_and_in_batches(folder):
    paths = video_set.paths(folder, 5)
    batches = list(video_set.batches(paths, frames=4, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), VIDEOS[:, :4])


def test_the_first_n_of_a_larger_set_are_taken(folder):
    assert [path.name for path in video_set.paths(folder, 3)] == ["0.npz", "1.npz", "2.npz"]
    assert len(video_set.paths(folder)) == 5


def test_mp4_is_read(tmp_path):
    video.write_mp4(tmp_path / "a.mp4", VIDEOS[0], 8, scale=1)
    (batch,) = video_set.batches(video_set.paths(tmp_path), frames=6, batch_size=1)
    assert batch.shape == (1, 6, 16, 24, 3)


def refusal(call):
    with pytest.raises(DataError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_truncated_set_is_refused_with_its_count(folder):
    message = refusal(lambda: video_set.paths(folder, 2048))
    assert message.startswith(f"{folder}: holds 5 videos, expected 2048; a distance depends on")
    assert "is no folder" in refusal(lambda: video_set.paths(folder / "none"))


def test_a_short_a_damaged_and_another_size_of_video_name_the_file(folder):
    read = lambda frames: list(
        video_set.batches(video_set.paths(folder), frames=frames, batch_size=8)
    )
    assert "0.npz: has 6 frames, the protocol takes 16" in refusal(lambda: read(16))
    video.write_npz(folder / "3.npz", VIDEOS[3, :, :12], 8)
    message = refusal(lambda: read(6))
    assert "3.npz: is 12 x 24, the set began with 16 x 24" in message
    (folder / "2.npz").write_bytes((folder / "2.npz").read_bytes()[:100])
    assert "2.npz: is not an npz of a video" in refusal(lambda: read(6))
    np.savez(folder / "1.npz", video=np.zeros((6, 16, 24), np.uint8))
    assert "1.npz: holds uint8 (6, 16, 24)" in refusal(lambda: read(6))
