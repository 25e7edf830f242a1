"""The scripts in examples/ run in an exported folder alone, and its page says what is in it."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from snapvideo_jax.files import safetensors
from snapvideo_jax.models.conditioning import SCALE
from snapvideo_jax.models.layers import ScalarEmbedding

ROOT = Path(__file__).parent.parent.parent
TESTED_ELSEWHERE = {"from_stablehlo.py"}  # tests/export/test_stablehlo.py
NOTEBOOK = ROOT / "examples" / "from_export.ipynb"
PROMPT = "a red circle moves left"


def run(script, folder, *arguments):
    """Runs a script where this package cannot be imported."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, ROOT / "examples" / script, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_by_a_test():
    tested = {"from_torch.py", "from_numpy.py"} | TESTED_ELSEWHERE
    assert tested == {path.name for path in (ROOT / "examples").glob("*.py")}
    assert [path.name for path in (ROOT / "examples").glob("*.ipynb")] == [NOTEBOOK.name]


@pytest.mark.parametrize("exported", ["fit"], indirect=True)
def test_torch_samples(exported, tmp_path):
    said = run("from_torch.py", tmp_path, exported.folder, PROMPT, "video.npy")
    video = np.load(tmp_path / "video.npy")
    assert said == f"video.npy: {list(video.shape)} by cpu\n"
    assert video.shape == exported.denoiser.video_shape + (3,) and video.dtype == np.uint8
    assert video.std() > 10


@pytest.mark.parametrize("exported", ["fit"], indirect=True)
def test_numpy_computes_the_token_of_the_noise_level(exported, tmp_path):
    token = np.array(run("from_numpy.py", tmp_path, exported.folder, 0.5).split(), float)
    params = exported.params["network"]["tokens"]["c_noise"]
    x = SCALE["c_noise"] * jnp.log(jnp.full(1, 0.5)) / 4
    expected = jax.jit(ScalarEmbedding(len(token)).apply)({"params": params}, x)
    np.testing.assert_allclose(token, expected[0], atol=1e-4)


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_a_script_without_arguments_says_what_to_install_and_how_to_call_it(script):
    done = subprocess.run([sys.executable, "-S", str(script)], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "  pip install " in done.stderr and f"  python {script.name} exported " in done.stderr


def test_the_notebook_is_small_and_imports_nothing_of_ours():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert NOTEBOOK.stat().st_size < 150_000
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    modules = re.findall(r"^(?:import|from) (\w+)", code, re.M)
    assert {"jax", "torch", "numpy", "torch_model"} <= set(modules)
    assert not {"snapvideo_jax", "launch", "flax"} & set(modules)


def run_notebook(export, place):
    """Runs the notebook on an export that lies where it looks; returns the pictures it shows."""
    shutil.copytree(export, place / "models" / "shapes")
    (place / "examples").mkdir()
    run(Path(__file__).with_name("run_notebook.py"), place / "examples", NOTEBOOK, place)
    pictures = [Image.open(path).convert("RGB") for path in sorted(place.glob("*.png"))]
    return [np.asarray(picture, int) for picture in pictures]


def test_the_notebook_shows_two_prompts_by_stablehlo_and_by_torch(fit_programs, tmp_path):
    frames, height, width = fit_programs.denoiser.video_shape
    pictures = run_notebook(fit_programs.folder, tmp_path)
    assert [picture.shape for picture in pictures] == [(2 * 2 * height, 2 * frames * width, 3)] * 2
    assert all(picture.std() > 10 for picture in pictures)


@pytest.mark.slow
def test_the_notebook_shows_what_the_shipped_model_was_asked_for(tmp_path):
    pictures = run_notebook(ROOT / "models" / "shapes", tmp_path)
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.shape == (2 * 64, 8 * 64, 3)  # two prompts, eight frames, twice as large
        redness = picture[..., 0] - picture[..., 2]
        assert redness[:64].max() > 150 and redness[64:].min() < -150  # a red and a blue object


def rows():
    """(patterns, numbers of dimensions) of each row of the page's table of names."""
    page = (ROOT / "docs" / "export.md").read_text()
    for names, dimensions in re.findall(
        r"^\| (`(?:network|text_enc)\S.*?) \| (.*?) \|", page, re.M
    ):
        patterns = [each for name in re.findall(r"`(.*?)`", names) for each in braces(name)]
        yield patterns, {int(number) for number in re.findall(r"\d+", dimensions)}


def braces(pattern):
    """`a/{b,c}` as `a/b` and `a/c`."""
    if not (choice := re.search(r"{(.*?)}", pattern)):
        return [pattern]
    return [pattern.replace(choice[0], word) for word in choice[1].split(",")]


def matches(name, pattern):
    parts, patterns = name.split("/"), pattern.split("/")
    pairs = zip(parts, patterns, strict=False)
    return len(parts) == len(patterns) and all(fnmatch.fnmatchcase(*pair) for pair in pairs)


def test_the_page_names_every_parameter_with_its_dimensions(exported):
    assert len(list(rows())) > 15
    for name, (_, info) in safetensors.open_folder(exported.folder).items():
        fitting = [sizes for patterns, sizes in rows() if any(matches(name, p) for p in patterns)]
        assert len(fitting) == 1, (name, fitting)
        assert len(info.shape) in fitting[0], (name, info.shape)
