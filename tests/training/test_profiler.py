"""A trace holds the steps that were asked for, and is written however the run ends."""

from pathlib import Path

import jax
import pytest

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.training import profiler

FOLDER = Path("folder")


@pytest.fixture
def seen(monkeypatch):
    """What the trace does, in order."""
    found = []
    note = lambda name: lambda *given, **options: found.append((name, *given))
    monkeypatch.setattr(jax.profiler, "start_trace", note("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", note("stop"))
    monkeypatch.setattr(jax, "block_until_ready", note("await"))
    return found


def run(trace, steps, seen):
    with trace:
        for step in steps:
            trace.before(step, f"state {step - 1}")
            seen.append(("step", step))
            trace.after(step, f"state {step}")


def test_first_and_last_are_both_traced():
    assert list(profiler.parse("10:13")) == [10, 11, 12, 13]
    assert list(profiler.parse("7:7")) == [7]


@pytest.mark.parametrize(
    "text", ["", "10", "10:", ":3", "3:2", "0:4", "-1:3", "1:2:3", "a:b", "1.5:2"]
)
def test_what_is_no_first_and_last_is_refused(text):
    with pytest.raises(ConfigError, match=f"--profile={text} must be FIRST:LAST"):
        profiler.parse(text)


def test_the_steps_must_be_ahead():
    profiler.check(range(5, 9), 4, 8)
    profiler.check(range(0), 8, 8)
    for steps, start in ((range(5, 10), 0), (range(20, 22), 0), (range(5, 9), 5)):
        with pytest.raises(ConfigError, match=f"the run has steps {start + 1} to 8 left"):
            profiler.check(steps, start, 8)
    with pytest.raises(ConfigError, match="--profile=5:8: the run has no step left"):
        profiler.check(range(5, 9), 8, 8)


def test_a_trace_holds_its_steps_whole_and_no_other(seen):
    lines = []
    run(profiler.Trace(FOLDER, range(3, 5), lines.append), range(1, 7), seen)
    assert seen == [
        *(("step", 1), ("step", 2), ("await", "state 2"), ("start", "folder"), ("step", 3)),
        *(("step", 4), ("await", "state 4"), ("stop",), ("step", 5), ("step", 6)),
    ]
    assert lines == ["trace for xprof in folder"]


def test_a_run_that_ends_within_the_steps_still_writes_them(seen):
    trace = profiler.Trace(FOLDER, range(3, 9), print)
    with pytest.raises(ZeroDivisionError), trace:
        trace.before(3, "state")
        trace.after(3, "state")
        raise ZeroDivisionError
    assert [name for name, *_ in seen] == ["await", "start", "stop"]


def test_a_run_without_steps_to_trace_is_never_held_up(seen):
    run(profiler.Trace(FOLDER, range(0), print), range(1, 4), seen)
    assert seen == [("step", 1), ("step", 2), ("step", 3)]
