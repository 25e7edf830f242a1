"""What is planned is what runs: one assembly of each program, and few hands on the way to it."""

import ast
import dataclasses
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fit_500m
from snapvideo_jax import build
from snapvideo_jax.benchmark import programs as timed
from snapvideo_jax.models import fit
from snapvideo_jax.planner import programs, topology
from snapvideo_jax.sampling import output_folder
from snapvideo_jax.sampling.generate import generate
from snapvideo_jax.sampling.trained import load
from snapvideo_jax.train import train
from snapvideo_jax.training import step
from tests import tiny
from tests.in_process import launch

PACKAGE = Path(build.__file__).parent.parent
MESHES = {"one device": (1, 1, 1, 1), "groups": (2, 2, 2, 1)}


@pytest.fixture(params=MESHES)
def config(request, monkeypatch):
    """A toy run for one device, or for eight of which two share FIT's groups."""
    config = tiny.get_config()
    sizes = MESHES[request.param]
    config.mesh.update(dict(zip(("data", "fsdp", "group", "tensor"), sizes, strict=True)))
    config.training.update(steps=3, batch_size=4)
    if request.param == "one device":
        first = jax.devices()[:1]
        monkeypatch.setattr(jax, "devices", lambda *platform: first)
        monkeypatch.setattr(jax, "device_count", lambda: 1)
    return config


@pytest.fixture
def planned(monkeypatch):
    """(config, kind) -> the text of the program that a plan is of, for the devices at hand."""
    monkeypatch.setattr(programs, "model_flops", lambda *arguments: 0)  # traces another program

    def text(config, kind):
        program = programs.planned(config, kind, jax.devices())
        return program.call.lower(*program.arguments).as_text()

    return text


def test_the_text_that_is_said_to_be_dropped_is_what_the_step_drops(config, monkeypatch):
    config.diffusion.label_dropout = 0.5
    config.training.batch_size = 12
    digits = 2.0 ** np.arange(12)

    def bits(params, batch, draws, *arguments, **settings):
        """A loss whose digits are the rows that keep their text; float32 holds 24 of them."""
        first, second = (jnp.sum(keep * digits) for keep in draws.keep_text)
        return first + 2.0**12 * second

    monkeypatch.setattr(step, "loss", bits)
    program = build.train_program(config, 50)
    zeros = lambda tree: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
    state = dataclasses.replace(zeros(program.abstract_state), step=jnp.int32(41))
    _, metrics = program.step(state, zeros(program.abstract_batch))
    second, first = divmod(int(metrics["loss"]), 2**12)
    dropped = build.text_dropout(config, 41)
    assert not (dropped[0] == dropped[1]).all() and 0 < dropped[0].sum() < 12
    for rows, kept in zip(dropped, (first, second), strict=True):
        assert rows.tolist() == [not kept >> row & 1 for row in range(12)]


class Spy:
    """A jitted function that keeps the text of the program of its first call."""

    def __init__(self, function):
        self.function, self.text = function, None

    def __call__(self, *arguments):
        if self.text is None:
            self.text = self.function.lower(*arguments).as_text()
        return self.function(*arguments)


def spy_on(monkeypatch, name, field):
    """Replaces `build.NAME` so that `field` of its programs is spied on; returns the spies."""
    assemble, spies = getattr(build, name), []

    def assembled(*arguments):
        program = assemble(*arguments)
        spies.append(Spy(getattr(program, field)))
        if isinstance(program, tuple):
            return program._replace(**{field: spies[-1]})
        return dataclasses.replace(program, **{field: spies[-1]})

    monkeypatch.setattr(build, name, assembled)
    return spies


def test_training_and_sampling_run_the_programs_that_are_planned(
    config, planned, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        steps = spy_on(patch, "train_program", "step")
        train(config, tmp_path, lambda line: None)
    model = load(tmp_path, log=lambda line: None).cast_kernels()
    # A plan assumes some vocabulary for a text encoder that is trained along.
    monkeypatch.setattr(programs, "VOCABULARY", model.text.vocabulary_size)
    assert steps[0].text == planned(config, "train")

    config.sampling.frame_rate = 0.0  # an input of the program
    prompts = ["a red circle"] * config.training.batch_size
    with monkeypatch.context() as patch:
        calls = spy_on(patch, "sampler_program", "advance")
        settings = build.sampler_settings(config, frame_rate=8.0)
        generate(model, settings, prompts, range(len(prompts)), len(prompts))
    assert calls[0].text == planned(config, "sample")


def test_benchmarks_run_the_network_call_that_is_planned(config, planned):
    case = timed.Case("tiny", config, "infer", jax.devices())
    program = timed.plan_case(case)
    arguments = timed.first_arguments(timed.CompiledCase(case, program, None, None, None))
    assert program.call.lower(*arguments).as_text() == planned(config, "network")


def test_on_a_tpu_the_sampler_holds_the_attention_kernel(libtpu):
    config = fit_500m.get_config()
    config.model.fit.update(blocks=1, global_layers=1)
    config.training.batch_size = 1
    chips = topology.devices("v5e-1")
    program = programs.planned(config, "sample", chips)
    text = program.call.trace(*program.arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 4  # conditioning, read, global layer, write


class Reached(Exception):
    """Raised in the network."""


def test_a_prompt_reaches_the_network_in_ten_frames(trained_folder, tmp_path, monkeypatch):
    def reach(*sizes, **fields):
        raise Reached

    def batches(folder, *sizes):  # the model is loaded
        monkeypatch.setattr(fit, "ConditioningTokens", reach)
        return iter([folder.work])

    build.sampler_program.cache_clear()
    monkeypatch.setattr(output_folder.OutputFolder, "batches", batches)
    with pytest.raises(Reached) as caught:
        launch(
            "sample", f"--checkpoint={trained_folder}", "--prompt=a red circle",
            f"--out={tmp_path}", "--guidance=2", "--threshold=0.9",
        )  # fmt: skip
    ours = [
        frame for frame in traceback.extract_tb(caught.tb)
        if PACKAGE.parent in Path(frame.filename).parents and "tests" not in frame.filename
        and ".venv" not in frame.filename
    ]  # fmt: skip
    assert ours[0].name == "run" and ours[-1].name == "__call__"
    assert len(ours) <= 10, [f"{Path(frame.filename).name}:{frame.name}" for frame in ours]


def test_a_field_of_the_config_reaches_its_use_in_three_hands():
    """The assembly reads training.accumulate, the step takes it, and the gradient uses it."""
    takers = []
    for path in [PACKAGE / "build" / "programs.py", *(PACKAGE / "training").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.args, *node.args.kwonlyargs]
                if "accumulate" in {argument.arg for argument in arguments}:
                    takers.append(node.name)
    assert sorted(takers) == ["loss_and_gradient", "train_step"]
