"""A cascade whose batch is more than the devices hold goes on with a smaller one."""

from unittest import mock

import jax
import numpy as np
import pytest

from snapvideo_jax import build
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.sampling import stage

PROMPTS = [f"{i}" for i in range(16)]


@pytest.fixture
def sampled(monkeypatch):
    """A function of how many videos the devices hold: (videos, batch size, sizes tried, lines)."""
    model = mock.Mock(spec=stage.Stage, trained=mock.Mock(mesh=build.counting_mesh()))

    def run(room, batch_size=16):
        sizes, lines = [], []

        def cascade(stages, prompts, seeds, batch_size, progress):
            sizes.append(batch_size)
            if batch_size > room:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9")
            return np.full((len(prompts), 1, 1, 1, 3), 7, np.uint8)

        monkeypatch.setattr(stage, "cascade", cascade)
        arguments = [model], PROMPTS, list(range(16)), batch_size, lambda things: None
        videos, fits = stage.cascade_in_memory(*arguments, log=lines.append)
        return videos, fits, sizes, lines

    return run


def test_a_batch_that_fits_is_sampled_one_time(sampled):
    videos, fits, sizes, lines = sampled(room=16)
    assert (len(videos), fits, sizes, lines) == (16, 16, [16], [])


def test_a_batch_is_cut_in_half_until_it_fits_and_all_videos_are_made(sampled):
    videos, fits, sizes, lines = sampled(room=5)
    assert (len(videos), fits, sizes) == (16, 4, [16, 8, 4])
    says = "the devices' memory does not hold 16 videos at a time; trying 8"
    assert lines[0] == says and len(lines) == 2


def test_a_video_that_does_not_fit_alone_is_one_line(sampled):
    with pytest.raises(ConfigError, match=r"^a batch of 1, the smallest [^\n]*$"):
        sampled(room=0)


def test_other_errors_and_those_of_many_processes_are_not_tried_again(sampled, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        sampled(room=5)
    monkeypatch.setattr(stage.chips, "exhausted", lambda error: False)
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        sampled(room=5)
