import json

import pytest

from snapvideo_jax.errors import StorageError
from snapvideo_jax.training import telemetry
from tests.mutations import mutations
from tests.test_storage import fill


def test_a_resumed_metrics_file_drops_what_will_be_run_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = telemetry.MetricsFile(path, 0)
    for step in range(1, 6):
        first.write(step, {"loss": step / 7})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # the process died while it wrote
    again = telemetry.MetricsFile(path, 3)
    again.write(4, {"loss": 4 / 7})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": s, "loss": s / 7} for s in (1, 2, 3, 4)]


def test_damaged_lines_of_a_metrics_file_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 7}).encode() + b"\n" for step in range(1, 8)]
    damaged = [
        b"\n",
        b"\xff\xfe\n",
        b"[3]\n",
        b'{"step": true}\n',
        b'{"step": 1e3}\n',
        b"\0" * 9 + b"\n",
    ]
    path.write_bytes(
        b"".join(part for pair in zip(lines, [*damaged, lines[1]], strict=True) for part in pair)
    )
    telemetry.MetricsFile(path, 9)
    assert path.read_bytes() == b"".join(lines)
    for damaged in mutations(path.read_bytes(), 200):
        path.write_bytes(damaged)
        telemetry.MetricsFile(path, 5)
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == sorted(set(steps)) and all(0 <= step <= 5 for step in steps)


def test_lines_of_metrics_wait_while_the_disk_is_full(disk):
    folder = disk(20 << 10)
    file = telemetry.MetricsFile(folder / "metrics.jsonl", 0)
    ballast = fill(folder)
    for step in (1, 2):
        with pytest.raises(StorageError, match="cannot write .*metrics.jsonl: No space left"):
            file.write(step, {"loss": 1.0})
    with pytest.raises(StorageError, match="No space left"):
        file.flush()
    ballast.unlink()
    file.write(3, {"loss": 1.0})
    assert [json.loads(line)["step"] for line in file._path.read_text().splitlines()] == [1, 2, 3]


def test_a_metrics_file_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics.jsonl cannot be read: Is a directory"):
        telemetry.MetricsFile(tmp_path / "metrics.jsonl", 0)


def test_nowhere_takes_all_that_the_file_takes():
    assert {name for name in vars(telemetry.MetricsFile) if name[0] != "_"} <= set(
        vars(telemetry.Nowhere)
    )
