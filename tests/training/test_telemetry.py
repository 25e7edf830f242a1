import json

import jax
import jax.numpy as jnp
import pytest

from snapvideo_jax.errors import StorageError
from snapvideo_jax.training import telemetry
from tests.mutations import mutations
from tests.test_storage import fill


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_line_says_step_loss_rate_time_left_and_waiting():
    clock, lines = Clock(), []
    progress = telemetry.Progress(0, 100, 32, 5.0, lines.append, clock)
    clock.now = 60.0
    assert progress.step(1, 2.0) == {}
    clock.now += 4.0
    progress.waited(1.0)
    assert progress.step(5, 1.5) == {}
    clock.now += 4.0
    rates = progress.step(9, 0.5)
    assert rates == {"videos_per_second": 32.0, "data_wait": 1 / 8}
    assert lines == [
        "first step after 1m00s: loss 2.0000",
        "step   9/100  loss 1.0000  32.0 videos/s  ETA 1m31s  waiting for data 12 %",
    ]


@pytest.mark.parametrize(
    ("peak", "says"),
    [(100e12, "  25.0 TFLOP/s a device, MFU 25.0 %"), (0, "  25.0 TFLOP/s a device")],
)
def test_the_speed_of_known_devices_is_in_the_line_and_the_rates(peak, says):
    clock, lines = Clock(), []
    speed = telemetry.Speed(flops=50e12, peak=peak)
    progress = telemetry.Progress(0, 100, 32, 5.0, lines.append, clock, speed)
    progress.step(1, 2.0)
    clock.now = 8.0
    rates = progress.step(5, 1.5)
    assert lines[-1].endswith(f"waiting for data 0 %{says}")
    assert rates["tflops_per_device"] == 25 and rates.get("mfu") == (0.25 if peak else None)


def test_the_last_step_is_always_reported():
    lines = []
    progress = telemetry.Progress(7, 9, 4, 1e9, lines.append, Clock())
    progress.step(8, 1.0)
    progress.step(9, 1.0)
    assert lines[-1].startswith("step 9/9")


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


def test_a_board_that_cannot_be_written_is_said_a_single_time(tmp_path):
    lines = []
    board = telemetry.Board(tmp_path / "board", lines.append)

    class Broken:
        def write_scalars(self, step, values):
            raise OSError(28, "No space left on device")

    board._writer = Broken()
    for step in (1, 2):
        board.scalars(step, {"loss": 1.0})
    board.close()
    assert len(lines) == 1
    assert lines[0].startswith("TensorBoard's curves end here: cannot write ")


def test_a_metrics_file_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics.jsonl cannot be read: Is a directory"):
        telemetry.MetricsFile(tmp_path / "metrics.jsonl", 0)
    (tmp_path / "board").write_text("")
    with pytest.raises(StorageError, match="cannot make the folder .*board"):
        telemetry.Board(tmp_path / "board", print)


def test_nowhere_takes_all_that_the_file_and_the_board_take():
    written = {name for kind in (telemetry.MetricsFile, telemetry.Board) for name in vars(kind)}
    assert {n for n in written if n[0] != "_"} <= set(vars(telemetry.Nowhere))


def test_the_summary_of_parameters_names_the_largest_parts_and_counts_each_once():
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    params = {
        "network": {
            "blocks": {
                "global0": {"kernel": leaf(600, 100)},
                "global1": {"kernel": leaf(600, 100)},
                "read": {"kernel": leaf(300, 100), "bias": leaf(300)},
            },
            **{f"token_{name}": leaf(100) for name in "abcdefgh"},
            "stem": {"kernel": leaf(10, 100)},
        },
        "text_encoder": {"kernel": leaf(100, 100)},
    }
    assert telemetry.parameter_summary(params).splitlines() == [
        "162,100 parameters, 648 kB",
        "  network/blocks/global*  120,000   74 %",
        "  network/blocks/read      30,300   19 %",
        "  text_encoder             10,000    6 %",
        "  network/stem              1,000    1 %",
        "  network/token_a             100    0 %",
        "  network/token_b             100    0 %",
        "  network/token_c             100    0 %",
        "  5 smaller parts             500    0 %",
    ]


def test_a_summary_of_one_parameter_is_that_parameter():
    lines = telemetry.parameter_summary({"kernel": jnp.ones((2, 3))}).splitlines()
    assert lines == ["6 parameters, 24 B", "  kernel  6  100 %"]
