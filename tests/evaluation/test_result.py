"""Results: they come back from JSON, and are compared only where every choice is alike."""

import dataclasses
import json

import pytest

from snapvideo_jax.errors import ConfigError, DataError
from snapvideo_jax.evaluation import result
from snapvideo_jax.evaluation.result import Result, Value

CHOICES = {"protocol": "ucf101", "seed": 0, "sampling": {"first": {"steps": 256, "S_max": "inf"}}}
MODEL = {"first": {"checkpoint": "/runs/a", "step": 10}}
A = Result(CHOICES, MODEL, {"fvd": Value(250.5), "is": Value(30.0, 3.0)}, {"more": [1, 2]})
B = dataclasses.replace(
    A,
    model={"first": {"checkpoint": "/runs/a", "step": 20}},
    values={"is": Value(31.5, 4.0), "fvd": Value(200.25), "clipsim": Value(0.3, 0.01)},
)


def test_a_result_comes_back_with_the_id_of_its_choices(tmp_path):
    result.write(tmp_path / "a.json", A)
    assert result.read(tmp_path / "a.json") == A
    fields = json.loads((tmp_path / "a.json").read_text())
    assert fields["protocol_id"] == A.fields()["protocol_id"] == B.fields()["protocol_id"]
    assert fields["more"] == [1, 2] and fields["values"]["is"] == {"value": 30.0, "error": 3.0}


def test_like_results_are_a_table_with_differences_and_errors_and_what_differs_in_the_model():
    lines = [line.split() for line in result.comparison(A, B).splitlines()]
    assert lines == [
        ["A", "B", "B", "-", "A"],
        ["fvd", "250.5", "200.25", "-50.25"],
        ["is", "30", "+-", "3", "31.5", "+-", "4", "+1.5", "+-", "5"],
        ["model:", "first.step", "10", "and", "20"],
    ]


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"seed": 1}, "seed 0 and 1"),
        ({"sampling": {"first": {"steps": 40, "S_max": "inf"}}}, "sampling.first.steps 256 and 40"),
        ({"real": {"count": 5}}, "real.count None and 5"),
    ],
)
def test_unlike_results_are_refused_by_every_choice_that_differs(changes, says):
    other = dataclasses.replace(B, choices=CHOICES | changes)
    assert other.fields()["protocol_id"] != A.fields()["protocol_id"]
    with pytest.raises(ConfigError) as error:
        result.comparison(A, other)
    assert str(error.value) == f"results of unlike protocols: {says}; measure alike"


@pytest.mark.parametrize("damage", ["missing", "text", "choice", "field", "list", "nan"])
def test_a_damaged_or_edited_file_is_one_line(tmp_path, damage):
    path = tmp_path / "a.json"
    result.write(path, A)
    fields = json.loads(path.read_text())
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("FVD 250")
    elif damage == "choice":
        fields["choices"]["seed"] = 7
    elif damage == "field":
        del fields["values"]["fvd"]["value"]
    elif damage == "nan":
        fields["values"]["fvd"]["value"] = float("nan")
    if damage in ("choice", "field", "nan", "list"):
        path.write_text(json.dumps([1] if damage == "list" else fields))
    with pytest.raises(DataError) as error:
        result.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_table_has_a_column_each_and_shows_what_is_lacking():
    lines = result.table({"w 0": A.values, "w 1": B.values}).splitlines()
    assert [line.split()[0] for line in lines] == ["w", "fvd", "is", "clipsim"]
    assert lines[3].split() == ["clipsim", "-", "0.3", "+-", "0.01"]
