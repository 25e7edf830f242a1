"""The checkpoint of Orbax in an export is restored by the page's lines, without this package."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from snapvideo_jax.errors import StorageError
from snapvideo_jax.export import export_folder
from snapvideo_jax.trees import leaves_by_name
from tests.export.test_export_folder import spread

ROOT = Path(__file__).parent.parent.parent
SHOW = """
flat = {"kernel": kernel, "bias": params["network"]["stem"]["bias"], "table": params["table"]}
for name, leaf in flat.items():
    print(name, type(leaf).__name__, leaf.dtype, leaf.shape, leaf.tobytes().hex())
assert "snapvideo_jax" not in sys.modules
"""


@pytest.fixture(scope="module")
def params():
    """A kernel split over two axes, a bfloat16 and a scalar."""
    kernel = jnp.sin(jnp.arange(32.0)).reshape(8, 4)
    stem = {"kernel": jax.device_put(kernel, spread("tensor", "fsdp")), "bias": jnp.bfloat16([0.3])}
    return {"network": {"stem": stem}, "table": jax.device_put(jnp.float32(0.1), spread())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, params):
    out = tmp_path_factory.mktemp("export") / "out"
    export_folder.write(out, {"seed": 3}, 7, params, None, files={"a": b"a"}, orbax=True)
    return out


def page():
    """The lines of docs/export.md."""
    text = (ROOT / "docs" / "export.md").read_text()
    return re.search(r"^## Orbax$.*?```python\n(.*?)```", text, re.M | re.S)[1]


def test_the_lines_of_the_page_restore_it_on_one_device_without_this_package(folder, params):
    code = "import sys\n" + page().replace("/path/to/exported", str(folder)) + SHOW
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    command = [sys.executable, "-c", code]
    environment |= {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stem, table = params["network"]["stem"], np.asarray(params["table"])
    assert done.stdout.splitlines() == [
        f"kernel ndarray float32 (8, 4) {np.asarray(stem['kernel']).tobytes().hex()}",
        f"bias ndarray bfloat16 (1,) {np.asarray(stem['bias']).tobytes().hex()}",
        f"table ndarray float32 () {table.tobytes().hex()}",
    ]


def test_a_target_puts_each_where_its_sharding_says(folder, params):
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, params)
    restored = ocp.StandardCheckpointer().restore(folder / "orbax", target)
    for name, leaf in leaves_by_name(restored).items():
        expected = leaves_by_name(params)[name]
        assert leaf.sharding == expected.sharding and leaf.dtype == expected.dtype
        assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes(), name


def test_numbers_are_rounded_as_in_the_safetensors(tmp_path, params):
    export_folder.write(tmp_path / "out", {}, 7, params, None, dtype="float16", orbax=True)
    kernel = ocp.StandardCheckpointer().restore(tmp_path / "out" / "orbax")["network"]["stem"]
    expected = params["network"]["stem"]["kernel"].astype(jnp.float16)
    np.testing.assert_array_equal(kernel["kernel"], expected, strict=True)


def test_each_of_its_files_has_a_digest_in_the_config(folder):
    files = export_folder.read(folder).files
    in_folder = [path for path in (folder / "orbax").rglob("*") if path.is_file()]
    assert set(files) == {"a", *(path.relative_to(folder).as_posix() for path in in_folder)}
    for name, digest in files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_without_the_flag_there_is_none(tmp_path, params):
    export_folder.write(tmp_path / "out", {}, 7, params, None)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_a_disk_without_room_for_it_holds_nothing_of_an_export(disk):
    place = disk(200 << 10)
    noise = jax.random.normal(jax.random.key(0), (30_000,))  # 120 KB, once more for Orbax
    with pytest.raises(StorageError, match="cannot write .*out: the disk is full$"):
        export_folder.write(place / "out", {}, 3, {"table": noise}, None, orbax=True)
    assert not list(place.iterdir())
