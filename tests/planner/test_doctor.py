"""The sharding doctor against the sharding rules, the training program and the published models."""

import functools
import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from snapvideo_jax import build, trees
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import rules
from snapvideo_jax.planner import doctor, doctor_table
from tests import tiny

ROOT = Path(__file__).parent.parent.parent
ONE_EACH = dict(data=-1, fsdp=1, group=1, tensor=1)


@functools.lru_cache
def model(name):
    """(denoiser, abstract parameters) of a config."""
    module = tiny if name == "tiny" else importlib.import_module(f"configs.{name}")
    config = module.get_config()
    mesh = build.counting_mesh()
    denoiser = build.denoiser(config, 20, mesh)
    return denoiser, build.abstract_params(config, denoiser, mesh)


def examine(name, devices, batch_size=4096, accumulate=1, **sizes):
    return doctor.examine(*model(name), ONE_EACH | sizes, devices, batch_size, accumulate)


def test_shards_and_totals_are_those_of_the_training_program():
    config = tiny.get_config()
    config.mesh.update(data=1, fsdp=2, group=2, tensor=2)
    state = build.train_program(config, 20).abstract_state
    diagnosis = examine("tiny", 8, 8, fsdp=2, group=2, tensor=2)
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    shard = lambda leaf: leaf.sharding.shard_shape(leaf.shape)
    expected = {trees.path_name(path): shard(leaf) for path, leaf in leaves}
    assert {each.name: each.shard for each in diagnosis.placements} == expected
    held = lambda tree: sum(4 * size_of(shard(x)) for x in jax.tree.leaves(tree) if x.shape)
    assert diagnosis.totals["parameters"] == held(state.params)
    assert diagnosis.totals["moments"] == held(state.opt_state)
    assert diagnosis.totals["EMA"] == held(state.ema)
    assert diagnosis.totals["gradients"] == diagnosis.totals["parameters"]
    assert diagnosis.problems == []


def size_of(shape):
    return jax.ShapeDtypeStruct(shape, "uint8").size


@pytest.mark.parametrize("axis", ["fsdp", "group", "tensor"])
@pytest.mark.parametrize("size", [2, 3, 5, 16])
def test_the_doctor_refuses_the_parameters_that_the_rules_refuse(axis, size):
    denoiser, params = model("fit_3b9")
    mesh = doctor.abstract_mesh([size if name == axis else 1 for name in ONE_EACH])
    refused = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        try:
            rules.spec_for(trees.path_name(path), leaf.shape, mesh)
        except ConfigError as error:
            refused.append(re.search(r"does not divide (\d+)", str(error)).group(1))
    diagnosis = examine("fit_3b9", size, size, **{axis: size})
    named = [p for p in diagnosis.problems if "a dimension of" in p]
    assert {re.search(r"does not divide (\d+)", p).group(1) for p in named} == set(refused)
    counts = [int(n or 1) for n in re.findall(r"a dimension of (?:(\d+) p)?", " ".join(named))]
    assert sum(counts) >= len(refused) and bool(counts) == bool(refused)


@pytest.mark.parametrize(
    "name", ["fit_3b9", "fit_3b9_upsampler", "unet_284m", "dit_factorised_500m"]
)
def test_a_size_is_legal_where_a_mesh_of_it_has_no_problem(name):
    legal = examine(name, 48, 48).legal
    for axis in ("fsdp", "group", "tensor"):
        divisors = [n for n in range(1, 49) if 48 % n == 0]
        fine = [n for n in divisors if not examine(name, 48, 48, **{axis: n}).problems]
        assert legal[axis] == fine


def test_everything_that_does_not_divide_is_listed_at_once_with_the_nearest_sizes():
    diagnosis = examine("fit_3b9", 256, accumulate=7, fsdp=5, group=3, tensor=16)
    starts = (
        "mesh.data=-1, mesh.fsdp=5, mesh.group=3, mesh.tensor=16 need 240 devices or a multiple",
        "training.batch_size=4096 does not split over mesh.data x mesh.fsdp = 5 devices and "
        "training.accumulate = 7; the nearest that does is 4095",
        "mesh.fsdp x mesh.group=15 does not divide 1024, a dimension of 14 parameters, such as ",
        "mesh.tensor x mesh.fsdp x mesh.group=240 does not divide 1024, a dimension of 7 ",
        "mesh.fsdp x mesh.group=15 does not divide 3072, a dimension of 23 parameters, such as ",
        "mesh.tensor x mesh.fsdp x mesh.group=240 does not divide 12288, a dimension of 7 ",
        "mesh.tensor x mesh.fsdp x mesh.group=240 does not divide 3072, a dimension of 4 ",
        "mesh.tensor x mesh.fsdp x mesh.group=240 does not divide 4096, a dimension of network/",
        "mesh.group=3 does not divide 8, a dimension of network/latent_table (8, 96, 3072) and "
        "the groups of patches; nearest on 256 devices: 2 and 4",
        "mesh.fsdp=5 does not divide 3072, a dimension of network/latent_table (8, 96, 3072); "
        "nearest on 256 devices: 4 and 8",
        "mesh.tensor=16 does not divide 24, the heads of self-attention between latents; "
        "nearest on 256 devices: 8",
    )
    assert len(diagnosis.problems) == len(starts)
    for problem, start in zip(diagnosis.problems, starts, strict=True):
        assert problem.startswith(start) and "\n" not in problem
    assert diagnosis.problems[2].endswith("nearest on 256 devices: 8 and 16")
    assert diagnosis.problems[3].endswith("nearest on 256 devices: 128 and 256")
    assert len(diagnosis.placements) == len(jax.tree.leaves(model("fit_3b9")[1]))


def test_a_size_that_does_not_divide_is_one_line_of_the_axes_that_split_it():
    """fsdp and group share some dimensions; with group=1 it is fsdp alone that does not divide."""
    of_1024, of_3072, of_12288, _ = examine("fit_3b9", 5, 5, fsdp=5).problems
    assert of_1024.startswith("mesh.fsdp=5 does not divide 1024, a dimension of 14 parameters")
    assert " and a dimension of 7 parameters, such as network/blocks/attend_cond" in of_1024
    assert of_3072.startswith("mesh.fsdp=5 does not divide 3072, a dimension of 23 parameters")
    assert of_12288.startswith("mesh.fsdp=5 does not divide 12288, a dimension of 7 parameters")
    assert " and a dimension of network/latent_table (8, 96, 3072); nearest" in of_3072
    first, *_ = examine("fit_3b9", 3, 3, group=3).problems
    assert first.startswith("mesh.group=3 does not divide 1024, a dimension of 14 parameters")


def test_heads_count_beside_the_widths_that_hold_them():
    """16 divides the 3072 channels of 24 heads, which no rule would notice."""
    (problem,) = examine("fit_3b9", 16, tensor=16).problems
    assert "does not divide 24, the heads of self-attention between latents" in problem
    text = " ".join(examine("tiny", 4, 8, tensor=4).problems)
    assert "2, the heads of the text encoder" in text
    assert "the heads of attention between patches and latents" in text


def test_a_unet_has_no_groups():
    problems = examine("unet_284m", 4, group=2, tensor=2).problems
    assert any("mesh.group=2 does not divide 1, the groups of a U-Net" in p for p in problems)
    assert any("9, the heads of attention over 576 channels" in p for p in problems)


def test_a_dit_splits_its_tokens_over_group_and_its_heads_over_tensor():
    joint = " ".join(examine("dit_500m", 36, group=3, tensor=12).problems)
    assert "mesh.group=3 does not divide 2560, the patches of a video; nearest" in joint
    assert "mesh.tensor=12 does not divide 16, the heads of attention; nearest" in joint
    factorised = " ".join(examine("dit_factorised_500m", 32, group=32).problems)
    assert "mesh.group=32 does not divide 16, the frames that attention over space" in factorised
    assert "160, the places" not in factorised


def test_a_parameter_without_a_rule_does_not_hide_the_others():
    denoiser, params = model("tiny")
    new = params | {"other": {"table": jax.ShapeDtypeStruct((3, 3), jnp.float32)}}
    diagnosis = doctor.examine(denoiser, new, ONE_EACH, 1, 8, 1)
    assert len(diagnosis.placements) == len(jax.tree.leaves(params))
    assert [p for p in diagnosis.problems if "no sharding rule for 'other/table'" in p]


@pytest.mark.parametrize("sizes", [dict(fsdp=4, group=4), dict(fsdp=4, tensor=4), dict(fsdp=16)])
def test_what_is_to_spare_is_all_beyond_an_equal_share(sizes):
    diagnosis = examine("fit_3b9_upsampler", 16, 320, **sizes)
    share = 5 * 4 * 3_921_011_760 / 16
    spare = sum(copies.spare for copies in diagnosis.copies)
    assert sum(diagnosis.totals.values()) - spare == pytest.approx(share, rel=1e-6)


def test_what_is_held_more_than_once_says_why():
    whys = {copies.reason: copies for copies in examine("fit_3b9", 4, fsdp=4).copies}
    norms = whys["the rule splits nothing: norms, biases and small tables"]
    idle = whys["the rule splits over tensor, of size 1"]
    assert norms.copies == idle.copies == 4
    replicas = examine("fit_3b9", 8, fsdp=4)
    assert replicas.mesh.shape["data"] == 2
    assert replicas.copies == examine("fit_3b9", 4, fsdp=4).copies


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("fit_3b9_upsampler", dict(fsdp=4, group=4)),
        ("fit_3b9_upsampler", dict(fsdp=5, group=3, tensor=7)),
        ("unet_284m", dict(fsdp=5, group=3, tensor=7)),
        ("tiny", {}),
    ],
)
def test_the_table_holds_every_parameter_once_in_120_columns(name, sizes):
    diagnosis = examine(name, 105 if "tensor" in sizes else 16, **sizes)
    text = doctor_table.text(diagnosis)
    assert max(map(len, text.splitlines())) <= 120
    table = doctor_table.parameters(diagnosis).splitlines()
    assert {len(line) for line in table if line.endswith("B")} == {120}  # no column overflows
    shown = []
    for section in {doctor_table.section_of(each) for each in diagnosis.placements}:
        placements = [p for p in diagnosis.placements if doctor_table.section_of(p) == section]
        for line, some in doctor_table.merge(placements, section):
            assert {f"{section}/{one}" for one in expand(line)} == {each.name for each in some}
            assert len({(each.shape, each.axes) for each in some}) == 1
            shown += some
    assert sorted(shown) == sorted(diagnosis.placements)


def expand(name):
    """All that a shell would make of braces, where "{0-2}" are numbers."""
    inner = re.search(r"\{([^{}]*)\}", name)
    if not inner:
        return {name}
    span = re.fullmatch(r"(\d+)-(\d+)", inner[1])
    choices = range(int(span[1]), int(span[2]) + 1) if span else inner[1].split(",")
    ends = name[: inner.start()], name[inner.end() :]
    return {full for one in choices for full in expand(f"{ends[0]}{one}{ends[1]}")}


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        (dict(), "48 x 1024"),
        (dict(fsdp=4), "48 x 1024/fsdp"),
        (dict(group=4), "48 x 1024/group"),
        (dict(fsdp=4, group=4), "48 x 1024/fsdp+group"),
        (dict(tensor=4), "48 x 1024"),
        (dict(fsdp=5), "48 x 1024/fsdp!"),
        (dict(fsdp=4, group=3), "48 x 1024/fsdp+group!"),
    ],
)
def test_a_dimension_names_the_axes_that_split_it_with_a_mark_if_they_do_not_divide_it(
    sizes, shape
):
    diagnosis = examine("fit_3b9", math.prod(sizes.values()), **sizes)
    lines = doctor_table.parameters(diagnosis).splitlines()
    (stem,) = (line for line in lines if line.startswith("  stem/kernel"))
    assert re.split(" {2,}", stem)[2].removeprefix("1 ") == shape


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["v", "q", "k"], "{k,q,v}"),
        (["layer2", "layer1", "layer3"], "layer{1-3}"),
        (["layer0", "layer2"], "layer{0,2}"),
        (["layer", "layer0", "layer1"], "layer{,0,1}"),
        (["read", "layer0", "layer1"], "{layer{0-1},read}"),
    ],
)
def test_names_are_written_as_one(names, text):
    assert doctor_table.choice(names) == text


def test_scanned_blocks_are_one_line_for_the_stack():
    text = doctor_table.parameters(examine("fit_3b9", 16, fsdp=16))
    assert re.search(r"network/blocks +118 stacks of 6 blocks, never split", text)
    line = r"global\{0-3\}/attention/\{k,q,v\}/kernel +12 6 x 3072/fsdp x 3072 +6 x 192 x 3072 "
    assert len(re.findall(line, text)) == 1


def test_the_command_prints_the_table_and_exits_with_the_first_problem(tmp_path):
    out = tmp_path / "d.json"
    command = [sys.executable, "-m", "launch.plan", "--doctor", "--config=tests/tiny.py"]
    command += ["--config.mesh.tensor=8", "--config.mesh.fsdp=32", "--devices=256"]
    done = subprocess.run([*command, f"--json={out}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Legal sizes on 256 devices" in done.stdout and "network/blocks" in done.stdout
    report = json.loads(out.read_text())
    problems = report["problems"]
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert line == f"error: {problems[0]} (problems in all: {len(problems)})"
    assert report["mesh"] == {"data": 1, "fsdp": 32, "group": 1, "tensor": 8}
    assert {"name", "shape", "axes", "shard", "size"} == report["parameters"][0].keys()
