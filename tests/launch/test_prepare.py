"""The command that stores text states, run as a user runs it, on a toy encoder of version 1.0."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.data.embeddings import Embeddings
from snapvideo_jax.data.text import Tokenizer, train_vocabulary
from snapvideo_jax.files import safetensors, t5_weights
from snapvideo_jax.sampling import prompt_encoder
from tests.conftest import CACHE

ROOT = Path(__file__).parent.parent.parent
V, E, A, D, F, LENGTH = 128, 16, 2, 8, 32, 8
CAPTIONS = ["a red fox in snow", "a boat", "two birds, far off", "a fox", "a long walk in snow"]
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "4",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def prepare(*arguments):
    command = [sys.executable, "-m", "launch.prepare", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def embed(folder, *flags):
    return prepare(
        "embed",
        "--config=tests/tiny.py",
        "--config.data.source=folder",
        f"--config.data.path={folder / 'data'}",
        f"--t5={folder / 't5'}",
        f"--out={folder / 'states'}",
        "--batch_size=4",
        *flags,
    )


def write_captions(folder, captions):
    """Videos are not decoded here, so empty files will do."""
    (folder / "data").mkdir(exist_ok=True)
    for i, caption in enumerate(captions):
        (folder / "data" / f"{i}.mp4").touch()
        (folder / "data" / f"{i}.txt").write_text(caption)


def write_t5(folder):
    folder.mkdir()
    attention, dense = "encoder.block.0.layer.0", "encoder.block.0.layer.1"
    shapes = {
        "shared.weight": (V, E),
        f"{attention}.SelfAttention.relative_attention_bias.weight": (32, A),
        "encoder.final_layer_norm.weight": (E,),
        f"{attention}.layer_norm.weight": (E,),
        f"{dense}.layer_norm.weight": (E,),
        f"{dense}.DenseReluDense.wi.weight": (F, E),
        f"{dense}.DenseReluDense.wo.weight": (E, F),
        f"{attention}.SelfAttention.o.weight": (E, A * D),
    } | {f"{attention}.SelfAttention.{x}.weight": (A * D, E) for x in "qkv"}
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=s).astype(np.float32) / 2 for n, s in shapes.items()}
    announced = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    safetensors.write(folder / "model.safetensors", announced, arrays.__getitem__)
    sizes = dict(vocab_size=V, d_model=E, num_heads=A, d_kv=D, d_ff=F, num_layers=1)
    (folder / "config.json").write_text(json.dumps(sizes | {"model_type": "t5"}))
    train_vocabulary(CAPTIONS, folder / "spiece.model")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(folder, output) of a run on three captions and one on a data set that has grown since."""
    folder = tmp_path_factory.mktemp("prepare")
    write_t5(folder / "t5")
    train_vocabulary(
        [f"{chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)],
        folder / "large.model",
    )
    write_captions(folder, CAPTIONS[:3])
    first = embed(folder)
    assert (first.returncode, first.stderr) == (0, "")
    write_captions(folder, [*CAPTIONS, "", CAPTIONS[0]])
    second = embed(folder)
    assert (second.returncode, second.stderr) == (0, "")
    return folder, first.stdout, second.stdout


def test_stored_states_are_those_of_the_encoder(prepared):
    folder = prepared[0]
    weights = t5_weights.open_weights(folder / "t5")
    ids, mask = Tokenizer(folder / "t5" / "spiece.model")(CAPTIONS, LENGTH)
    module = prompt_encoder.module(weights.config, jnp.float32)
    expected = jax.jit(module.apply)({"params": weights.load()}, ids, mask)
    states, stored_mask = Embeddings(folder / "states")(CAPTIONS)
    np.testing.assert_array_equal(stored_mask, mask)
    stored = states[mask].astype(np.float32)
    np.testing.assert_allclose(stored, np.asarray(expected)[mask], rtol=2**-7, atol=1e-3)


def test_only_new_captions_are_encoded(prepared):
    _, first, second = prepared
    assert "3 captions to encode, 0 are stored" in first and "3/3 captions in" in first
    assert "2 captions to encode, 3 are stored" in second and "done: 5 captions" in second


REFUSALS = {
    "no command": (2, "say what to prepare: python -m launch.prepare embed"),
    "--t5=tests": (3, "tests: holds neither model.safetensors nor"),
    "--tokenizer=LARGE": (3, r"has \d+ pieces, and .* embeds 128; give --tokenizer the encoder's"),
    "--config.model.dtype=bfloat16": (3, "holds states of encoder .*, not .*; choose another"),
}


@pytest.mark.parametrize("flag", REFUSALS)
def test_refusals_are_one_line_with_an_exit_code(prepared, flag):
    folder = prepared[0]
    if flag == "no command":
        done = prepare("--t5=x", "--out=y")
    else:
        done = embed(folder, flag.replace("LARGE", str(folder / "large.model")))
    code, line = REFUSALS[flag]
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert re.search(line, done.stderr), done.stderr
