"""The layout is the architecture: who may import whom, and what runs without tensorflow."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "snapvideo_jax"
ANYONE = {"errors", "storage"}

# room (a folder or a file of the package) -> the rooms it may use
MAY_IMPORT = {
    "errors": set(),
    "storage": set(),
    "weights_file": set(),
    "diffusion": set(),
    "models": {"weights_file"},
    "data": set(),
    "denoiser": {"diffusion", "models"},
    "parallel": {"denoiser", "diffusion", "models"},
    "training": {"denoiser", "diffusion", "models", "parallel"},
    "video_io": set(),
    "evaluation": {"data"},
    "benchmark": {"build", "parallel"},
    "build": {"data", "denoiser", "models", "parallel", "training"},
    "checks": {"build", "data"},
    "export": {"parallel", "training", "weights_file"},
    "embed": {"build", "data", "models", "parallel", "training"},
    "generator": {"denoiser", "diffusion", "models", "training"},
    "sample": {"build", "embed", "export", "generator", "parallel", "training", "video_io"}
    | {"denoiser", "diffusion"},
    "samples": {"build", "sample", "video_io"},
    "long_video": {"sample", "diffusion"},
}
# The loop stands above build and sample: the only place of effects.
EXCEPTIONS = {
    "benchmark/scaling.py": {"build", "data", "denoiser", "diffusion", "parallel"},
    "parallel/plan.py": {"build", "parallel"},
    "parallel/programs.py": {"build", "generator", "sample", "parallel"},
    "parallel/search.py": {"build", "models", "parallel"},
    "training/loop.py": {
        "build", "checks", "sample", "data", "parallel", "training", "denoiser",
    }
}  # fmt: skip
ONLY_IN = {
    "tensorflow": {"data/pipeline.py"},
    "clu": {"training/telemetry.py", "training/loop.py"},
    "flax": {"models", "denoiser", "training/state.py", "parallel/rules.py"},
    "ml_collections": {"checks.py", "sample.py"},
    "optax": {"training", "build.py"},
    "matplotlib": {"evaluation/plots.py", "benchmark/plots.py", "benchmark/scaling_plots.py"},
    "orbax": {"training/checkpoint.py", "models/t5_weights.py", "parallel/hosts.py"},
    "sentencepiece": {"data/text.py"},
    "av": {"data/video.py", "video_io.py"},
}
NO_JAX = ("data", "evaluation", "errors", "storage", "video_io", "weights_file")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def files():
    return sorted(PACKAGE.rglob("*.py"))


def within(relative, room):
    return relative == room or relative.startswith(f"{room}/") or relative == f"{room}.py"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    relative = path.relative_to(PACKAGE).as_posix()
    here = relative.split("/")[0].removesuffix(".py")
    if here == "__init__":
        return
    allowed = EXCEPTIONS.get(relative, MAY_IMPORT[here]) | ANYONE | {here}
    for line, name in imports(path):
        first, *rest = name.split(".")
        if first == "snapvideo_jax":
            assert rest[0] in allowed, f"{relative}:{line}: {here} may not import {rest[0]}"
        if first in ONLY_IN:
            fits = any(within(relative, room) for room in ONLY_IN[first])
            assert fits, f"{relative}:{line}: {first} belongs in {ONLY_IN[first]}"
        assert first != "launch" and first != "configs", f"{relative}:{line}: points up"
        if any(within(relative, room) for room in NO_JAX):
            assert first != "jax", f"{relative}:{line}: {here} knows no jax"


def test_every_room_has_a_sentence():
    for path in files():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} opens with no docstring"


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import importlib
for name in sys.argv[2:]:
    importlib.import_module(name)
"""
HEAVY = ("tensorflow", "tensorflow_datasets", "clu", "tensorboard")


def import_without(blocked, *modules):
    command = [sys.executable, "-c", BLOCKED, ",".join(blocked), *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_models_step_and_sampler_import_without_tensorflow_and_clu():
    modules = [
        *(
            f"snapvideo_jax.diffusion.{m}"
            for m in ("edm", "sigmas", "sampler", "guidance", "hierarchy")
        ),
        *(f"snapvideo_jax.models.{m}" for m in ("fit", "unet", "t5")),
        "snapvideo_jax.denoiser",
        *(f"snapvideo_jax.parallel.{m}" for m in ("mesh", "rules", "cost")),
        "snapvideo_jax.training.step",
        "snapvideo_jax.build",
        "snapvideo_jax.sample",
        "snapvideo_jax.evaluation.protocol",
    ]
    import_without(HEAVY, *modules)


def test_the_benchmark_needs_nothing_that_reads_data_or_draws():
    readers = ("av", "PIL", "sentencepiece", "matplotlib", "scipy")
    import_without((*HEAVY, *readers), "launch.benchmark", "snapvideo_jax.benchmark.plots")


FORBIDDEN = {
    "pickle": r"^\s*(import|from) (pickle|dill|cloudpickle)\b",
    "allow_pickle": r"allow_pickle\s*=\s*True",
    "a shell": r"shell\s*=\s*True|os\.system",
    "eval": r"(?<![\w.])(eval|exec)\(",
    "torch.load": r"torch\.load",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_unsafe_is_used(what):
    for path in [*files(), *(ROOT / "launch").glob("*.py"), *(ROOT / "configs").glob("*.py")]:
        found = re.search(FORBIDDEN[what], path.read_text(), re.MULTILINE)
        assert not found, f"{path}: {what}: {found and found.group(0)}"
