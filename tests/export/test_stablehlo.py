"""What a process without this package computes from an export equals what we compute."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import SingleDeviceSharding

from snapvideo_jax.export import stablehlo
from snapvideo_jax.planner import topology
from snapvideo_jax.sampling import text_to_video
from tests.conftest import CACHE

ROOT = Path(__file__).parent.parent.parent
# Only what stands in this line may be imported by the process, and what those need.
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("snapvideo_jax", "flax", "einops", "orbax", "optax", "launch"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
"""
DENOISE = """
from jax import export
import jax, numpy as np
from safetensors.numpy import load_file
folder, inputs = sys.argv[1], dict(np.load(sys.argv[2]))
denoiser = export.deserialize(bytearray(open(f"{folder}/denoiser.stablehlo", "rb").read()))
if "text" in inputs:
    inputs["text"] = inputs["text"].view("bfloat16")  # npz files know the bits alone
x, latents = inputs.pop("x_sigma"), inputs.pop("latents", ())
arguments = load_file(f"{folder}/model.safetensors"), x, np.float32(0.7), inputs, latents
D, latents = jax.jit(denoiser.call)(*arguments)
np.savez(sys.argv[3], D=D, **({} if isinstance(latents, tuple) else {"latents": latents}))
"""


def alone(folder, code, *arguments):
    """Runs code in a process that knows nothing of this package, in another folder."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(CACHE)}
    command = [sys.executable, "-c", BLOCKED + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_denoiser_equals_ours_without_this_package(programs, tmp_path):
    latents = programs.latents()
    inputs = programs.inputs | ({} if isinstance(latents, tuple) else {"latents": latents})
    np.savez(tmp_path / "inputs.npz", **inputs)
    alone(tmp_path, DENOISE, programs.folder, tmp_path / "inputs.npz", tmp_path / "outputs.npz")
    outputs = np.load(tmp_path / "outputs.npz")
    D, new_latents = programs.denoise(latents)
    np.testing.assert_allclose(outputs["D"], D, atol=1e-4)
    if not isinstance(latents, tuple):
        np.testing.assert_allclose(outputs["latents"], new_latents, atol=1e-4)
        without, _ = programs.denoise(np.zeros_like(latents))
        assert np.abs(without - D).max() > 0.01, "the latents of the call before do nothing"


def test_the_examples_video_is_that_of_the_same_seed(fit_programs, tmp_path):
    folder, prompt = fit_programs.folder, "a red circle moves left"
    script = (ROOT / "examples" / "from_stablehlo.py").read_text()
    alone(tmp_path, script, folder, prompt, "video.npy")
    [video] = text_to_video.load(folder)(prompt, seeds=7)
    differ(np.load(tmp_path / "video.npy"), video)


@pytest.mark.slow
@pytest.mark.parametrize("programs", ["fit", "upsampler", "unet", "dit"], indirect=True)
def test_the_sampler_makes_the_video_of_the_same_seed(programs):
    sampler = read(programs, stablehlo.SAMPLER)
    params = {name: jnp.asarray(leaf) for name, leaf in stored(programs.folder).items()}
    seeds = np.array([7, 8], np.int32)
    videos = jax.jit(sampler.call)(params, programs.request, seeds)
    model, more = text_to_video.load(programs.folder), {}
    if "low_res" in programs.request:
        more["low_res"] = programs.request["low_res"]
    prompts = ["a red circle moves left", "a blue triangle"]
    differ(videos, model(prompts, seeds=[7, 8], **more))


def differ(videos, ours):
    """Checks that no number is off by more than one grey level, and few by one."""
    difference = np.abs(np.asarray(videos).astype(int) - ours)
    assert videos.shape == ours.shape and difference.max() <= 1 and (difference > 0).mean() < 0.02
    assert ours.std() > 10


def read(model, name):
    return export.deserialize(bytearray((model.folder / name).read_bytes()))


def stored(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_the_artifacts_are_for_all_platforms_and_any_batch_size(fit_programs):
    for name in (stablehlo.DENOISER, stablehlo.SAMPLER):
        artifact = read(fit_programs, name)
        assert artifact.platforms == ("cpu", "cuda", "tpu")
        assert str(artifact.out_avals[0].shape[0]) == "B"


def test_the_digests_of_all_files_are_in_the_config(fit_programs):
    files = json.loads((fit_programs.folder / "config.json").read_text())["files"]
    assert set(files) >= {stablehlo.DENOISER, stablehlo.SAMPLER}
    for name, digest in files.items():
        content = (fit_programs.folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


@pytest.mark.slow
def test_both_artifacts_compile_for_a_tpu_that_is_not_there(programs, libtpu):
    [chip, *_] = topology.devices("v5e-1")
    here = SingleDeviceSharding(chip)
    for name in (stablehlo.DENOISER, stablehlo.SAMPLER):
        artifact = read(programs, name)
        args, kwargs = jax.tree.unflatten(artifact.in_tree, artifact.in_avals)
        two = lambda leaf: jax.ShapeDtypeStruct(
            tuple(size if isinstance(size, int) else 2 for size in leaf.shape),
            leaf.dtype,
            sharding=here,
        )
        lowered = jax.jit(artifact.call).lower(*jax.tree.map(two, args), **kwargs)
        assert lowered.compile().memory_analysis().output_size_in_bytes > 0
