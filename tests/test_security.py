"""SECURITY.md: what comes from outside is never code, names no other file, and costs its size."""

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from snapvideo_jax.data import sources
from snapvideo_jax.errors import DataError
from tests.data.test_sources import CARPHONE, add, example, manifest
from tests.files.test_safetensors import ARRAYS, write

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for folder in ("snapvideo_jax", "launch", "configs")
    for path in (ROOT / folder).rglob("*.py")
)
# Modules that read data as code, and functions that run text; of the others, only some arguments.
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {
    "eval", "exec", "__import__", "os.system", "os.popen", "torch.load", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "tarfile.extractall", "zipfile.extractall",
}  # fmt: skip
ARGUMENTS = {"shell", "allow_pickle"}  # must not be anything but False


def unsafe(tree):
    """(line, what) of each import or call that could run what was read."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name.endswith((".extractall", ".unsafe_load")):
                yield node.lineno, name
            for keyword in node.keywords:
                false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ARGUMENTS and not false:
                    yield node.lineno, keyword.arg
            if name in {"np.load", "numpy.load"}:
                if not any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                    yield node.lineno, f"{name} that does not say allow_pickle=False"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_run(path):
    assert list(unsafe(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from dill import loads", "eval(x)", "exec(x)", "torch.load(f)",
        "yaml.load(f)", "subprocess.run(c, shell=True)", "subprocess.run(c, shell=s)",
        "np.load(f, allow_pickle=True)", "np.load(f)", "archive.extractall()", "os.system(c)",
    ],
)  # fmt: skip
def test_what_could_run_is_seen(line):
    assert len(list(unsafe(ast.parse(line)))) == 1


PYTHON = os.path.realpath(sys.base_prefix), os.path.realpath(sys.prefix)
OPENED, WATCHING = [], []


def watch(event, arguments):
    if WATCHING and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith(PYTHON):
            OPENED.append(path)


sys.addaudithook(watch)  # for the life of the process; it looks away outside the tests below


@pytest.fixture
def opened():
    """The files that Python opens while the test runs, but its own modules."""
    OPENED.clear()
    WATCHING.append(True)
    yield OPENED
    WATCHING.clear()


OUTSIDE = ("../secret.mp4", "/etc/passwd", "link.mp4", "folder/secret.mp4", "x/../../secret.mp4")


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_row_of_a_manifest_opens_a_file_outside_the_data_folder(tmp_path, opened, name):
    root = tmp_path / "root"
    add(root, "a.mp4", None)
    add(tmp_path, "secret.mp4", None)
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "folder").symlink_to(tmp_path)
    manifest(root, {"video": "a.mp4", "caption": ""}, {"video": name, "caption": ""})
    opened.clear()
    with pytest.raises(DataError):
        sources.open_folder(root)
    assert opened and all(path.startswith(f"{root}/") for path in opened), opened


def test_a_folder_that_is_read_opens_its_own_files_alone(tmp_path, opened):
    add(tmp_path / "root", "a.mp4", "a man talks", CARPHONE)
    example(sources.open_folder(tmp_path / "root"), 0, 0)  # what it imports is imported now
    opened.clear()
    example(sources.open_folder(tmp_path / "root"), 0, 1)
    assert all(path.startswith(f"{tmp_path}/root/") for path in opened), opened


FUZZ = """
import resource, sys, time
from pathlib import Path
from snapvideo_jax.errors import DataError
from snapvideo_jax.files import safetensors
from tests.mutations import mutations

path, count = Path(sys.argv[1]), int(sys.argv[2])
content = path.read_bytes()
in_use = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
limit = in_use + 2 * len(content) + (16 << 20)  # what Python itself takes meanwhile
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
refused = 0
for damaged in mutations(content, count, seed=count):
    path.write_bytes(damaged)
    before = time.monotonic()
    try:
        for info in safetensors.open_file(path).values():
            array = safetensors.read(path, info)
            assert array.nbytes <= len(damaged) and array.shape == info.shape
    except DataError as error:
        refused += 1
        assert "\\n" not in str(error) and len(str(error)) < 600, error
    assert time.monotonic() - before < 5
print(refused)
"""


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.faults)])
def test_mutated_safetensors_take_no_more_memory_than_their_size_and_end_in_one_line(
    tmp_path, count
):
    file = write(tmp_path / "model.safetensors", ARRAYS)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(file), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert count / 4 < int(done.stdout) < count  # some flips lie in the data, and are for digests
