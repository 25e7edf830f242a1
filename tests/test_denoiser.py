"""D from F, and latent self-conditioning, around a network of two numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.diffusion import edm

SD, SI, PAD = 0.5, 4.0, 2
RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (3, 2, 4, 6, 3), np.uint8)
BATCH = {
    "video": jnp.asarray(VIDEO),
    "frame_interval": jnp.float32([0.125, 0, 0.25]),
    "source_size": jnp.int32([[36, 64]] * 3),
    "text": jnp.asarray(RNG.standard_normal((3, 2, 5)), jnp.float32),
    "text_mask": jnp.ones((3, 2), bool),
}
LOG_SIGMA = jnp.float32([-2.0, -0.5, 1.0])
KEYS = jax.random.key(1), jax.random.key(2)


class Linear(nn.Module):
    """F = a x + b mean(latents) + c_noise + mean(text); latents + b mean(x) + mean(text).

    gain: times which the latents are returned.
    """

    gain: float = 1.0
    latent_shape = (1, 2, 3)
    dtype = jnp.bfloat16

    def looped(self):
        return self

    @nn.compact
    def __call__(self, x, c_noise, given, previous, train=False):
        a, b = (
            self.param(name, nn.initializers.constant(v), ())
            for name, v in (("a", 0.7), ("b", 0.3))
        )
        text = given.text.mean(axis=(1, 2))
        told = b * previous.mean(axis=(1, 2, 3)) + c_noise + text
        news = jnp.square(b) * x.mean(axis=(1, 2, 3, 4)) + text
        if train:
            a = a * jax.random.uniform(self.make_rng("dropout"))
        return a * x + edm.expand(told, x), self.gain * (previous + edm.expand(news, previous))


@pytest.fixture(scope="module")
def setting():
    """(denoiser, parameters, x_sigma, conditions)."""
    made = Denoiser(Linear(), None, SD, SI, PAD)
    params = made.init(jax.random.key(0), BATCH)
    x = made.encode(BATCH["video"])
    sigma = edm.expand(jnp.exp(LOG_SIGMA), x)
    eps = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), jnp.float32)
    return made, params, edm.add_noise(x, sigma, eps, SI), made.conditions(params, BATCH)


def twice(setting, params, keep, given=None, keys=KEYS):
    made, _, x_sigma, conditions = setting
    given = given or (conditions, conditions)
    return made.self_conditioned_F(params, x_sigma, LOG_SIGMA, given, jnp.array(keep), keys)


def test_encoding_pads_rows_of_zero_below_and_decoding_crops_them(setting):
    made, *_ = setting
    x = made.encode(BATCH["video"])
    assert x.shape == (3, 2, 6, 6, 3) and x.dtype == jnp.float32
    np.testing.assert_array_equal(x[:, :, 4:], 0)
    np.testing.assert_allclose(x[:, :, :4], VIDEO / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(made.decode(x), VIDEO)


def test_parameters_of_a_stored_text_have_no_encoder(setting):
    _, params, _, given = setting
    assert set(params) == {"network"} and set(params["network"]) == {"a", "b"}
    np.testing.assert_array_equal(given.text, BATCH["text"])


def test_the_encoder_trained_along_reads_the_ids():
    class Lookup(nn.Module):
        @nn.compact
        def __call__(self, ids, mask):
            return nn.Embed(9, 5, name="table")(ids) * mask[..., None]

    made = Denoiser(Linear(), Lookup(), SD, SI, PAD)
    batch = BATCH | {"text_ids": jnp.int32([[1, 2], [3, 0], [4, 0]])}
    params = made.init(jax.random.key(0), batch)
    assert set(params) == {"network", "text_encoder"}
    given = made.conditions(params, batch)
    table = params["text_encoder"]["table"]["embedding"]
    np.testing.assert_array_equal(given.text, table[batch["text_ids"]])


def test_kernels_are_cast_to_the_nearest_number_and_other_leaves_are_not(setting):
    """The float32 of random bits; 0, the smallest and the largest; NaN stays NaN."""
    bits = np.random.default_rng(0).integers(0, 2**32, 10_000, np.uint32).view(np.float32)
    leaf = jnp.concatenate([bits, jnp.float32([0, -0.0, 1e-45, -1e-39, 3.4e38, jnp.inf])])
    cast = jax.jit(setting[0].cast_kernels)({"up": {"kernel": leaf, "bias": leaf}})["up"]
    assert (cast["kernel"].dtype, cast["bias"].dtype) == (jnp.bfloat16, jnp.float32)
    wide = lambda x: np.asarray(x.astype(jnp.float32))
    np.testing.assert_array_equal(wide(cast["kernel"]), wide(leaf.astype(jnp.bfloat16)))


def test_the_network_is_given_scaled_noise_and_a_quarter_of_ln_sigma(setting):
    made, params, x_sigma, given = setting
    latents = jnp.asarray(RNG.standard_normal((3, 1, 2, 3)), jnp.float32)
    F, new = made.F(params, x_sigma, LOG_SIGMA, given, latents)
    s = np.exp(np.asarray(LOG_SIGMA, float))
    c_in = (1 / np.sqrt(SD**2 / SI**2 + s**2)).reshape(3, 1, 1, 1, 1)
    told = 0.3 * latents.mean(axis=(1, 2, 3)) + LOG_SIGMA / 4 + BATCH["text"].mean(axis=(1, 2))
    expected = 0.7 * c_in * np.asarray(x_sigma) + told.reshape(3, 1, 1, 1, 1)
    np.testing.assert_allclose(F, expected, rtol=1e-5, atol=1e-5)
    assert new.shape == latents.shape


def test_D_is_the_sum_of_skip_and_network_at_one_level(setting):
    made, params, x_sigma, given = setting
    latents, s = made.no_latents(3), 0.6
    D, new = made.D(params, x_sigma, jnp.float32(s), given, latents)
    F, expected = made.F(params, x_sigma, jnp.full(3, np.log(s), jnp.float32), given, latents)
    c_skip = SI * SD**2 / (SI * s**2 + SD**2)
    c_out = -SI * s * SD * np.sqrt(s**2 + SD**2) / (SD**2 + SI * s**2)
    np.testing.assert_allclose(D, c_skip * x_sigma + c_out * F, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(new, expected, rtol=1e-6)


def test_without_kept_latents_it_is_a_single_pass_from_zeros(setting):
    made, params, x_sigma, given = setting
    single, _ = made.F(params, x_sigma, LOG_SIGMA, given, made.no_latents(3), KEYS[1])
    np.testing.assert_array_equal(twice(setting, params, [False] * 3), single)


def test_the_first_pass_alone_has_its_blocks_in_a_loop(setting, monkeypatch):
    monkeypatch.setattr(Linear, "looped", lambda network: Linear(gain=2.0))
    kept, cut = (twice(setting, setting[1], [keep] * 3) for keep in (True, False))
    monkeypatch.undo()
    np.testing.assert_array_equal(cut, twice(setting, setting[1], [False] * 3))
    assert np.abs(kept - twice(setting, setting[1], [True] * 3)).min() > 0


def test_latents_are_kept_for_exactly_the_chosen_examples(setting):
    made, params, x_sigma, given = setting
    _, latents = made.F(params, x_sigma, LOG_SIGMA, given, made.no_latents(3), KEYS[0])
    second, _ = made.F(params, x_sigma, LOG_SIGMA, given, latents, KEYS[1])
    none, some = twice(setting, params, [False] * 3), twice(setting, params, [True, False, True])
    np.testing.assert_array_equal(some[::2], second[::2])
    np.testing.assert_array_equal(some[1], none[1])
    assert (np.asarray(some) != none).any(axis=(1, 2, 3, 4)).tolist() == [True, False, True]


def test_the_gradient_does_not_pass_through_the_first_pass(setting):
    made, params, x_sigma, given = setting
    _, latents = made.F(params, x_sigma, LOG_SIGMA, given, made.no_latents(3), KEYS[0])
    loss = lambda F: jnp.sum(jnp.square(F))
    second = lambda p: made.F(p, x_sigma, LOG_SIGMA, given, latents, KEYS[1])[0]
    got = jax.grad(lambda p: loss(twice(setting, p, [True] * 3)))(params)
    expected = jax.grad(lambda p: loss(second(p)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


def test_each_pass_has_its_own_text_and_dropout(setting):
    _, params, _, given = setting
    silent = given.drop_text(False)
    outcomes = [
        twice(setting, params, [True] * 3),
        twice(setting, params, [True] * 3, (silent, given)),
        twice(setting, params, [True] * 3, (given, silent)),
        twice(setting, params, [True] * 3, keys=KEYS[::-1]),
    ]
    assert len({np.asarray(F).tobytes() for F in outcomes}) == 4


def test_no_latents_are_zeros_of_the_networks_shape(setting):
    latents = setting[0].no_latents(2)
    assert latents.shape == (2, 1, 2, 3) and latents.dtype == jnp.float32
    assert not np.asarray(latents).any()
