"""The layout is the architecture: who may import whom, and what runs without tensorflow."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "snapvideo_jax"

# Every room (a folder or a file of the package), from the top down; imports point down this list.
ROOMS = (
    "train", "page", "studies", "benchmark", "planner", "evaluation", "sampling", "export", "build",
    "training", "generator", "denoiser", "parallel", "data", "models", "diffusion", "files",
    "storage", "fields", "numerics", "trees", "keys", "pace", "units", "kinds", "errors",
)  # fmt: skip
GROUND = {"errors", "fields", "keys", "kinds", "numerics", "pace", "storage", "trees", "units"}
# room -> the rooms below it that it may use, beside the ground.
MAY_IMPORT = {
    "train": {"build", "data", "evaluation", "files", "parallel", "planner", "sampling",
              "training"},
    "page": {"data", "files", "sampling"},
    "studies": {"benchmark", "build", "data", "denoiser", "diffusion", "evaluation", "planner",
                "sampling"},
    "benchmark": {"build", "data", "denoiser", "diffusion", "parallel", "planner"},
    "planner": {"build", "denoiser", "models", "parallel"},
    "evaluation": {"data", "denoiser", "diffusion", "files", "parallel", "sampling", "training"},
    "sampling": {"build", "data", "denoiser", "diffusion", "export", "files", "generator",
                 "models", "parallel", "training"},
    "export": {"build", "denoiser", "diffusion", "files", "generator", "models", "training"},
    "build": {"data", "denoiser", "diffusion", "generator", "models", "parallel", "training"},
    "training": {"denoiser", "diffusion", "models", "parallel"},
    "generator": {"denoiser", "diffusion", "models"},
    "denoiser": {"diffusion", "models"},
    "parallel": {"models"},
    "data": {"files"},
    "models": set(),
    "diffusion": set(),
    "files": set(),
    "storage": {"kinds"},
    "fields": {"kinds"},
    "numerics": set(),
    "trees": set(),
    "keys": set(),
    "pace": set(),
    "units": set(),
    "kinds": set(),
    "errors": set(),
}  # fmt: skip
ONLY_IN = {
    "apache_beam": {"data/pack_beam.py"},
    "tensorflow": {"data/pipeline.py", "data/convert.py"},
    "tensorflow_datasets": {
        "data/convert.py",
        "data/packed.py",
        "data/tfds_build.py",
        "data/tfds_fields.py",
        "data/tfds_source.py",
    },
    "array_record": {"data/convert.py", "data/pack_shard.py"},
    "clu": {"training/boards.py", "training/parameter_report.py"},
    "flax": {
        "models",
        "denoiser",
        "export/stablehlo.py",
        "training/state.py",
        "parallel/rules.py",
        "files/t5_weights.py",
        "evaluation/features",
    },
    "ml_collections": {"sampling/trained.py"},
    "optax": {"training", "build/recipe.py"},
    "matplotlib": {
        "evaluation/plots.py",
        "benchmark/plots.py",
        "studies/scaling/plots.py",
        "studies/miniature/plots.py",
    },
    "orbax": {
        "export/orbax_folder.py",
        "training/checkpoint.py",
        "training/restore.py",
        "files/t5_weights.py",
        "parallel/hosts.py",
        "parallel/job_end.py",
    },
    "sentencepiece": {"data/text.py", "export/torch_model.py"},
    "torch": {"export/torch_model.py"},
    "safetensors": {"export/torch_model.py"},
    "av": {"data/timeline.py", "files/containers.py", "files/frames.py", "files/video.py"},
}
NO_JAX = (
    "data", "errors", "storage", "files/video", "files/containers", "files/frames",
    "files/safetensors", "evaluation/oracle", "evaluation/sets", "evaluation/result",
    "evaluation/choices", "evaluation/plots", "evaluation/moments", "evaluation/distances",
    "evaluation/scores", "evaluation/motion", "evaluation/factors", "evaluation/measurement",
    "evaluation/video_set", "files/torch_archive", "pace", "page/form", "page/gallery", "page/jobs",
    "page/routes", "page/server",
)  # fmt: skip

# Who may read or change the fields of a config; all others get named values.
READERS = {
    "build/checks.py", "build/data.py", "build/model.py", "build/programs.py", "build/recipe.py",
    "train.py",  # the loop's own fields: steps, checkpoints, log
    "planner/programs.py",  # how many videos a planned program makes
    "planner/search.py",  # lays configs out anew
    "benchmark/programs.py",  # names a case by its batch size
    "studies/learner.py",  # its batches' size
    "studies/miniature/scoring.py",  # prompts and noise by its seed
    "studies/miniature/units.py",  # changes steps and seed
    "studies/scaling/study.py",  # makes configs of four sizes
}  # fmt: skip
FIELDS = re.compile(
    r"(?<!--)\bconfig\.(data|model|diffusion|optimizer|training|sampling|mesh|checkpoint|log|seed)\b"
)


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


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    relative, here = path.relative_to(PACKAGE).as_posix(), room(path)
    if here == "__init__":
        return
    allowed = MAY_IMPORT[here] | (GROUND if here not in GROUND else {"errors"}) | {here}
    for line, name in imports(path):
        first, *rest = name.split(".")
        if first == "snapvideo_jax":
            assert rest[0] in allowed, f"{relative}:{line}: {here} may not import {rest[0]}"
        if first in ONLY_IN:
            fits = any(within(relative, place) for place in ONLY_IN[first])
            assert fits, f"{relative}:{line}: {first} belongs in {ONLY_IN[first]}"
        assert first != "launch" and first != "configs", f"{relative}:{line}: points up"
        if any(within(relative, place) for place in NO_JAX):
            assert first != "jax", f"{relative}:{line}: {here} knows no jax"


def test_no_room_may_import_one_above_it():
    assert set(MAY_IMPORT) == set(ROOMS) == {room(path) for path in files()} - {"__init__"}
    for here, below in MAY_IMPORT.items():
        assert all(ROOMS.index(other) > ROOMS.index(here) for other in below), here


def test_configs_are_read_by_build_and_few_others():
    readers = {
        path.relative_to(PACKAGE).as_posix() for path in files() if FIELDS.search(path.read_text())
    }
    assert readers == READERS


def test_every_room_has_a_sentence():
    for path in files():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} opens with no docstring"


def test_pytest_looks_into_every_folder_of_tests(request):
    """Its own list of folders to skip holds build, whose tests were not run for days."""
    skipped = request.config.getini("norecursedirs")
    for path in (ROOT / "tests").rglob("test_*.py"):
        for folder in path.relative_to(ROOT).parts[:-1]:
            assert not any(fnmatch(folder, pattern) for pattern in skipped), path


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
        *(f"snapvideo_jax.parallel.{m}" for m in ("mesh", "rules", "attention", "hosts")),
        "snapvideo_jax.training.step",
        "snapvideo_jax.build",
        "snapvideo_jax.generator",
        "snapvideo_jax.sampling.generate",
        "snapvideo_jax.sampling.long_video",
        "snapvideo_jax.evaluation.evaluate",
        "snapvideo_jax.evaluation.metrics",
    ]
    import_without(HEAVY, *modules)


@pytest.mark.parametrize("command", ["launch.benchmark", "launch.check_step"])
def test_the_benchmark_needs_nothing_that_reads_data_or_draws(command):
    readers = ("av", "PIL", "sentencepiece", "matplotlib", "scipy")
    import_without((*HEAVY, *readers), command, "snapvideo_jax.benchmark.plots")
