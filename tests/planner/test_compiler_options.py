"""What the TPU's compiler takes for each chip, and over several slices; a run is refused the same.

bash tests/run.sh tests/planner/test_compiler_options.py -m slow
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from snapvideo_jax.parallel import chips
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.planner import compiler, topology

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("libtpu")]
SLICES = ("v5e:2x4", "v5p:2x2x2", "v6e:2x4")


def compiled(devices, **options):
    """The text of a gradient step of stacked kernels, each split over the chips of a slice."""
    fsdp = len(devices) // len({getattr(device, "slice_index", 0) for device in devices})
    mesh = meshes.make_mesh(dict(data=-1, fsdp=fsdp, group=1, tensor=1), devices)
    on = lambda spec, *shape: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    kernels = on(PartitionSpec(None, "fsdp"), 4, 512, 512)
    x = on(PartitionSpec(meshes.BATCH_AXES), 256, 512)

    def loss(kernels, x):
        h, _ = jax.lax.scan(lambda h, kernel: (jnp.tanh(h @ kernel), None), x, kernels)
        return jnp.mean(h**2)

    step = jax.jit(
        lambda kernels, x: kernels - 0.1 * jax.grad(loss)(kernels, x),
        out_shardings=kernels.sharding,
        compiler_options=chips.options(mesh) | options,
    )
    return compiler.compile_lowered(step.lower(kernels, x)).as_text() or ""


@pytest.mark.parametrize("name", SLICES)
def test_every_option_of_a_chip_is_one_that_its_compiler_takes(name):
    devices = topology.devices(name)
    assert chips.options(meshes.make_mesh(dict(data=-1, fsdp=1, group=1, tensor=1), devices))
    assert "all-gather" in compiled(devices)


def test_an_option_that_there_is_not_is_refused():
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        compiled(topology.devices("v5e:2x4"), xla_tpu_no_such_option="true")


def test_options_for_one_chip_are_refused_for_another():
    """So launch/pods sets no flags of its own: these are of MaxText's and MaxDiffusion's sets."""
    gathers = (
        "xla_enable_async_all_gather",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
    )
    options = dict.fromkeys(gathers, "true")
    assert compiled(topology.devices("v5e:2x4"), **options)
    for name in ("v5p:2x2x2", "v6e:2x4"):
        with pytest.raises(jax.errors.JaxRuntimeError, match="other than TPU v5e"):
            compiled(topology.devices(name), **options)


def test_an_unknown_flag_in_the_environment_ends_the_process():
    script = "from snapvideo_jax.planner import topology; topology.devices('v5e:2x4')"
    for flag, code in (("xla_tpu_enable_async_collective_merger", 0), ("xla_tpu_no_such_flag", 1)):
        environment = os.environ | {"LIBTPU_INIT_ARGS": f"--{flag}=true"}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
        assert done.returncode == code


@pytest.mark.parametrize("name", SLICES)
def test_only_a_step_over_two_slices_sends_between_them(name, monkeypatch):
    assert "send-done(" not in compiled(topology.devices(name))
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(topology.library()))
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    both = topologies.get_topology_desc(name, "tpu", num_slices=2).devices
    assert "send-done(" in compiled(both)
