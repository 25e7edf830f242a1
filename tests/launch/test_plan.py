"""The planner from the command line: what it writes, and what it says when it cannot plan."""

import json
import sys
from unittest import mock

import pytest

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.planner import topology
from tests.in_process import launch

TINY = "--config=tests/tiny.py"


def plan(*flags):
    with mock.patch.object(sys, "argv", ["plan", TINY, *flags]):  # where fields of the config are
        return launch("plan", TINY, *flags)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "snapvideo_jax" / "plans"


def test_without_libtpu_there_is_one_line_with_the_command(monkeypatch, tmp_path):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(topology, "FOLDER", tmp_path)
    with pytest.raises(ConfigError) as error:
        plan("--topology=v5e-4")
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    assert "pip install --no-deps --target=" in str(error.value)


@pytest.mark.parametrize(
    ("says", "flags"),
    [
        ("'v9-4' is not known; there are v5e-N (or v5litepod-N)", ["--topology=v9-4"]),
        ("there is no slice v5e-3; there are v5e-1, v5e-4", ["--topology=v5e-3"]),
        (
            "training.batch_size=7 does not split over mesh.data x mesh.fsdp = 4 devices; the "
            "nearest that does is 8",
            [
                "--topology=v5e-4",
                "--config.training.batch_size=7",
                "--config.data.image_fraction=0.0",
            ],
        ),
        (
            "mesh.data=3, mesh.fsdp=1, mesh.group=1, mesh.tensor=1 need 3 devices, and there are 4",
            ["--topology=v5e-4", "--config.mesh.data=3"],
        ),
        ("this config is a first stage", ["--topology=v5e-1", "--program=upsample"]),
        ("--search needs the slice to search on: --topology=v5p-64", ["--search", "--count"]),
        ("--devices does nothing here: it needs --doctor", ["--count", "--devices=4"]),
        ("--candidates does nothing here: it needs --search", ["--count", "--candidates=4"]),
        ("--program does nothing here: it needs --topology", ["--doctor", "--program=train"]),
        ("--json does nothing here: it needs one answer", ["--doctor", "--count", "--json=x"]),
    ],
)
def test_what_cannot_be_planned_is_one_line_that_says_what_could(libtpu, says, flags):
    with pytest.raises(ConfigError) as error:
        plan(*flags)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_doctor_lays_the_mesh_over_the_slice(libtpu):
    with pytest.raises(ConfigError, match="need 3 devices, and there are 4"):
        plan("--doctor", "--topology=v5e-4", "--config.mesh.data=3")


def test_json_has_what_is_printed_and_the_answer_is_cached(libtpu, cache, tmp_path, capsys):
    file = tmp_path / "plan.json"
    few = "--config.sampling.threshold=0.0", "--config.mesh.data=2", "--config.mesh.group=2"
    plan("--topology=v5e-4", "--program=sample", f"--json={file}", *few)
    answer, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert answer["kind"] == "predicted" and answer["fits"] is True
    assert (answer["chip"], answer["chips"]) == ("TPU v5 lite", 4)
    assert answer["mesh"] == dict(data=2, fsdp=1, group=2, tensor=1)
    assert answer["parameters"] == 30_400
    memory = answer["hbm_bytes_per_chip"]
    assert memory["limit"] == int(15.75 * 2**30) and 0 < memory["total"] < memory["limit"]
    # All parameters that groups do not share; of 8 videos a quarter, three times, and latents.
    assert memory["state"] == 8 // 4 * 4 * (3 * 2 * 16 * 16 * 3 + 4 * 16)
    assert memory["batch"] == 8 // 2 * (4 + 8 + 4) and memory["text"] == 8 // 2 * (8 * 4 + 8)
    assert answer["model_flops_per_step"] == answer["hardware_flops_per_step"] == 4_423_680
    assert answer["calls_per_video"] == 2 * 3 - 1
    for sent in answer["collectives"]:
        assert set(sent) == {"kind", "axes", "count", "bytes", "largest_operand_bytes"}
        assert set(sent["axes"]) <= {"data", "group"}
        assert 0 < sent["largest_operand_bytes"] <= sent["bytes"]
    assert ["group"] in [sent["axes"] for sent in answer["collectives"]]
    fast, slow = answer["predicted_step_seconds_range"]
    assert 0 < fast <= slow == answer["predicted_step_seconds"]
    assert answer["predicted_mfu"] == pytest.approx(4_423_680 / 4 / 197e12 / slow)
    assert answer["compile_seconds"] > 0 and answer["versions"]["compiler"].startswith("libtpu")
    assert "4 x TPU v5 lite, data 2 x group 2: fits" in printed and "nothing was run" in printed
    assert " to sample 8 videos, in 5 denoiser calls" in printed
    parts = answer["predicted_step_seconds_parts"]
    assert list(parts) == ["compute", "kernels", "waiting", "overlapped", "fast", "slow"]
    assert len(list(cache.iterdir())) == 1
