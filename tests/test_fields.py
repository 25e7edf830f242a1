"""What fields and flags may be: abuses from their descriptions, at the gate of all commands.

Each ends with one line and exit code 2, or the test fails: none is accepted, none is a traceback.
"""

import contextlib
import importlib
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from configs import base
from launch import entry, number_flags
from snapvideo_jax import build, fields
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.kinds import OneOf, Real, Row, Several, Text, Truth, Whole
from tests import tiny

NO_NUMBER = (
    "",
    "x",
    "None",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "--1",
    "0x",
    "1,2",
    "[]",
    "1_",
    "9" * 5000,
)


def abuses(kind):
    """Texts that are of no such kind."""
    match kind:
        case Whole(least, most):
            return [
                *NO_NUMBER,
                "1.5",
                "1e3",
                "True",
                least - 1 - (least == 0),
                most + 1,
                -most,
                10**40,
            ]
        case Real(least, most):
            below = math.nextafter(least, -math.inf)
            return [*NO_NUMBER, "1j", below, math.nextafter(most, math.inf), -1e300, 1e300]
        case Truth():
            return ["", "maybe", "2", "nan", "None", "(True,)"]
        case OneOf(words):
            return ["", "nan", words[0].upper(), f"{words[0]} ", ",".join(words), "x" * 10_000]
        case Text(most):
            return ["x" * (most + 1)]
        case Several(inner, least, most):
            example = legal(inner)[0]
            row = lambda *values: f"({''.join(f'{v!r},' for v in values)})"
            wrong = [row(None), row({}), row([()]), row(*[example] * (most + 1))]
            wrong += [row(), "()"] if least else []
            if not isinstance(inner, Text):
                few = [example] * max(0, least - 1)
                wrong += ["(", "((1,),(2,))", "(1,", "None", "nan", "x", "1e999,", "(" * 300]
                wrong += [row(*few, "x"), row(*few, True), row(*few, -1e99), row(*few, [example])]
            return wrong


def legal(kind):
    """Values that are."""
    match kind:
        case Whole(least, most, special) | Real(least, most, special):
            return [least, most, *special]
        case Truth():
            return [True, False]
        case OneOf(words):
            return list(words)
        case Text():
            return ["", "a b"]
        case Row(kinds):
            return [tuple(legal(inner)[0] for inner in kinds)]
        case Several(inner, least, most):
            return [(legal(inner)[0],) * least, (legal(inner)[-1],) * most]


@contextlib.contextmanager
def defined(command, argv):
    """The flags of a command, as its module defines them when Python is started with `argv`."""
    before = set(flags.FLAGS)
    sys.argv[:] = argv
    try:
        importlib.import_module(f"launch.{command}")
        yield
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()
        sys.modules.pop(f"launch.{command}", None)


@pytest.fixture
def gate(monkeypatch, capsys):
    """gate(command, flags) -> exit code and stderr, of all that a command does before it runs.

    Without a command its flags are those that are defined already.
    """
    monkeypatch.setattr(sys, "argv", [])

    def gate(command, *argv):
        argv = [str(command), *map(str, argv)]
        try:
            with defined(command, argv) if command else contextlib.nullcontext():
                entry._parse(argv)
                code = 0
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return gate


TINY = "from tests import tiny\ndef get_config():\n    config = tiny.get_config()\n"
TRAIN = ("train", "--config=tests/tiny.py", "--workdir=w")


def assert_refused(text, code, said):
    assert code == 2 and said.startswith("error: "), (text, said)
    assert len(said.splitlines()) == 1 and len(said) < 600


@pytest.mark.parametrize("name", fields.FIELDS)
def test_a_field_takes_what_it_may_be_and_nothing_else(gate, name):
    for text in abuses(fields.FIELDS[name]):
        assert_refused(text, *gate(*TRAIN, f"--config.{name}={text}"))
    for value in legal(fields.FIELDS[name]):
        assert gate(*TRAIN, f"--config.{name}={value}") == (0, ""), value


def test_there_are_over_four_hundred_abuses():
    assert sum(len(abuses(kind)) for kind in fields.FIELDS.values()) > 400


# Flags without which a command does nothing, and how many of its flags hold numbers.
COMMANDS = {
    "sample": (["--checkpoint=c", "--out=o", "--prompt=a"], 20),
    "evaluate": (["--checkpoint=c", "--out=o"], 9),
    "export": (["--checkpoint=c", "--out=o"], 1),
    "plan": ([], 2),
    "benchmark": (["--out=o"], 5),
    "scaling": (["--out=o"], 2),
    "metrics": (["--metric=fvd", "--generated=g", "--out=o"], 4),
    "prepare_embed": (["--t5=t", "--out=o"], 1),
    "prepare_pack": (["--out=o"], 5),
    "prepare_show": (["--step=1"], 2),
    "prepare_inspect": ([], 1),
    "prepare_redundancy": ([], 1),
    "prepare_bench": ([], 3),
    "reproduce": (["--out=o"], 2),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_takes_what_it_may_be_and_nothing_else(monkeypatch, gate, command):
    kinds, define = {}, number_flags.define

    def listed(name, default, kind, text):
        kinds[name] = kind
        return define(name, default, kind, text)

    monkeypatch.setattr(number_flags, "define", listed)
    needed, count = COMMANDS[command]
    with defined(command, [command, *needed]):
        assert gate(None, *needed) == (0, "")
        assert len(kinds) == count
        for name, kind in kinds.items():
            for text in flag_abuses(kind):
                assert_refused(text, *gate(None, *needed, f"--{name}={text}"))
            for value in legal(kind):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else value
                assert gate(None, *needed, f"--{name}={text}") == (0, ""), (name, value)


def flag_abuses(kind):
    """As abuses, for values between commas."""
    if not isinstance(kind, Several):
        return abuses(kind)
    good = str(legal(kind.kind)[0])
    several = [f"{good},{text}" for text in abuses(kind.kind) if text != "1,2"]
    return [*several, "", ",", f"{good},", ",".join([good] * (kind.most + 1))]


def test_no_flag_holds_a_number_without_saying_which():
    for path in Path(entry.__file__).parent.glob("*.py"):
        assert not re.search(r"DEFINE_(multi_)?(integer|float)", path.read_text()), path


def test_base_has_a_default_of_its_kind_for_each_field_and_no_other():
    config = base.get_config()
    assert fields.flatten(config).keys() == fields.FIELDS.keys()
    fields.check(config)
    fields.check(json.loads(config.to_json()))  # as files hold it


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("training.stepz=3", "no field training.stepz; the nearest is training.steps"),
        ("training.learning_rate=3", "the nearest is optimizer.learning_rate"),
        ("zzzzzzzz=3", "the nearest is "),
        ("=3", "the nearest is "),
        ("..=3", "the nearest is "),
        ("data..path=3", "the nearest is data.path"),
        ("data.frame_rates[0]=3", "the nearest is data.frame_rates"),
        ("data.frame_rates.x=3", "the nearest is data.frame_rates"),
        ("to_dict=3", "the nearest is "),
        ("__class__=3", "the nearest is "),
        (f"{'x' * 5000}=3", "the nearest is "),
        ("training=3", "training is a section"),
        ("model.fit={}", "model.fit is a section"),
        ("training.steps", "training.steps"),
    ],
)
def test_a_flag_of_no_field_names_the_nearest_however_far(gate, flag, says):
    code, said = gate(*TRAIN, f"--config.{flag}")
    assert_refused(flag, code, said)
    assert says in said


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def get_config(): return None", "it lacks"),
        ("def get_config(): return {}", ""),
        ("def get_config(): raise RuntimeError('no')", "no"),
        ("def get_config(): return get_config()", "recursion"),
        ("def get_config(): 1 / 0", "zero"),
        ("get_config = 3", ""),
        ("x = ", "line 1"),
        (TINY + "    config.training.steps = 10**5000\n    return config", "training.steps=a"),
        (TINY + "    config.data.path = 'a\\0b'\n    return config", "data.path="),
        (TINY + "    config.unlock()\n    config.steps = 4\n    return config",
         "no field steps; the nearest is "),
        (TINY + "    config.unlock()\n    del config.model.fit\n    return config",
         "it lacks model.fit;"),
        (TINY + "    config.unlock()\n    del config.seed\n    return config", "it lacks seed;"),
    ],
)  # fmt: skip
def test_a_file_that_makes_no_config_is_one_line(gate, tmp_path, source, says):
    (tmp_path / "config.py").write_text(source)
    code, said = gate("train", f"--config={tmp_path / 'config.py'}", "--workdir=w")
    assert_refused(source, code, said)
    assert says in said


def test_edges_of_several_fields_are_a_config_or_one_line():
    rng, accepted = np.random.default_rng(0), 0
    for _ in range(150):
        config = tiny.get_config()
        for name in rng.choice(list(fields.FIELDS), 2):
            values = legal(fields.FIELDS[name])
            config.update_from_flattened_dict({str(name): values[rng.integers(len(values))]})
        try:
            build.check(config)
            build.training_mesh(config)
            accepted += 1
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
    assert 30 < accepted < 120
