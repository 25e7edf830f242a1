"""launch/gpu_check.sh with a Python that measures nothing; and in its tiny form, on a CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Writes a report where it is told to, but for the part that $STOPPED names.
PYTHON = """#!/usr/bin/env bash
[ "$1" != -c ] || { printf '%s' "${LACKS-}"; exit "${NO_GPU-0}"; }
folder="${!#}" folder="${folder#--out=}"
[ "${folder##*/}" != "${STOPPED-}" ] || exit 143
mkdir -p "$folder"
echo '{"rows": []}' > "$folder/report.json"
printf '# Title\\n\\nNote.\\n\\n## Of %s\\n\\n![p](p.png)\\n' "${folder##*/}" > "$folder/report.md"
"""
PARTS = ["step", "call", "attention", "training", "large"]


@pytest.fixture
def check(tmp_path):
    """Runs the script with a fake Python, in an environment with `changes`."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(*flags, **changes):
        environment = os.environ | {"PYTHON": str(python)} | changes
        command = ["bash", str(ROOT / "launch" / "gpu_check.sh"), *flags]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run


def test_a_dry_run_prints_a_command_for_each_part_and_they_end_in_8_minutes(check, tmp_path):
    done = check("--dry_run", "--out=report")
    lines = re.findall(r"^(\w+), (\d+) s at most: \S+ (.*)$", done.stdout, re.M)
    assert done.returncode == 0 and [name for name, _, _ in lines] == PARTS
    assert sum(int(limit) for _, limit, _ in lines) <= 8 * 60
    assert not (tmp_path / "report").exists()
    assert "configs/fit_3b9.py" in lines[-1][2] and "--attention=fastest\\,plain" in lines[2][2]
    for _, limit, command in lines[1:]:  # what is compiled in time is also timed
        [compiling] = re.findall(r"--max_seconds=(\d+)", command)
        assert int(compiling) < int(limit)


def test_every_network_is_timed(check):
    said = check("--dry_run").stdout
    for name in ("fit_500m", "unet_284m", "dit_500m", "dit_factorised_500m"):
        assert f"configs/{name}.py" in said and (ROOT / "configs" / f"{name}.py").exists()


def test_the_report_joins_those_of_the_parts(check, tmp_path):
    done = check("--out=report")
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "report" / "gpu_check.md").read_text()
    assert re.findall("^#.*", text, re.M) == ["# One GPU, checked", *(f"## Of {p}" for p in PARTS)]
    assert "![" not in text  # the pictures are not there
    numbers = json.loads((tmp_path / "report" / "gpu_check.json").read_text())
    assert numbers == {part: {"rows": []} for part in PARTS}


def test_a_part_that_does_not_end_leaves_the_others_and_exit_code_1(check, tmp_path):
    done = check("--out=report", STOPPED="attention")
    assert done.returncode == 1 and "attention: exit code 143" in done.stderr
    assert (
        "## attention\n\nNothing was measured in time."
        in (tmp_path / "report" / "gpu_check.md").read_text()
    )
    numbers = json.loads((tmp_path / "report" / "gpu_check.json").read_text())
    assert list(numbers) == [part for part in PARTS if part != "attention"]


@pytest.mark.parametrize(
    ("flags", "changes", "says"),
    [
        (["--outt=x"], {}, "unexpected argument '--outt=x'"),
        (["--out="], {}, "unexpected argument '--out='"),
        ([], {"LACKS": "flax"}, "lacks flax"),
        ([], {"NO_GPU": "1"}, "does not run"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(check, flags, changes, says):
    done = check(*flags, **changes)
    assert done.returncode == 2 and done.stdout.count("at most") == 0
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and says in line


def test_help_says_what_it_takes(check):
    said = check("--help").stdout
    assert all(flag in said for flag in ("--out=DIR", "--tiny", "--dry_run", "$PYTHON"))


@pytest.mark.slow
def test_its_tiny_form_runs_on_a_cpu(tmp_path):
    command = ["bash", "launch/gpu_check.sh", "--tiny", f"--out={tmp_path}"]
    environment = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "gpu_check.json").read_text())
    assert all(one["gradient"] <= one["limit"] for one in numbers["step"]["agreements"])
    rows = {part: [row["config"] for row in numbers[part]["rows"]] for part in PARTS[1:]}
    assert rows == {
        "call": ["tiny", "tiny_unet"],
        "attention": ["tiny fastest", "tiny plain"] * 2,
        "training": ["tiny", "tiny_unet"],
        "large": ["tiny", "tiny"],
    }
    assert "| tiny fastest |" in (tmp_path / "gpu_check.md").read_text()
