"""The T5 encoder against a plain version written from its description, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.models import t5

HEADS, SIZES = (
    2,
    dict(vocabulary_size=11, channels=8, heads=2, head_channels=3, hidden=12, layers=2),
)
IDS = np.int32([[3, 7, 1, 9, 2], [5, 5, 4, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)


def bucket(distance):
    """Key minus query: 16 buckets a sign; 0..7 exact, then 8 (n >= 8 sqrt(2)^k), 15 from 128 on."""
    n = abs(distance)
    if n < 8:
        magnitude = n
    else:
        magnitude = min(15, 8 + max(k for k in range(40) if n * n >= 64 * 2**k))
    return magnitude + (16 if distance > 0 else 0)


def rms(x, p):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * p["scale"]


def attention(x, p, bias, mask):
    q, k, v = (rms(x, p["norm"]) @ p[name]["kernel"] for name in "qkv")
    out = np.zeros_like(q)
    for head in range(HEADS):
        part = slice(3 * head, 3 * head + 3)
        logits = q[:, part] @ k[:, part].T + bias[head]
        logits[:, ~mask] = -np.inf
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        out[:, part] = weights / weights.sum(axis=-1, keepdims=True) @ v[:, part]
    return x + out @ p["o"]["kernel"]


def feed_forward(x, p):
    h = rms(x, p["norm"])
    up = h @ p["up"]["kernel"]
    if "gate" in p:
        gate = h @ p["gate"]["kernel"]
        tanh = np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))
        return x + (gate * (1 + tanh) / 2 * up) @ p["down"]["kernel"]
    return x + np.maximum(up, 0) @ p["down"]["kernel"]


def encoded(params, ids, mask):
    """States of one text."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
    x = p["token_table"]["embedding"][ids]
    n = len(ids)
    bias = np.array([[p["position_bias"][bucket(k - q)] for k in range(n)] for q in range(n)])
    for i in range(SIZES["layers"]):
        x = attention(x, p[f"attention{i}"], bias.transpose(2, 0, 1), mask)
        x = feed_forward(x, p[f"feed_forward{i}"])
    return rms(x, p["final_norm"])


@pytest.fixture(scope="module", params=[True, False], ids=["v1.1", "v1.0"])
def encoder(request, random_params):
    """(compiled states from ids and mask, parameters) of a toy."""
    module = t5.T5Encoder(**SIZES, gated=request.param)
    params = random_params(module, jnp.asarray(IDS), jnp.asarray(MASK))
    variables = {"params": params}
    return jax.jit(lambda ids, mask: module.apply(variables, ids, mask)), params


@pytest.mark.parametrize("compiled", [False, True])
def test_buckets_are_those_of_the_description(compiled):
    distance = np.arange(-300, 301, dtype=np.int32)[None]
    run = jax.jit(t5.relative_position_bucket) if compiled else t5.relative_position_bucket
    expected = [bucket(int(d)) for d in distance[0]]
    np.testing.assert_array_equal(run(jnp.asarray(distance))[0], expected)
    assert set(expected) == set(range(32)) - {16}  # 16 is "zero tokens later"


def test_states_are_those_of_the_plain_version(encoder):
    run, params = encoder
    states = run(IDS, MASK)
    for i in range(len(IDS)):
        expected = encoded(params, IDS[i], MASK[i])
        np.testing.assert_allclose(states[i][MASK[i]], expected[MASK[i]], rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing_at_real_tokens(encoder):
    run, _ = encoder
    short = run(IDS[:, :3], MASK[:, :3])
    np.testing.assert_allclose(run(IDS, MASK)[1, :3], short[1], rtol=1e-5, atol=1e-5)
    other = np.where(MASK, IDS, 6).astype(np.int32)
    np.testing.assert_array_equal(run(IDS, MASK)[MASK], run(other, MASK)[MASK])


def test_states_of_a_text_do_not_depend_on_the_batch_around_it(encoder):
    run, _ = encoder
    around = np.stack([IDS[1], IDS[0] + 1]), np.stack([MASK[1], MASK[0]])
    np.testing.assert_array_equal(run(*around)[0][MASK[1]], run(IDS, MASK)[1][MASK[1]])


def test_order_matters(encoder):
    run, _ = encoder
    swapped = IDS.copy()
    swapped[0, :2] = IDS[0, 1::-1]
    moved = np.asarray(run(swapped, MASK)[0, 1::-1])
    assert np.abs(moved - run(IDS, MASK)[0, :2]).max() > 1e-3


def test_a_text_of_padding_alone_is_finite(encoder):
    run, _ = encoder
    assert np.isfinite(run(IDS, np.zeros_like(MASK))).all()


def test_only_the_gated_version_has_a_gate_and_none_has_a_bias(encoder):
    _, params = encoder
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert names == {"kernel", "scale", "embedding", "position_bias"}
    assert params["feed_forward0"]["up"]["kernel"].shape == (8, 12)
