"""Sampling from a run's folder: same seed, same pixels, whatever is beside it in the batch."""

import dataclasses

import jax
import numpy as np
import pytest

from snapvideo_jax import generator
from snapvideo_jax.errors import StorageError
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.sampling import generate, long_video
from tests import tiny

PROMPTS = ["a red circle moves left", "a blue square", "", "a green triangle moves up"]


@pytest.fixture(scope="module")
def trained(trained_folder):
    return generate.load(trained_folder)


@pytest.fixture(scope="module")
def videos(trained):
    plan = generate.plan_from(trained.config)
    return generate.generate(trained, plan, PROMPTS, [5, 6, 7, 8], batch_size=4)


def test_samples_are_videos_of_the_size_of_the_data(videos):
    assert videos.shape == (4, 2, 16, 16, 3) and videos.dtype == np.uint8


def test_the_same_seed_gives_the_same_pixels(trained, videos):
    again = generate.generate(trained, generate.plan_from(trained.config), PROMPTS, [5, 6, 7, 8], 4)
    assert np.array_equal(again, videos)


def test_another_seed_gives_other_pixels(trained, videos):
    other = generate.generate(trained, generate.plan_from(trained.config), PROMPTS, [9, 6, 7, 8], 4)
    assert not np.array_equal(other[0], videos[0]) and np.array_equal(other[1:], videos[1:])


def test_a_sample_does_not_depend_on_its_batch(trained, videos):
    plan = generate.plan_from(trained.config)
    swapped = generate.generate(trained, plan, [PROMPTS[3], PROMPTS[0]], [8, 5], batch_size=4)
    assert np.array_equal(swapped, videos[[3, 0]])


def test_the_prompt_matters_where_there_is_guidance(trained, videos):
    plan = generate.plan_from(trained.config)
    other = generate.generate(trained, plan, ["a yellow square", *PROMPTS[1:]], [5, 6, 7, 8], 4)
    assert not np.array_equal(other[0], videos[0])


def test_every_technique_of_the_plan_changes_the_sample_and_repeats(trained, videos):
    changes = dict(heun=False), dict(S_churn=5.0), dict(guidance_low=0.0), dict(threshold=0.5)
    for change in changes:
        plan = dataclasses.replace(generate.plan_from(trained.config), **change)
        other = generate.generate(trained, plan, PROMPTS, [5, 6, 7, 8], 4)
        assert not np.array_equal(other, videos), change
    again = generate.generate(trained, plan, PROMPTS[::-1], [8, 7, 6, 5], 4)
    assert np.array_equal(again[::-1], other)


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)


def test_known_frames_come_out_as_they_went_in_and_lead_the_others(trained, videos, picture):
    plan, mask = generate.plan_from(trained.config), np.array([True, False])
    given = generate.Given(np.repeat(np.stack([picture, 0 * picture], 1), 4, 0), mask)
    led = generate.generate(trained, plan, PROMPTS, [5, 6, 7, 8], 4, given=given)
    assert np.array_equal(led[:, 0], given.video[:, 0])
    assert not np.array_equal(led[:, 1], videos[:, 1])
    hidden = given._replace(video=np.repeat(np.stack([picture, picture], 1), 4, 0))
    same = generate.generate(trained, plan, PROMPTS, [5, 6, 7, 8], 4, given=hidden)
    assert np.array_equal(same, led)  # what is not known is not read


def test_a_long_video_has_every_frame_and_keeps_those_that_are_known(trained, picture):
    plan, span = generate.plan_from(trained.config), long_video.Span(1.0, (4.0, 8.0))
    mask = np.arange(8) == 3
    given = generate.Given(np.repeat(picture[None], 8, axis=1).repeat(2, axis=0), mask)
    windows = []
    make = lambda *batch: long_video.make(
        trained, plan, span, *batch, given, lambda done, of: windows.append((done, of))
    )
    long = make(PROMPTS[:2], [5, 6], 4)
    assert long.shape == (2, 8, 16, 16, 3) and windows[-1] == (len(windows), len(windows))
    assert np.array_equal(long[:, 3], given.video[:, 3])
    assert all(long[0, i].std() > 0 for i in range(8))
    assert not np.array_equal(long[0, 0], long[0, 2])  # each window draws its own noise
    assert np.array_equal(make(PROMPTS[1::-1], [6, 5], 4)[::-1], long)


def test_a_long_video_is_enlarged_in_windows_that_share_a_frame(trained, monkeypatch):
    small = np.arange(7, dtype=np.uint8)[None, :, None, None, None] * np.ones((2, 1, 4, 4, 3), "u1")
    calls = []

    def generate(trained, plan, prompts, seeds, batch, low_res, given, stream, **told):
        calls.append((plan.frame_rate, low_res[0, :, 0, 0, 0].tolist(), given, stream, told))
        return low_res.repeat(4, 2).repeat(4, 3) + np.uint8(10 * stream)

    monkeypatch.setattr(generate, "generate", generate)
    config = tiny.get_config()
    config.data.num_frames = 3
    asked = dataclasses.replace(trained, config=config), generate.plan_from(config)
    span = long_video.Span(0.875, (4.0, 8.0))
    large = long_video.make(*asked, span, PROMPTS[:2], [5, 6], 2, low_res=small, negative="a")
    assert [(rate, frames) for rate, frames, *_ in calls] == [
        (8.0, [0, 1, 2]), (8.0, [2, 3, 4]), (8.0, [4, 5, 6])
    ]  # fmt: skip
    assert calls[0][2] is None and calls[1][4] == {"negative": "a"}
    for before, (_, _, given, _, _) in zip((2, 14), calls[1:], strict=True):
        assert given.mask.tolist() == [True, False, False]
        assert (given.video[:, 0] == before).all()  # as the window before made it
    assert [call[3] for call in calls] == [0, 1, 2]  # each window draws its own noise
    assert large.shape == (2, 7, 16, 16, 3)
    assert (large[:, [1, 3, 5], 0, 0, 0] == (1, 13, 25)).all()


def test_frame_rates_share_one_program(trained):
    plan = generate.plan_from(trained.config)
    before = generate._on_mesh.cache_info().currsize
    for rate in (4.0, 8.0):
        at_rate = dataclasses.replace(plan, frame_rate=rate)
        generate.generate(trained, at_rate, PROMPTS, [5, 6, 7, 8], 4)
    assert generate._on_mesh.cache_info().currsize == before


def test_progress_is_told_on_the_way_without_other_pixels_or_another_program(
    trained, videos, monkeypatch
):
    mesh = meshes.make_mesh(trained.config.mesh.to_dict(), jax.devices())
    plan, told = generate.plan_from(trained.config), []
    go = generate._on_mesh(trained.denoiser, dataclasses.replace(plan, frame_rate=0.0), mesh).go
    before = go._cache_size()
    for stretches in (16, 2, 1):
        monkeypatch.setattr(generator, "STRETCHES", stretches)
        tell = lambda done, of: told.append((done, of))
        again = generate.generate(trained, plan, PROMPTS, [5, 6, 7, 8], 4, tell=tell)
        assert np.array_equal(again, videos)
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (3, 5)]
    assert go._cache_size() == before


def test_flags_replace_single_fields_of_the_plan(trained):
    plan = generate.plan_from(trained.config, steps=7, guidance=None, frame_rate=0.0)
    assert (plan.steps, plan.guidance, plan.frame_interval) == (7, 1.0, 0.0)


def test_a_run_of_a_larger_mesh_is_sampled_on_the_devices_at_hand(trained):
    config = tiny.get_config()
    config.mesh.update(data=4, fsdp=64)
    assert generate.on_devices_here(config).mesh.to_dict() == dict(
        data=1, fsdp=-1, group=1, tensor=1
    )
    config.mesh.update(data=4, fsdp=2)
    assert generate.on_devices_here(config).mesh.to_dict() == dict(
        data=4, fsdp=2, group=1, tensor=1
    )


def test_only_the_ema_is_restored(trained):
    assert set(trained.params) == {"network", "text_encoder"}


def test_a_checkpoint_that_is_not_there_names_those_that_are(trained_folder):
    with pytest.raises(StorageError, match="holds no checkpoint 2; there are: 3"):
        generate.load(trained_folder, step=2)


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(StorageError, match="holds no checkpoint; train one"):
        generate.load(tmp_path)
