"""Sampling from a run's folder: same seed, same pixels, whatever is beside it in the batch."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax import build, generator
from snapvideo_jax.diffusion import sampler
from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.generator import KnownFrames
from snapvideo_jax.sampling import long_video
from snapvideo_jax.sampling.generate import generate
from snapvideo_jax.sampling.generate import request as request_of
from snapvideo_jax.sampling.long_video import Span, generate_long
from snapvideo_jax.sampling.trained import Trained, load
from tests import tiny

PROMPTS = ["a red circle moves left", "a blue square", "", "a green triangle moves up"]


@pytest.fixture(scope="module")
def trained(trained_folder):
    return load(trained_folder)


@pytest.fixture(scope="module")
def videos(trained):
    settings = build.sampler_settings(trained.config)
    return generate(trained, settings, PROMPTS, [5, 6, 7, 8], batch_size=4)


def test_samples_are_videos_of_the_size_of_the_data(videos):
    assert videos.shape == (4, 2, 16, 16, 3) and videos.dtype == np.uint8


def test_the_same_seed_gives_the_same_pixels(trained, videos):
    again = generate(trained, build.sampler_settings(trained.config), PROMPTS, [5, 6, 7, 8], 4)
    assert np.array_equal(again, videos)


def test_another_seed_gives_other_pixels(trained, videos):
    other = generate(trained, build.sampler_settings(trained.config), PROMPTS, [9, 6, 7, 8], 4)
    assert not np.array_equal(other[0], videos[0]) and np.array_equal(other[1:], videos[1:])


def test_a_sample_does_not_depend_on_its_batch(trained, videos):
    settings = build.sampler_settings(trained.config)
    swapped = generate(trained, settings, [PROMPTS[3], PROMPTS[0]], [8, 5], batch_size=4)
    assert np.array_equal(swapped, videos[[3, 0]])


def test_the_prompt_matters_where_there_is_guidance(trained, videos):
    settings = build.sampler_settings(trained.config)
    other = generate(trained, settings, ["a yellow square", *PROMPTS[1:]], [5, 6, 7, 8], 4)
    assert not np.array_equal(other[0], videos[0])


def test_every_technique_of_the_settings_changes_the_sample_and_repeats(trained, videos):
    changes = dict(solver="euler"), dict(S_churn=5.0), dict(guidance_low=0.0), dict(threshold=0.5)
    for change in changes:
        settings = dataclasses.replace(build.sampler_settings(trained.config), **change)
        other = generate(trained, settings, PROMPTS, [5, 6, 7, 8], 4)
        assert not np.array_equal(other, videos), change
    again = generate(trained, settings, PROMPTS[::-1], [8, 7, 6, 5], 4)
    assert np.array_equal(again[::-1], other)


FAST = dict(solver="dpmpp_2m", oscillate=False, guidance_sigma_max=5.0)


def test_2m_with_guidance_on_an_interval_pauses_repeats_and_keeps_known_frames(trained, picture):
    settings = build.sampler_settings(trained.config, **FAST)
    known = KnownFrames(np.stack([picture, 0 * picture], 1), np.array([True, False]))
    make = lambda prompts, seeds, **how: generate(
        trained, settings, prompts, seeds, batch_size=4, known=known, **how
    )
    led = make(PROMPTS, [5, 6, 7, 8])
    assert (led[:, 0] == picture[0]).all() and (led[:, 1].std(axis=(1, 2, 3)) > 0).all()
    assert np.array_equal(make(PROMPTS[::-1], [8, 7, 6, 5], reports=1)[::-1], led)


def conds_of(trained, **changes):
    """How many conditionals the program of a sampler has."""
    settings = build.sampler_settings(trained.config, **changes)
    request = request_of(["a red circle"], trained.text, 0.25, (16, 16))
    request["window"] = np.zeros(1, np.int32)

    def run(params, request, seeds):
        state = generator.start(trained.denoiser, settings, request, seeds)
        inputs = generator.sampler_inputs(trained.denoiser, settings, params, request, seeds)
        return sampler.sample(inputs, state)

    return str(jax.make_jaxpr(run)(trained.params, request, np.zeros(1, "i4"))).count(" cond[")


def test_only_a_part_of_the_grid_needs_a_program_with_two_ways(trained):
    top = trained.config.sampling.sigma_max
    assert conds_of(trained) == conds_of(trained, guidance_sigma_max=top) == 0
    assert conds_of(trained, guidance_sigma_max=top / 2) == 1
    assert conds_of(trained, guidance_sigma_max=top / 2, guidance=0.0) == 0


def test_evaluations_are_counted_twice_where_there_is_guidance(trained):
    """Grid 80, 5.9, 0.05 or so: Heun's calls are at 80, 5.9, 5.9, 0.05, 0.05, 2M's at three."""
    count = lambda **changes: build.sampler_settings(trained.config, **changes).num_evaluations
    levels = build.sampler_settings(trained.config).grid
    middle = dict(guidance_sigma_min=float(levels[2]), guidance_sigma_max=float(levels[1]))
    assert [count(), count(guidance=0.0), count(**middle)] == [10, 5, 7]
    fast = dict(solver="dpmpp_2m", oscillate=False)
    assert [count(**fast), count(**fast, guidance=0.0), count(**fast, **middle)] == [6, 3, 4]


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(solver="dpmpp_2m", oscillate=False, S_churn=10.0), "adds no noise on the way"),
        (dict(solver="dpmpp_2m", oscillate=True), "give oscillate=False, or another solver"),
        (
            dict(guidance_sigma_min=2.0, guidance_sigma_max=2.0),
            "guidance_sigma_min=2 must be below",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(changes, says):
    with pytest.raises(ConfigError, match=rf"^[^\n]*{says}[^\n]*$"):
        build.sampler_settings(tiny.get_config(), **changes)
    config = tiny.get_config()
    config.sampling.update(changes)
    with pytest.raises(ConfigError, match=says):
        build.check(config)


@pytest.mark.parametrize(("threshold", "inside"), [(0.0, False), (0.5, True)])
def test_it_is_the_guided_estimate_that_is_thresholded(trained, threshold, inside):
    settings = build.sampler_settings(trained.config, guidance=500.0, threshold=threshold)
    request = request_of(["a red circle"], trained.text, 0.25, (16, 16))
    request["window"] = np.zeros(1, np.int32)

    @jax.jit
    def estimate(params, request, seeds):
        state = generator.start(trained.denoiser, settings, request, seeds)
        inputs = generator.sampler_inputs(trained.denoiser, settings, params, request, seeds)
        return inputs.denoise(state.point, jnp.float32(1.0), jnp.float32(500.0), state.carry)[0]

    assert (jnp.abs(estimate(trained.params, request, np.zeros(1, "i4"))).max() <= 1) == inside


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)


def test_known_frames_come_out_as_they_went_in_and_lead_the_others(trained, videos, picture):
    settings, mask = build.sampler_settings(trained.config), np.array([True, False])
    known = KnownFrames(np.repeat(np.stack([picture, 0 * picture], 1), 4, 0), mask)
    led = generate(trained, settings, PROMPTS, [5, 6, 7, 8], 4, known=known)
    assert np.array_equal(led[:, 0], known.video[:, 0])
    assert not np.array_equal(led[:, 1], videos[:, 1])
    hidden = known._replace(video=np.repeat(np.stack([picture, picture], 1), 4, 0))
    same = generate(trained, settings, PROMPTS, [5, 6, 7, 8], 4, known=hidden)
    assert np.array_equal(same, led)  # what is not known is not read


def test_known_frames_of_one_video_are_those_of_every_prompt(trained, picture):
    settings, mask = build.sampler_settings(trained.config), np.array([True, False])
    one = KnownFrames(np.stack([picture, 0 * picture], 1), mask)
    each = one._replace(video=one.video.repeat(4, axis=0))
    made = [generate(trained, settings, PROMPTS, [5, 6, 7, 8], 4, known=k) for k in (one, each)]
    assert np.array_equal(*made)


def test_a_long_video_has_every_frame_and_keeps_those_that_are_known(trained, picture):
    settings, span = build.sampler_settings(trained.config), Span(1.0, (4.0, 8.0))
    known = KnownFrames(np.repeat(picture[None], 8, axis=1), np.arange(8) == 3)
    windows = []
    note = lambda done, of: windows.append((done, of))
    make = lambda *batch: generate_long(
        trained, settings, *batch, span=span, known=known, progress=note
    )
    long = make(PROMPTS[:2], [5, 6], 4)
    assert long.shape == (2, 8, 16, 16, 3) and windows[-1] == (len(windows), len(windows))
    assert np.array_equal(long[:, 3], known.video[[0, 0], 3])
    assert all(long[0, i].std() > 0 for i in range(8))
    assert not np.array_equal(long[0, 0], long[0, 2])  # each window draws its own noise
    assert np.array_equal(make(PROMPTS[1::-1], [6, 5], 4)[::-1], long)


def test_a_long_video_is_enlarged_in_windows_that_share_a_frame(monkeypatch):
    small = np.arange(7, dtype=np.uint8)[None, :, None, None, None] * np.ones((2, 1, 4, 4, 3), "u1")
    calls = []

    def enlarge(trained, settings, prompts, seeds, batch, low_res, known, window, **conditions):
        frames = low_res[0, :, 0, 0, 0].tolist()
        calls.append((settings.frame_rate, frames, known, window, conditions))
        return low_res.repeat(4, 2).repeat(4, 3) + np.uint8(10 * window)

    monkeypatch.setattr(long_video, "generate", enlarge)
    config = tiny.get_config()
    config.data.num_frames = 3
    config.model.fit.group = (3, 1, 2)
    denoiser = build.denoiser(config, 64, build.counting_mesh())
    model = mock.Mock(spec=Trained, denoiser=denoiser)
    settings, span = build.sampler_settings(config), Span(0.875, (4.0, 8.0))
    large = generate_long(
        model, settings, PROMPTS[:2], [5, 6], 2, span=span, low_res=small, negative="a"
    )
    assert [(rate, frames) for rate, frames, *_ in calls] == [
        (8.0, [0, 1, 2]), (8.0, [2, 3, 4]), (8.0, [4, 5, 6])
    ]  # fmt: skip
    assert calls[0][2] is None and calls[1][4] == {"negative": "a"}
    for before, (_, _, known, _, _) in zip((2, 14), calls[1:], strict=True):
        assert known.mask.tolist() == [True, False, False]
        assert (known.video[:, 0] == before).all()  # as the window before made it
    assert [call[3] for call in calls] == [0, 1, 2]  # each window draws its own noise
    assert large.shape == (2, 7, 16, 16, 3)
    assert (large[:, [1, 3, 5], 0, 0, 0] == (1, 13, 25)).all()


def test_frame_rates_share_one_program(trained):
    settings = build.sampler_settings(trained.config)
    before = build.sampler_program.cache_info().misses
    for rate in (4.0, 8.0):
        at_rate = dataclasses.replace(settings, frame_rate=rate)
        generate(trained, at_rate, PROMPTS, [5, 6, 7, 8], 4)
    assert build.sampler_program.cache_info().misses <= before + 1


def test_progress_is_reported_on_the_way_without_other_pixels_or_another_program(trained, videos):
    settings, reports = build.sampler_settings(trained.config), []
    still = dataclasses.replace(settings, frame_rate=0.0)
    program = build.sampler_program(trained.denoiser, trained.mesh, still)
    before = program.advance._cache_size()
    for parts in (16, 2, 1):
        note = lambda done, of: reports.append((done, of))
        how = {"call_progress": note, "reports": parts}
        again = generate(trained, settings, PROMPTS, [5, 6, 7, 8], 4, **how)
        assert np.array_equal(again, videos)
    assert reports == [(1, 5), (2, 5), (3, 5), (4, 5), (3, 5)]
    assert program.advance._cache_size() == before


def test_flags_replace_single_fields_of_the_settings(trained):
    settings = build.sampler_settings(trained.config, steps=7, guidance=None, frame_rate=0.0)
    assert (settings.steps, settings.guidance, settings.frame_interval) == (7, 1.0, 0.0)


def test_a_run_of_a_larger_mesh_is_sampled_on_the_devices_at_hand():
    config = tiny.get_config()
    config.mesh.update(data=4, fsdp=64)
    assert dict(build.mesh_of_run(config).shape) == dict(data=1, fsdp=8, group=1, tensor=1)
    config.mesh.update(data=4, fsdp=2)
    assert dict(build.mesh_of_run(config).shape) == dict(data=4, fsdp=2, group=1, tensor=1)


def test_only_the_ema_is_restored(trained):
    assert set(trained.params) == {"network", "text_encoder"}


def test_a_checkpoint_that_is_not_there_names_those_that_are(trained_folder):
    with pytest.raises(StorageError, match="holds no checkpoint 2; there are: 3"):
        load(trained_folder, step=2)


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(StorageError, match="holds no checkpoint; train one"):
        load(tmp_path)


def test_each_window_of_a_seed_draws_other_noise_and_the_same_one_the_same():
    streams = generator.Streams(seeds=jnp.array([3, 3, 3]), window=jnp.array([0, 1, 1]))
    first, second, again = np.asarray(streams.normal("x", (4,)))
    assert not np.isclose(first, second).any() and np.array_equal(second, again)
