"""The ledger of a run adds its starts, and says how much of the time trained the model."""

import json

from snapvideo_jax.training import goodput
from tests.mutations import mutations
from tests.training.test_progress import Clock


def start(path, clock, first, last, seconds):
    """A start of a run: it begins, takes so many seconds for each part, and writes the ledger."""
    began = clock.now
    clock.now += seconds.get("start", 0)
    ledger = goodput.Ledger(path, first, began, clock)
    for name, value in seconds.items():
        if name != "start":
            with ledger.time(name):
                clock.now += value
    for step in range(first + 1, last + 1):
        ledger.begin(step)
    ledger.write()
    return ledger


def test_starts_are_added_and_what_is_trained_again_is_lost(tmp_path):
    path, clock = tmp_path / "goodput.json", Clock()
    start(path, clock, 0, 50, {"start": 5, "compile": 15, "training": 50})
    clock.now += 1000  # down
    ledger = start(path, clock, 40, 90, {"start": 5, "data": 3, "checkpoint": 2, "training": 50})
    assert json.loads(path.read_text()) == {
        "starts": 2, "step": 90, "steps": 100, "lost_steps": 10,
        "seconds": {
            "start": 10.0, "compile": 15.0, "data": 3.0, "checkpoint": 2.0, "pictures": 0.0,
            "training": 100.0,
        },
    }  # fmt: skip
    assert ledger.summary() == (
        "goodput 69 % of 2m10s: starting 8 %, compiling 12 %, waiting for data 2 %, saving 2 %, "
        "samples and evaluations 0 %, 10 steps trained again 8 %; 1 restart"
    )


def test_the_file_is_written_every_few_seconds(tmp_path):
    path, clock = tmp_path / "goodput.json", Clock()
    ledger = goodput.Ledger(path, 0, 0.0, clock)
    ledger.begin(1)
    assert not path.exists()
    clock.now = 11.0
    ledger.begin(2)
    assert json.loads(path.read_text())["step"] == 2


def test_a_damaged_file_or_one_that_cannot_be_written_ends_nothing(tmp_path):
    path, clock = tmp_path / "goodput.json", Clock()
    start(path, clock, 0, 3, {"training": 3})
    for damaged in mutations(path.read_bytes(), 200):
        path.write_bytes(damaged)
        start(path, clock, 3, 4, {"training": 1})
        assert json.loads(path.read_text())["starts"] >= 1
    path.unlink()
    path.mkdir()
    start(path, clock, 3, 4, {"training": 1})
