"""What agrees with the CPU is said to agree, and what does not is not."""

import math

import jax
import numpy as np
import pytest

from launch import entry
from snapvideo_jax.benchmark import agreement
from snapvideo_jax.build import with_batch_size
from snapvideo_jax.errors import ConfigError, UserError
from tests import tiny
from tests.benchmark.example_rows import FACTS
from tests.in_process import launch


@pytest.fixture
def steps(monkeypatch):
    """Sets what steps give: errors of a gradient of size 5 in float32 on the device, in bfloat16,
    and in bfloat16 by a kernel."""

    def pretend(float32, bfloat16, kernel, loss=2.0):
        results = iter([0.0, bfloat16, float32, kernel])

        def run_step(config, device, start):
            moments = [np.array([3.0, 4.0 + next(results)]), np.zeros(2)]
            return agreement.Step(loss=loss, moments=moments, attention=config.model.attention)

        monkeypatch.setattr(agreement, "first_arguments", lambda config, device: None)
        monkeypatch.setattr(agreement, "run_step", run_step)
        return agreement.check("tiny", tiny.get_config(), jax.devices()[0])

    return pretend


def test_a_distance_is_a_share_of_the_size_of_all_arrays():
    expected = [np.array([3.0]), np.array([[4.0]])]
    assert agreement.distance(expected, expected) == 0
    assert agreement.distance([np.array([3.0]), np.array([[4.5]])], expected) == 0.1


def test_float32_has_a_limit_of_its_own_and_a_kernel_that_of_plain_attention(steps):
    exact, plain, kernel = steps(float32=4e-4, bfloat16=0.05, kernel=0.07)
    assert (exact.dtype, plain.dtype, kernel.dtype) == ("float32", "bfloat16", "bfloat16")
    assert (exact.attention, plain.attention, kernel.attention) == ("plain", "plain", "fastest")
    assert exact.limit == 1e-4 and exact.gradient == pytest.approx(8e-5)
    assert kernel.limit == pytest.approx(1.5 * 0.01)
    assert exact.holds and plain.holds and kernel.holds


def test_what_is_too_far_off_does_not_agree(steps):
    holds = lambda **errors: [one.holds for one in steps(**errors)]
    assert holds(float32=6e-4, bfloat16=0.05, kernel=0.05) == [False, True, True]
    assert holds(float32=0.0, bfloat16=0.05, kernel=0.08) == [True, True, False]
    assert holds(float32=0.0, bfloat16=math.nan, kernel=0.05) == [True, False, False]
    assert holds(float32=0.0, bfloat16=0.0, kernel=0.0, loss=math.nan) == [False] * 3


def test_the_table_says_who_agrees(steps):
    table = agreement.table(steps(float32=6e-4, bfloat16=0.05, kernel=0.05), FACTS)
    assert [line[-1] for line in table.lines] == ["NO", "yes", "yes"]
    assert "measured on NVIDIA A100-SXM4-80GB; jax 0.10.2" in table.source
    assert table.lines[0][4:6] == ("1.2e-04", "1.0e-04")


def test_the_command_ends_with_1_and_the_number_of_steps_that_do_not_agree(
    steps, tmp_path, monkeypatch
):
    agreements = steps(float32=6e-4, bfloat16=0.05, kernel=0.05)
    monkeypatch.setattr(agreement, "check", lambda name, config, device: agreements)
    with pytest.raises(UserError, match="^1 of 3 steps do not agree") as error:
        launch("check_step", "--configs=tests/tiny.py", f"--out={tmp_path}")
    assert error.value.exit_code == 1
    assert (tmp_path / "report.md").read_text().startswith("## A training step beside the CPU's")
    assert '"gradient": 0.00012' in (tmp_path / "report.json").read_text()


def test_where_jax_may_use_no_cpu_that_is_said(monkeypatch):
    def none(platform):
        raise RuntimeError(f"Unknown backend {platform}")

    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(ConfigError, match="unset JAX_PLATFORMS"):
        agreement.host_cpu()


@pytest.mark.slow
def test_a_cpu_agrees_with_itself_and_bfloat16_would_not_pass_for_float32():
    config = with_batch_size(entry.load_config("tests/tiny.py"), 2)
    exact, plain, fastest = agreement.check("tiny", config, jax.devices()[0])
    assert exact.holds and exact.gradient == exact.loss == 0
    assert agreement.LIMIT < plain.gradient < 0.2
    assert fastest.gradient == plain.gradient and fastest.attention == "plain"
