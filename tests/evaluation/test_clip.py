"""CLIP: transformers' and open_clip's numbers through files with either's names; tokens."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation import scores
from snapvideo_jax.evaluation.features import clip, clip_names, clip_tokens
from snapvideo_jax.evaluation.features.clip_names import Sizes, Tower
from tests.evaluation import inputs, networks

GOLDEN, TOKENS = networks.golden("clip"), networks.golden("tokens")
TOY = Sizes(Tower(128, 2, 2), Tower(64, 2, 1), patch=8, side=32, tokens=300, embedding=24)
IMAGES = jnp.asarray(inputs.colors((2, 32, 32, 3), 1))
IDS = jnp.asarray(inputs.tokens(2, 300, 1))
RANKS = {(a, b): rank for a, b, rank in TOKENS["merges"]}


@pytest.fixture(scope="module")
def arrays():
    return {
        "transformers": networks.tensors(clip.CLIP(TOY), *clip.abstract_inputs(TOY))
        | {"logit_scale": np.float32(1)},
        "open_clip": {
            name: inputs.tensor(name, tuple(shape))
            for name, shape in GOLDEN["open_clip_shapes"].items()
        },
    }


def agree(loaded, golden):
    images, texts = loaded.module.apply(loaded.weights.params, IMAGES, IDS)
    networks.agree(images, golden["images"], 1e-5)
    networks.agree(texts, golden["texts"], 1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_both_towers_are_transformers(tmp_path, arrays, activation):
    path = networks.write(tmp_path / "model.safetensors", arrays["transformers"])
    loaded = clip.load(path, quick_gelu=activation == "quick_gelu")
    assert loaded.module.sizes == TOY
    agree(loaded, GOLDEN[f"transformers_{activation}"])


def test_openais_names_fused_and_transposed_are_open_clips(tmp_path, arrays):
    loaded = clip.load(networks.write(tmp_path / "w.npz", arrays["open_clip"]))
    assert loaded.module.sizes == TOY
    agree(loaded, GOLDEN["open_clip"])


def test_the_two_activations_are_told_apart(tmp_path, arrays):
    path = networks.write(tmp_path / "w.npz", arrays["transformers"])
    with pytest.raises(AssertionError):
        agree(clip.load(path, quick_gelu=False), GOLDEN["transformers_quick_gelu"])


# Radford et al. 2021: without the temperature, which no embedding needs.
@pytest.mark.parametrize(
    "sizes, count", [("B_32", 151_277_312), ("B_16", 149_620_736), ("L_14", 427_616_512)]
)
def test_the_published_sizes_have_the_published_numbers_of_parameters(sizes, count):
    sizes = getattr(clip_names, sizes)
    module, key = clip.CLIP(sizes), jax.random.key(0)
    tree = jax.eval_shape(module.init, key, *clip.abstract_inputs(sizes))
    assert sum(x.size for x in flatten_dict(tree).values()) == count


def test_frames_and_captions_go_to_clipsim(tmp_path, arrays):
    wide = arrays["transformers"] | {
        "text_model.embeddings.token_embedding.weight": inputs.tensor("x", (49408, 64))
    }
    loaded = clip.load(networks.write(tmp_path / "w.safetensors", wide))
    videos = inputs.pixels((2, 3, 36, 64, 3), 0)
    frames = clip.frame_features(loaded, videos)
    texts = clip.text_features(loaded, clip_tokens.vocabulary(RANKS), inputs.CAPTIONS[:2])
    assert frames.shape == (2, 3, 24) and texts.shape == (2, 24)
    np.testing.assert_allclose(
        frames[1, 2], clip.image_features(loaded, videos[1, 2:])[0], atol=1e-5
    )
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    expected = (unit(frames) * unit(texts)[:, None]).sum(-1).mean()
    assert scores.clipsim(frames, texts).value == pytest.approx(expected, abs=1e-6)


def test_colors_are_normalized_after_the_crop():
    gray = np.full((1, 40, 50, 3), 128, np.uint8)
    expected = (128 / 255 - np.array(clip.MEAN)) / np.array(clip.STD)
    np.testing.assert_allclose(clip.preprocess(gray, 8)[0, 4, 4], expected, rtol=1e-5)


def test_tokens_are_open_clips():
    ids = clip_tokens.vocabulary(RANKS).encode(inputs.CAPTIONS)
    for row, expected in zip(ids, TOKENS["ids"], strict=True):
        assert row[: len(expected)].tolist() == expected and not row[len(expected) :].any()


def merges(count):
    return "#version: 0.2\n" + "".join(f"{i} {i}\n" for i in range(count))


def test_a_list_of_merges_is_read_packed_or_not(tmp_path):
    (tmp_path / "merges.txt").write_text(merges(clip_tokens.MERGES))
    (tmp_path / "m.txt.gz").write_bytes(gzip.compress(merges(60_000).encode()))
    for name in ("merges.txt", "m.txt.gz"):
        vocabulary = clip_tokens.read_vocabulary(tmp_path / name)
        assert len(vocabulary.ids) == clip_tokens.FIRST
        assert vocabulary.ids["77"] == 512 + 7


@pytest.mark.parametrize("damage", ["missing", "short", "text", "packed"])
def test_a_damaged_list_of_merges_is_one_line(tmp_path, damage):
    path = tmp_path / ("m.txt.gz" if damage == "packed" else "merges.txt")
    if damage == "short":
        path.write_text(merges(100))
    if damage == "text":
        path.write_bytes(b"\xff\xfe\x00")
    if damage == "packed":
        path.write_bytes(gzip.compress(merges(10_000).encode())[:-40])
    with pytest.raises(DataError) as error:
        clip_tokens.read_vocabulary(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["no patches", "flat patches", "half a tower", "left over"])
def test_a_file_of_another_network_is_one_line(tmp_path, arrays, damage):
    parts = dict(arrays["transformers"])
    patches = "vision_model.embeddings.patch_embedding.weight"
    if damage == "no patches":
        del parts[patches]
    if damage == "flat patches":
        parts[patches] = np.ones((128, 192))
    if damage == "half a tower":
        parts = {n: a for n, a in parts.items() if "text_model.encoder.layers.1.mlp" not in n}
    if damage == "left over":
        parts["vision_model.head.weight"] = np.ones(3)
    with pytest.raises(DataError) as error:
        clip.load(networks.write(tmp_path / "w.npz", parts))
    assert "w.npz" in str(error.value) and "\n" not in str(error.value)
