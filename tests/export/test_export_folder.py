"""Exported parameters come back bit by bit on any sharding, or not at all."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from snapvideo_jax import build
from snapvideo_jax.data.text import Tokenizer, train_vocabulary
from snapvideo_jax.errors import DataError, StorageError
from snapvideo_jax.export import export_folder
from snapvideo_jax.files import safetensors
from snapvideo_jax.parallel.mesh import make_mesh
from snapvideo_jax.training import checkpoint, leaf_digests
from tests import tiny
from tests.conftest import CACHE
from tests.mutations import mutations

ROOT = Path(__file__).parent.parent.parent
CONFIG = {"seed": 3, "data": {"vocabulary": "somewhere/else.model", "num_frames": 2}}
KERNEL, BIAS, TABLE = "network/up/kernel", "network/up/bias", "table"


def spread(*axes):
    mesh = make_mesh(dict(data=2, fsdp=2, group=1, tensor=2), jax.devices())
    return NamedSharding(mesh, PartitionSpec(*axes))


@pytest.fixture(scope="module")
def params():
    """Float32 split over two axes; bfloat16 and a scalar on every device."""
    kernel = jnp.sin(jnp.arange(32.0)).reshape(8, 4)
    bias = jax.device_put(jnp.cos(jnp.arange(6.0)).astype(jnp.bfloat16), spread())
    return {
        "network": {
            "up": {"kernel": jax.device_put(kernel, spread("tensor", "fsdp")), "bias": bias},
        },
        "table": jax.device_put(jnp.float32(0.1), spread()),
    }


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocabulary.model"
    path.write_bytes(b"pieces")
    return path


@pytest.fixture
def folder(tmp_path, params, vocabulary):
    export_folder.write(tmp_path / "out", CONFIG, 7, params, vocabulary)
    return tmp_path / "out"


def abstract(params, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), params
    )


def same(tree, other):
    bits = lambda x: (x.dtype, x.shape, np.asarray(x).tobytes())
    return jax.tree.map(bits, tree) == jax.tree.map(bits, other)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_parameters_come_back_bit_by_bit_where_they_are_asked_for(folder, params):
    loaded = export_folder.load_params(folder, abstract(params))
    assert same(loaded, params)
    assert jax.tree.map(lambda x: x.sharding, loaded) == jax.tree.map(lambda x: x.sharding, params)


def test_another_sharding_gives_the_same_parameters(folder, params):
    assert same(export_folder.load_params(folder, abstract(params, spread())), params)


def test_without_a_sharding_they_lie_on_the_first_device(folder, params):
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    loaded = export_folder.load_params(folder, wanted)
    assert same(loaded, params) and loaded["table"].devices() == {jax.devices()[0]}


def test_parameters_have_their_paths_as_names(folder):
    infos = safetensors.open_file(folder / "model.safetensors")
    assert set(infos) == {KERNEL, BIAS, TABLE}
    assert infos[BIAS].dtype == jnp.bfloat16 and infos[KERNEL].shape == (8, 4)


def test_config_step_and_digests_are_beside_them(folder, params):
    assert names(folder) == {"model.safetensors", "config.json", "vocabulary.model"}
    found = export_folder.read(folder)
    assert found.step == 7 and found.digests == leaf_digests.of(params)
    assert found.config == CONFIG | {"data": {"vocabulary": "", "num_frames": 2}}
    assert (folder / "vocabulary.model").read_bytes() == b"pieces"
    assert CONFIG["data"]["vocabulary"], "the caller's config was changed"


def test_a_run_with_stored_text_states_has_no_vocabulary(tmp_path, params):
    export_folder.write(tmp_path / "out", CONFIG, 7, params, None)
    assert names(tmp_path / "out") == {"model.safetensors", "config.json"}
    assert export_folder.read(tmp_path / "out").config == CONFIG


def test_the_parameters_come_back_bit_for_bit(folder, params):
    assert same(export_folder.load_params(folder, abstract(params)), params)


@pytest.mark.parametrize(("shard_bytes", "files"), [(1, 3), (132, 2), (140, 2), (144, 1)])
def test_large_models_are_cut_into_shards(tmp_path, params, shard_bytes, files):
    """Leaves have 12 bytes (bias), 128 (kernel) and 4 (table), in this order."""
    out = tmp_path / "out"
    export_folder.write(out, CONFIG, 7, params, None, shard_bytes=shard_bytes)
    shards = sorted(path for path in out.glob("*.safetensors"))
    assert len(shards) == files
    for shard in shards:
        infos = safetensors.open_file(shard).values()
        assert len(infos) == 1 or sum(i.end - i.start for i in infos) <= shard_bytes
    assert (out / safetensors.INDEX).exists() == (files > 1)
    assert same(export_folder.load_params(out, abstract(params)), params)


def test_shards_are_named_and_indexed_as_others_do(tmp_path, params):
    export_folder.write(tmp_path / "out", CONFIG, 7, params, None, 140)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert index["metadata"] == {"total_size": 144}
    assert index["weight_map"] == {BIAS: first, KERNEL: first, TABLE: second}


def test_an_exported_folder_is_told_from_a_run(folder, tmp_path, params):
    assert export_folder.is_export(folder) and not export_folder.is_export(tmp_path)
    export_folder.write(tmp_path / "shards", CONFIG, 7, params, None, 1)
    assert export_folder.is_export(tmp_path / "shards")


def test_two_hundred_mutations_of_the_config_are_noticed_or_change_nothing(folder):
    path, before = folder / "config.json", export_folder.read(folder)
    for damaged in mutations(path.read_bytes(), 200):
        path.write_bytes(damaged)
        try:
            assert export_folder.read(folder) == before
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) < 600


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.faults)])
def test_mutated_weights_are_noticed_or_change_nothing(folder, params, count):
    path, expected = folder / "model.safetensors", abstract(params)
    for damaged in mutations(path.read_bytes(), count, seed=count):
        path.write_bytes(damaged)
        try:
            assert same(export_folder.load_params(folder, expected), params)
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) < 600


def test_the_first_format_is_read(folder):
    path, before = folder / "config.json", export_folder.read(folder)
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in entries.items() if k != "seal"} | {"format": 1}))
    assert export_folder.read(folder) == before


def test_an_empty_folder_is_filled(tmp_path, params):
    (tmp_path / "out").mkdir()
    export_folder.write(tmp_path / "out", CONFIG, 7, params, None)
    assert names(tmp_path) == {"out"} and export_folder.is_export(tmp_path / "out")


def test_what_is_there_is_never_replaced(folder, params):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(StorageError, match="out is not empty"):
        export_folder.write(folder, CONFIG, 8, params, None)
    with pytest.raises(StorageError, match="config.json is no folder"):
        export_folder.write(folder / "config.json", CONFIG, 8, params, None)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_what_fills_up_in_the_meantime_is_never_replaced(tmp_path, params, monkeypatch):
    def meanwhile(*_):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()

    monkeypatch.setattr(export_folder, "_write_params", meanwhile)
    with pytest.raises(StorageError, match="cannot write .*out: .*not empty"):
        export_folder.write(tmp_path / "out", CONFIG, 7, params, None)
    assert names(tmp_path) == {"out"} and names(tmp_path / "out") == {"mine"}


def test_a_full_disk_leaves_nothing_behind(tmp_path, params, monkeypatch):
    def full(path, *_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors, "write", full)
    with pytest.raises(StorageError, match="cannot write .*out: No space left on device"):
        export_folder.write(tmp_path / "out", CONFIG, 7, params, None)
    assert names(tmp_path) == set()


EXPORTING = """
import sys
import jax.numpy as jnp
from snapvideo_jax.export import export_folder

params = {str(k): jnp.full((1024, 1024), k) for k in range(40)}
config = {"seed": 3, "data": {"vocabulary": "", "num_frames": 2}}
print("ready", flush=True)
export_folder.write(sys.argv[1], config, 7, params, None, shard_bytes=1 << 23)
"""


@pytest.mark.faults
def test_a_kill_while_it_is_written_leaves_all_or_nothing(tmp_path):
    draw, cut = np.random.default_rng(0), 0
    for k in range(12):
        out = tmp_path / str(k) / "out"
        command = [sys.executable, "-c", EXPORTING, str(out)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while not list(out.parent.glob(".out.*.tmp")) and not out.exists():
                time.sleep(0.001)
            time.sleep(draw.uniform(0.0, 1.5))
            process.kill()
        cut += not out.exists()
        if out.exists():
            assert export_folder.read(out).step == 7
            params = {str(k): jax.ShapeDtypeStruct((1024, 1024), jnp.int32) for k in range(40)}
            loaded = export_folder.load_params(out, params)
            assert all(np.all(np.asarray(loaded[name]) == int(name)) for name in params)
        else:
            assert all(path.name.startswith(".") for path in out.parent.iterdir())
    assert 1 <= cut


@pytest.mark.parametrize("size", [8 << 10, 20 << 10])
def test_a_disk_that_is_too_small_holds_nothing_of_an_export(disk, size):
    place = disk(size)
    with pytest.raises(StorageError, match="cannot write .*: No space left on device"):
        export_folder.write(place / "out", CONFIG, 3, {"table": jnp.ones(30_000)}, None)
    assert not list(place.iterdir())


def test_a_vocabulary_that_is_gone_leaves_nothing_behind(tmp_path, params):
    with pytest.raises(DataError, match="cannot read .*gone.model"):
        export_folder.write(tmp_path / "out", CONFIG, 7, params, tmp_path / "gone.model")
    assert names(tmp_path) == set()


def other(params, **changes):
    made = abstract(params)
    return {"network": {"up": made["network"]["up"] | changes}, "table": made["table"]}


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("holds no network/up/scale;", {"scale": jax.ShapeDtypeStruct((1,), "float32")}),
        (r"is float32\(8, 4\) and must be float32\(4, 8\)", {"kernel": (4, 8)}),
        (r"is bfloat16\(6,\) and must be float32\(6,\)", {"bias": (6,)}),
    ],
)
def test_parameters_of_another_model_are_refused_unread(
    folder, params, monkeypatch, reason, changes
):
    monkeypatch.setattr(safetensors, "read", None)
    changes = {
        name: leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(leaf, "f4")
        for name, leaf in changes.items()
    }
    refuse(folder, other(params, **changes), reason)


def test_parameters_that_the_model_does_not_have_are_refused_unread(folder, params, monkeypatch):
    monkeypatch.setattr(safetensors, "read", None)
    refuse(folder, {"table": abstract(params)["table"]}, "which the model does not have")


def refuse(folder, wanted, reason):
    with pytest.raises(DataError, match=reason) as error:
        export_folder.load_params(folder, wanted)
    assert str(error.value).isprintable() and error.value.exit_code == 3


def change(path, edit):
    content = bytearray(path.read_bytes())
    path.write_bytes(edit(content) or content)


@pytest.mark.parametrize(
    ("name", "reason", "edit"),
    [
        ("model.safetensors", "announces", lambda c: c[:-1]),
        ("model.safetensors", "is a pickle", lambda c: b"\x80\x04\x95" + bytes(5) + b"x" * 99),
        ("model.safetensors", "table failed its checksum", lambda c: c.__setitem__(-2, c[-2] ^ 4)),
        ("config.json", "not valid JSON", lambda c: c[:-9]),
        ("config.json", "has format=3", lambda c: c.replace(b'"format": 2', b'"format": 3')),
        ("config.json", "has step='7'", lambda c: c.replace(b'"step": 7', b'"step": "7"')),
        ("config.json", "its digest differs", lambda c: c.replace(b'"step": 7', b'"step": 8')),
        ("config.json", "its digest differs", lambda c: c.replace(b'"table"', b'"tab1e"')),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(folder, params, name, reason, edit):
    change(folder / name, edit)
    refuse(folder, abstract(params), reason)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(folder, params, name):
    (folder / name).unlink()
    refuse(folder, abstract(params), name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of a run with one checkpoint, its EMA, which is not its parameters)."""
    workdir, config = tmp_path_factory.mktemp("run"), tiny.get_config()
    captions = build.source(config, lambda path, why: None).captions()
    train_vocabulary(captions, workdir / "vocabulary.model")
    size = Tokenizer(workdir / "vocabulary.model").vocabulary_size
    state = build.train_program(config, size).init()
    state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.params))
    saved = checkpoint.Checkpoints(workdir / "checkpoints", keep_last=1, keep_every=0)
    saved.save(3, state, {"config": json.loads(config.to_json())})
    saved.close()
    return workdir, state.ema


def launch(*flags):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(CACHE)}
    command = [sys.executable, "-m", "launch.export", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_command_exports_the_ema_of_a_run_once(run, tmp_path):
    workdir, ema = run
    out = tmp_path / "out"
    done = launch(f"--checkpoint={workdir}", "--orbax", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "parameters (EMA, float32) of step 3 in" in done.stdout
    programs = {"torch_model.py", "denoiser.stablehlo", "sampler.stablehlo"}
    parts = {"model.safetensors", "config.json", "vocabulary.model", "orbax"}
    assert names(out) == parts | programs
    assert {name.split("/")[0] for name in export_folder.read(out).files} == programs | {"orbax"}
    restored = ocp.StandardCheckpointer().restore(out / "orbax")
    assert same(restored, jax.tree.map(np.asarray, ema))
    assert same(export_folder.load_params(out, abstract(ema)), ema)
    again = launch(f"--checkpoint={workdir}", f"--out={out}")
    assert again.returncode == 5 and len(again.stderr.splitlines()) == 1
    assert again.stderr.startswith("error: ") and "is not empty" in again.stderr


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_the_bytes_come_back_rounded_to_nearest(tmp_path, params, dtype, error):
    export_folder.write(tmp_path / "out", CONFIG, 7, params, None, dtype=dtype)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    loaded = export_folder.load_params(tmp_path / "out", abstract)
    kernel, expected = loaded["network"]["up"]["kernel"], params["network"]["up"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, expected.astype(dtype).astype(jnp.float32))
    np.testing.assert_allclose(kernel, expected, rtol=error)
    assert not np.array_equal(kernel, expected)
    stored = safetensors.open_folder(tmp_path / "out")
    assert {name: str(info.dtype) for name, (_, info) in stored.items()} == {
        KERNEL: dtype,
        BIAS: "bfloat16",
        TABLE: dtype,
    }


def test_what_float16_cannot_hold_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(DataError, match="table holds numbers that float16 does not; use --dtype="):
        large = {"table": jnp.float32(1e5)}
        export_folder.write(tmp_path / "out", CONFIG, 7, large, None, dtype="float16")
    assert not list(tmp_path.iterdir())
