"""Eight virtual CPU devices, a compilation cache outside the tree, and a toy run, for all tests."""

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Compiling is what the tests wait for; unoptimized code takes a third of the time to compile.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax  # noqa: E402
import pytest  # noqa: E402

import tests.checker  # noqa: E402, F401  by whose name jaxtyping's hook looks for it
from launch import entry  # noqa: E402

CACHE = Path(tempfile.gettempdir()) / f"snapvideo_jax-tests-{os.getuid()}"

entry.collect_seldom()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# Where most of the time goes. These files start first, so that no worker ends long after the other.
LONGEST = (
    "test_kills.py", "test_flips.py", "test_verify_resume.py",
    "test_train.py", "test_meshes_agree.py", "test_entry.py", "test_benchmark.py", "test_hosts.py",
    "test_fit.py", "test_programs.py", "test_measure.py", "test_sample.py", "test_tpu.py",
    "test_generate.py", "test_unet.py", "test_step.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Sorts the tests of the longest files to the front; all else stays as it is."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of so many bytes, and returns its folder; skips where that is not allowed."""
    places = []

    def mount(size):
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no right to mount a disk")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory, worker_id):
    """The folder of a toy run of three steps, one for all workers of a session; read it only."""
    from snapvideo_jax import train
    from tests import tiny

    own = tmp_path_factory.getbasetemp()
    session = own if worker_id == "master" else own.parent
    config = tiny.get_config()
    config.training.steps = 3
    with (session / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the worker that comes first trains
        if not (session / "run" / "checkpoints" / "3").exists():
            train.train(config, session / "run", lambda line: None)
    return session / "run"


@pytest.fixture(scope="session")
def libtpu():
    """The TPU's compiler; skips without it."""
    from snapvideo_jax.errors import ConfigError
    from snapvideo_jax.planner import topology

    try:
        topology.library()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def plans():
    """Where what a TPU's compiler said is kept from one run of the tests to the next."""
    return CACHE / "plans"
