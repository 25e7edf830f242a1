"""Checkpoints of Hugging Face and T5X, written here at toy size, come back leaf for leaf."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from snapvideo_jax.errors import DataError
from snapvideo_jax.files import safetensors, t5_config
from snapvideo_jax.files.t5_config import T5Config
from snapvideo_jax.files.t5_weights import open_weights
from snapvideo_jax.sampling import prompt_encoder

GOLDEN = Path(__file__).parent.parent / "golden" / "t5"
V, E, A, D, F, LAYERS = 16, 8, 2, 3, 24, 2
IDS = np.int32([[3, 7, 1, 9, 2, 1], [5, 5, 4, 1, 0, 0]])
MASK = IDS != 0


def config(gated):
    return T5Config(
        vocabulary_size=V,
        channels=E,
        heads=A,
        head_channels=D,
        hidden=F,
        layers=LAYERS,
        gated=gated,
    )


def hugging_face(gated, dtype=np.float32):
    """Returns name -> tensor of an encoder and a decoder, with transformers' names and layout."""
    shapes = {
        "shared.weight": (V, E),
        "encoder.final_layer_norm.weight": (E,),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, A),
        "decoder.final_layer_norm.weight": (E,),
        "lm_head.weight": (V, E),
    }
    for i in range(LAYERS):
        attention, dense = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        shapes |= {f"{attention}.SelfAttention.{x}.weight": (A * D, E) for x in "qkv"}
        shapes |= {f"{attention}.SelfAttention.o.weight": (E, A * D)}
        ups = ("wi_0", "wi_1") if gated else ("wi",)
        shapes |= {f"{dense}.DenseReluDense.{x}.weight": (F, E) for x in ups}
        shapes |= {f"{dense}.DenseReluDense.wo.weight": (E, F)}
        shapes |= {f"{attention}.layer_norm.weight": (E,), f"{dense}.layer_norm.weight": (E,)}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(s).astype(dtype) for name, s in shapes.items()}


def expected(tensors, gated):
    """Returns the tensors of `hugging_face` as parameters of T5Encoder."""
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    params = {
        "token_table/embedding": tensors["shared.weight"],
        "position_bias": tensors[bias],
        "final_norm/scale": tensors["encoder.final_layer_norm.weight"],
    }
    ups = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    for i in range(LAYERS):
        attention, dense = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        params[f"attention{i}/norm/scale"] = tensors[f"{attention}.layer_norm.weight"]
        params[f"feed_forward{i}/norm/scale"] = tensors[f"{dense}.layer_norm.weight"]
        for x in "qkvo":
            params[f"attention{i}/{x}/kernel"] = tensors[f"{attention}.SelfAttention.{x}.weight"].T
        for ours, theirs in (ups | {"down": "wo"}).items():
            kernel = tensors[f"{dense}.DenseReluDense.{theirs}.weight"].T
            params[f"feed_forward{i}/{ours}/kernel"] = kernel
    return params


def t5x(params):
    """Returns parameters as T5X's tree, with a decoder beside them and a step above."""
    names = {"q": "query", "k": "key", "v": "value", "o": "out"}
    ups = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
    if "feed_forward0/gate/kernel" not in params:
        ups = {"up": "wi", "down": "wo"}
    encoder = {
        "relpos_bias": {"rel_embedding": params["position_bias"].T},
        "encoder_norm": {"scale": params["final_norm/scale"]},
    }
    for i in range(LAYERS):
        attention = {names[x]: {"kernel": params[f"attention{i}/{x}/kernel"]} for x in names}
        mlp = {ups[x]: {"kernel": params[f"feed_forward{i}/{x}/kernel"]} for x in ups}
        encoder[f"layers_{i}"] = {
            "attention": attention,
            "mlp": mlp,
            "pre_attention_layer_norm": {"scale": params[f"attention{i}/norm/scale"]},
            "pre_mlp_layer_norm": {"scale": params[f"feed_forward{i}/norm/scale"]},
        }
    table = {"embedding": params["token_table/embedding"]}
    target = {"encoder": encoder, "token_embedder": table, "decoder": {"x": np.ones(3)}}
    return {"target": target, "state": {"step": np.int32(7)}}


def save(path, tensors):
    header = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    safetensors.write(path, header, tensors.__getitem__)


def save_config(folder, gated, **changes):
    fields = {
        "model_type": "t5",
        "vocab_size": V,
        "d_model": E,
        "num_heads": A,
        "d_kv": D,
        "d_ff": F,
        "num_layers": LAYERS,
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
    }
    if gated:  # version 1.0 was published without the field
        fields["feed_forward_proj"] = "gated-gelu"
    (folder / "config.json").write_text(json.dumps(fields | changes))


def save_sharded(folder, tensors):
    """Saves two files, each of every other tensor, and their index."""
    places = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(tensors)}
    for name in set(places.values()):
        save(folder / name, {n: x for n, x in tensors.items() if places[n] == name})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def assert_equal(loaded, params):
    leaves = flatten_dict(loaded, sep="/")
    assert leaves.keys() == params.keys()
    for name, leaf in leaves.items():
        assert leaf.dtype == params[name].dtype, name
        np.testing.assert_array_equal(np.asarray(leaf), params[name], err_msg=name)


@pytest.mark.parametrize("gated", [True, False], ids=["v1.1", "v1.0"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_file_comes_back_leaf_for_leaf(tmp_path, gated, dtype):
    tensors = hugging_face(gated, dtype)
    save(tmp_path / "model.safetensors", tensors)
    save_config(tmp_path, gated)
    weights = open_weights(tmp_path)
    assert weights.config == config(gated)
    assert_equal(weights.load(), expected(tensors, gated))


def test_files_with_an_index_come_back_leaf_for_leaf(tmp_path):
    tensors = hugging_face(True, ml_dtypes.bfloat16)
    save_sharded(tmp_path, tensors)
    save_config(tmp_path, True)
    assert_equal(open_weights(tmp_path).load(), expected(tensors, True))


def test_the_token_table_may_bear_its_other_name(tmp_path):
    tensors = hugging_face(False)
    renamed = dict(tensors)
    renamed["encoder.embed_tokens.weight"] = renamed.pop("shared.weight")
    save(tmp_path / "model.safetensors", renamed)
    save_config(tmp_path, False)
    assert_equal(open_weights(tmp_path).load(), expected(tensors, False))


@pytest.mark.parametrize("gated", [True, False], ids=["v1.1", "v1.0"])
def test_a_tree_of_t5x_comes_back_leaf_for_leaf(tmp_path, gated):
    params = expected(hugging_face(gated), gated)
    ocp.PyTreeCheckpointer().save(tmp_path / "c", t5x(params))
    weights = open_weights(tmp_path / "c")
    assert weights.config == config(gated)
    assert_equal(weights.load(), params)


def sharded_abstract(weights):
    """Returns each leaf in bfloat16, its last axis split over all devices where it divides."""
    mesh = Mesh(np.array(jax.devices()), ("x",))

    def place(leaf):
        split = leaf.shape[-1] % mesh.size == 0
        spec = PartitionSpec(*[None] * (len(leaf.shape) - 1), "x" if split else None)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, weights.abstract())


@pytest.mark.parametrize("form", ["Hugging Face", "T5X"])
def test_each_device_holds_its_part_in_the_dtype_of_the_request(tmp_path, form):
    tensors = hugging_face(True)
    params = expected(tensors, True)
    if form == "T5X":
        ocp.PyTreeCheckpointer().save(tmp_path / "c", t5x(params))
    else:
        (tmp_path / "c").mkdir()
        save(tmp_path / "c" / "model.safetensors", tensors)
        save_config(tmp_path / "c", True)
    weights = open_weights(tmp_path / "c")
    abstract = sharded_abstract(weights)
    loaded = weights.load(abstract)
    assert_equal(loaded, {n: x.astype(ml_dtypes.bfloat16) for n, x in params.items()})
    assert jax.tree.all(jax.tree.map(lambda x, a: x.sharding == a.sharding, loaded, abstract))
    up = loaded["feed_forward0"]["up"]["kernel"]
    assert up.addressable_shards[0].data.shape == (E, F // jax.device_count())


def test_a_part_is_read_without_the_rest(tmp_path, monkeypatch):
    save(tmp_path / "model.safetensors", hugging_face(True))
    save_config(tmp_path, True)
    weights, largest, read = open_weights(tmp_path), [], safetensors.read
    monkeypatch.setattr(safetensors, "read", lambda *a: largest.append(read(*a)) or largest[-1])
    weights.load(sharded_abstract(weights))
    assert max(array.size for array in largest) < F * E


# What can be wrong with a folder of Hugging Face -> what the one line must say.
def without(tensors, name):
    return {n: x for n, x in tensors.items() if n != name}


Q = "encoder.block.1.layer.0.SelfAttention.q.weight"
WRONG_TENSORS = {
    rf"found no tensor {Q}, expected for a gated encoder of 2 layers": lambda t: without(t, Q),
    r"found the tensor 'encoder.block.2.x', expected none": lambda t: (
        t | {"encoder.block.2.x": t[Q]}
    ),
    rf"tensor {Q} is float32 \(8, 6\), expected float32, bfloat16 or float16 \(6, 8\)": lambda t: (
        t | {Q: t[Q].T}
    ),
    rf"tensor {Q} is float64 \(6, 8\), expected float32": lambda t: t | {Q: t[Q].astype(float)},
    rf"tensor {Q} is int32 \(6, 8\), expected float32": lambda t: t | {Q: t[Q].astype(np.int32)},
}
WRONG_CONFIGS = {
    r"model_type is 'umt5', expected 't5'": dict(model_type="umt5"),
    r"layer_norm_epsilon is 1e-05, expected 1e-06": dict(layer_norm_epsilon=1e-5),
    r"relative_attention_max_distance is 64, expected 128": dict(
        relative_attention_max_distance=64
    ),
    r"d_ff is '24', expected a whole number": dict(d_ff="24"),
    r"d_model is 0, expected a whole number": dict(d_model=0),
    r"num_heads is True, expected a whole number": dict(num_heads=True),
    r"d_kv is 1152921504606846976, expected a whole number": dict(d_kv=2**60),
    r"feed_forward_proj is 'gated-silu', expected one of relu, gated-gelu": dict(
        feed_forward_proj="gated-silu"
    ),
    r"feed_forward_proj is '\[\]', expected": dict(feed_forward_proj=[]),
    r"found no tensor \S+wi.weight, expected for a ReLU encoder": dict(feed_forward_proj="relu"),
    r"found no tensor encoder.block.2\S+, expected for a gated encoder of 1000000 layers": dict(
        num_layers=1_000_000
    ),
    r"found the tensor 'encoder.block.1\S+, expected none": dict(num_layers=1),
    r"tensor \S+ is float32 \(8, 24\), expected float32, bfloat16 or float16 \(8, 25\)": dict(
        d_ff=25
    ),
}


def refused(folder, match):
    with pytest.raises(DataError, match=match) as error:
        open_weights(folder).load()
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("match", WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_named(tmp_path, match):
    save(tmp_path / "model.safetensors", WRONG_TENSORS[match](hugging_face(True)))
    save_config(tmp_path, True)
    refused(tmp_path, match)


@pytest.mark.parametrize("match", WRONG_CONFIGS)
def test_configs_that_do_not_fit_are_named(tmp_path, match):
    save(tmp_path / "model.safetensors", hugging_face(True))
    save_config(tmp_path, True, **WRONG_CONFIGS[match])
    refused(tmp_path, match)


def first_shard(folder):
    return folder / "model-00001-of-00002.safetensors"


def cut(folder):
    first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:-8])


def forge_header(folder):
    first_shard(folder).write_bytes((2**40).to_bytes(8, "little") + b"{}")


def pickled(folder):
    first_shard(folder).write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.")


def lose(folder):
    first_shard(folder).unlink()


def rename_in_index(name):
    def change(folder):
        index = folder / "model.safetensors.index.json"
        index.write_text(index.read_text().replace(first_shard(folder).name, name))

    return change


def double(folder):
    both = hugging_face(True)
    save(first_shard(folder), both)


def twice_in_index(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}')


def no_map(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')


def nest(folder):
    (folder / "config.json").write_text("[" * 100_000)


def no_config(folder):
    (folder / "config.json").unlink()


def poison(folder):
    tensors = hugging_face(True)
    tensors[Q][3, 3] = np.nan
    save_sharded(folder, tensors)


DAMAGE = {
    "it has .* bytes, its header announces": cut,
    "its header claims 1099511627776 bytes": forge_header,
    "it is a pickle, which is never loaded": pickled,
    "cannot read the weights .*No such file": lose,
    "names the file '../x.safetensors'": rename_in_index("../x.safetensors"),
    "names the file '/x.safetensors'": rename_in_index("/x.safetensors"),
    "names the file 'pytorch_model.bin'": rename_in_index("pytorch_model.bin"),
    "it holds '.*', not placed there by": double,
    "is not valid JSON .'a' stands twice": twice_in_index,
    "has no weight_map": no_map,
    "config.json: cannot be read: No such file": no_config,
    "config.json: is not valid JSON": nest,
    "attention1/q/kernel has numbers that are not finite": poison,
}


@pytest.mark.parametrize("match", DAMAGE)
def test_damaged_folders_are_refused(tmp_path, match):
    save_sharded(tmp_path, hugging_face(True))
    save_config(tmp_path, True)
    DAMAGE[match](tmp_path)
    refused(tmp_path, match)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.ckpt"])
def test_pickles_are_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"never read")
    save_config(tmp_path, True)
    refused(tmp_path, f"{name}: is a pickle, which is never loaded; expected model.safetensors")
    refused(tmp_path / name, f"{name}: is a pickle, which is never loaded")


def test_other_folders_are_refused(tmp_path):
    refused(tmp_path, "holds neither model.safetensors nor")
    refused(tmp_path / "missing", "holds neither model.safetensors nor")


def test_t5x_trees_that_do_not_fit_are_refused(tmp_path):
    tree = t5x(expected(hugging_face(True), True))
    del tree["target"]["encoder"]["layers_1"]["mlp"]["wo"]
    ocp.PyTreeCheckpointer().save(tmp_path / "missing", tree)
    refused(tmp_path / "missing", "found no tensor encoder/layers_1/mlp/wo/kernel")
    del tree["target"]["encoder"]["relpos_bias"]
    ocp.PyTreeCheckpointer().save(tmp_path / "no_bias", tree)
    refused(tmp_path / "no_bias", "tensor encoder/relpos_bias/rel_embedding is None, expected")


def test_a_damaged_t5x_folder_is_refused(tmp_path):
    folder = tmp_path / "c"
    ocp.PyTreeCheckpointer().save(folder, t5x(expected(hugging_face(True), True)))
    for file in (folder / "d").glob("*"):
        file.write_bytes(file.read_bytes()[:-9])
    refused(folder, "Orbax cannot read it")
    (folder / "_METADATA").write_text("{")
    refused(folder, "Orbax cannot read it")


def test_the_tree_of_another_encoder_is_refused(tmp_path):
    save(tmp_path / "model.safetensors", hugging_face(True))
    save_config(tmp_path, True)
    with pytest.raises(ValueError, match="is not that of"):
        open_weights(tmp_path).load({"position_bias": jax.ShapeDtypeStruct((1, 1), jnp.float32)})


@pytest.mark.parametrize("version", ["v1_0", "v1_1"])
def test_states_are_those_of_transformers(version):
    """The golden weights and states come from transformers: tests/golden/t5/make.py."""
    golden = np.load(GOLDEN / version / "states.npz")
    ids, mask, theirs = (golden[name] for name in ("ids", "mask", "states"))
    weights = open_weights(GOLDEN / version)
    module = prompt_encoder.module(weights.config, jnp.float32)
    ours = jax.jit(module.apply)({"params": weights.load()}, ids, mask)
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)
    assert np.abs(theirs[mask]).mean() > 0.1


@pytest.mark.parametrize("gated", [False, True])
def test_the_shapes_are_those_that_the_encoder_makes(gated):
    config = T5Config(
        vocabulary_size=50, channels=12, heads=2, head_channels=8, hidden=20, layers=3, gated=gated
    )
    ids, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    module = prompt_encoder.module(config, jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), ids, mask)["params"]
    shapes = {"/".join(path): leaf.shape for path, leaf in flatten_dict(params).items()}
    assert t5_config.shapes(config) == shapes
