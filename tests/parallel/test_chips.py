"""The table of chips against JAX's own, and against what is known of clocks."""

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import chips
from snapvideo_jax.planner import topology

KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H200": "H200",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA A100-SXM4-80GB": "A100",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_jax_reports_is_its_chip(kind):
    assert chips.of(kind).name == KINDS[kind]


@pytest.mark.parametrize(
    "kind", ["cpu", "TPU v3", "TPU v4 lite", "NVIDIA H100 NVL", "NVIDIA A100-PCIE-40GB"]
)
def test_another_kind_is_none_and_not_the_next_best(kind):
    assert chips.of(kind) is None


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 80GB HBM3"])
def test_what_is_no_tpu_of_the_table_is_refused_in_one_line(kind):
    with pytest.raises(ConfigError, match=f"nothing is known of a {kind}; add it to .*chips.py"):
        chips.tpu(kind)


# GHz, as published: v4 (Jouppi et al. 2023), v5e and v5p (the scaling book). Of v6e and
# tpu7x we know of none: these follow from peak and units.
CLOCKS = {"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75, "tpu7x": 2.2}


def test_clocks_that_follow_from_the_peaks_are_those_of_the_chips():
    clocks = {chip.name: chip.clock / 1e9 for _, chip in chips.CHIPS if chip.arrays}
    assert clocks == pytest.approx(CLOCKS, rel=0.003)
    assert {chip.clock for _, chip in chips.CHIPS if not chip.arrays} == {0.0}


@pytest.mark.parametrize(
    ("name", "version", "cores"),
    [("v4", "V4", 2), ("v5e", "V5E", 1), ("v5p", "V5P", 2), ("v6e", "V6E", 1), ("tpu7x", "7X", 1)],
)
def test_peak_units_and_memory_are_those_of_jaxs_table(name, version, cores):
    (chip,) = (chip for _, chip in chips.CHIPS if chip.name == name)
    jaxs = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion[f"TPU_{version}"], cores)
    assert chip.peak == pytest.approx(cores * jaxs.bf16_ops_per_second, rel=0.005)
    assert chip.side == jaxs.mxu_column_size
    # Two of ours are one of 256 x 256 of JAX: by the peak, and by the compiler's cycles (test_tpu).
    assert chip.arrays == cores * jaxs.num_mxus * chip.side // 128
    assert chip.vector == cores * 4 * jaxs.num_sublanes * jaxs.num_lanes
    assert chip.vmem * 1024 < cores * jaxs.vmem_capacity_bytes
    bandwidth = cores * jaxs.mem_bw_bytes_per_second
    # JAX has 2460 GB/s for v5p; Google's page has 2765.
    assert chip.hbm == pytest.approx(bandwidth, rel=0.15 if name == "v5p" else 0.005)


def test_a_cpu_has_no_compiler_options():
    assert chips.options(Mesh(np.array(jax.devices()), ("data",))) is None


@pytest.mark.parametrize(
    ("slice", "limit"), [("v5e-4", "32768"), ("v6e-4", "98304"), ("v4-8", None)]
)
def test_the_compiler_options_of_a_tpu_set_its_fast_memory(libtpu, slice, limit):
    devices = np.array(topology.devices(slice))
    one_chip = chips.options(Mesh(devices[:1], ("data",)))
    assert one_chip == (limit and {"xla_tpu_scoped_vmem_limit_kib": limit})
    several = chips.options(Mesh(devices, ("data",)))
    assert several == (one_chip and one_chip | chips.EXCHANGES)
