"""What decides results is what this program says, not what the environment does."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from snapvideo_jax import numerics
from snapvideo_jax.errors import ConfigError

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_RANDOM_SEED_OFFSET": "3",
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_DISABLE_JIT": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
}
DRAW = """
import sys, jax, numpy as np
from launch import entry
def draw():
    from snapvideo_jax import keys, numerics
    numerics.check()
    noise = jax.random.normal(keys.streams(0, 1, ("eps",))["eps"], (64, 64))
    print(np.asarray(noise @ noise).tobytes().hex()[:400], noise.dtype)
sys.argv = ["draw"]
entry.run(draw)
"""


def test_every_setting_is_in_the_environment_of_the_test():
    assert {f"jax_{name[4:].lower()}" for name in ENVIRONMENT} == set(numerics.PINNED)


def test_the_environment_changes_no_number():
    said = []
    for more in ({}, ENVIRONMENT):
        environment = os.environ | {"JAX_PLATFORMS": "cpu"} | more
        done = subprocess.run(
            [sys.executable, "-c", DRAW], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        said.append(done.stdout)
    assert said[0] == said[1] and said[0].endswith("float32\n")


def test_a_setting_that_was_changed_later_is_refused_by_its_name():
    assert numerics.check() == numerics.PINNED
    with jax.enable_x64(True):
        jax.config.update("jax_random_seed_offset", 1)
        try:
            with pytest.raises(ConfigError, match="jax_random_seed_offset=1 changes results"):
                numerics.check()
        finally:
            jax.config.update("jax_random_seed_offset", 0)


@pytest.mark.parametrize(
    ("variable", "value", "refused"),
    [
        ("XLA_FLAGS", "--a=1 --xla_cpu_enable_fast_math=true", True),
        ("XLA_FLAGS", "--xla_cpu_enable_fast_math", True),
        ("XLA_FLAGS", "--xla_cpu_enable_fast_min_max=true", True),
        ("XLA_FLAGS", "--xla_cpu_enable_fast_math=false --xla_cpu_enable_fast_min_max=0", False),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=8", False),
        ("NVIDIA_TF32_OVERRIDE", "1", True),
        ("NVIDIA_TF32_OVERRIDE", "0", False),
    ],
)
def test_what_cannot_be_overruled_is_refused_by_its_name(monkeypatch, variable, value, refused):
    monkeypatch.setenv(variable, value)
    if not refused:
        return numerics.pin()
    with pytest.raises(ConfigError, match=f"{variable} with .* changes results"):
        numerics.pin()
