"""Evaluations of a trained run: sweeps, resuming, protocols, and comparing two results."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from absl import flags

from snapvideo_jax.errors import ConfigError, DataError
from snapvideo_jax.evaluation import job, metrics, noise_levels, result, sets
from snapvideo_jax.evaluation.metrics import Extractor
from snapvideo_jax.evaluation.result import Result, Value
from snapvideo_jax.files import video
from snapvideo_jax.sampling import stage, trained
from snapvideo_jax.sampling.trained import Trained
from tests import tiny
from tests.evaluation import inputs
from tests.in_process import launch
from tests.launch.test_hosts import ENVIRONMENT, ROOT, run_job


@pytest.fixture(autouse=True, scope="module")
def load_one_time():
    """Evaluations of one run share its model and compiled programs; test_entry.py's do not."""
    loaded, load = {}, trained.load

    def remembered(folder, step, t5, log):
        if folder not in loaded:
            loaded[folder] = load(folder, step, t5, log)
        return loaded[folder]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "load", remembered)
        patch.setattr(Trained, "cast_kernels", lambda model: model)  # it takes the memory
        yield


def evaluate(run, folder, *flags):
    """The report that is written, beside what the flags ask for."""
    out = folder / "report.json"
    cache = f"--cache={folder / 'cache'}"
    launch("evaluate", f"--checkpoint={run}", f"--out={out}", cache, *flags)
    assert not (folder / "report.json.parts").exists()
    return json.loads(out.read_text())


MANY = "--num_samples=8", "--steps=3", "--batch_size=8"


@pytest.fixture(scope="module")
def swept(trained_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    plot = folder / "scores.png"
    swept = "--solver=heun,dpmpp_2m", "--guidance=0,1.5", "--nooscillate"
    return evaluate(trained_folder, folder, *MANY, *swept, f"--plot={plot}"), plot


def test_a_run_on_videos_of_ones_own_learns_which_protocol_is_its(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.data.source = "folder"
    model = types.SimpleNamespace(config=config)
    stage1 = types.SimpleNamespace(trained=model)
    monkeypatch.setattr(stage, "load", lambda *arguments: stage1)
    with pytest.raises(ConfigError, match="of your own: --protocol=reference --real=DIR$"):
        launch("evaluate", "--checkpoint=c", f"--out={tmp_path / 'o.json'}")


def test_a_sweep_has_a_row_for_every_combination_and_the_report_of_the_first(swept):
    report, plot = swept
    rows = report["sweep"]
    combinations = [("heun", 0.0), ("heun", 1.5), ("dpmpp_2m", 0.0), ("dpmpp_2m", 1.5)]
    assert [(row["solver"], row["guidance"]) for row in rows] == combinations
    assert [row["evaluations"] for row in rows] == [5, 10, 3, 6]
    assert all(0 < row["seconds"] < 60 for row in rows)
    assert rows[0]["oracle"] == report["oracle"]
    assert report["choices"]["sampling"]["first"]["solver"] == "heun"
    assert all(row["oracle"]["n"] == row["oracle"]["held_out"]["n"] == 8 for row in rows)
    assert len({row["oracle"]["clutter"] for row in rows}) == 4  # each was sampled by itself
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_one_combination_scores_as_it_does_in_a_sweep(swept, trained_folder, tmp_path, capsys):
    flags = "--solver=dpmpp_2m", "--guidance=1.5", "--nooscillate"
    report = evaluate(trained_folder, tmp_path, *MANY, *flags)
    assert report["oracle"] == swept[0]["sweep"][3]["oracle"]
    assert report["values"] == swept[0]["sweep"][3]["values"]
    printed = capsys.readouterr().out
    assert "16/16 videos" in printed and "chance" in printed
    assert "left out: random_conv needs 65 samples and real videos" in printed
    expected = {"flicker", "speed", "dynamic_degree", *noise_levels.NAMES, "held out: all"}
    assert expected <= set(report["values"])


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--steps=8,many", "--steps"),
        ("--steps=8,0", "must be 1 to 64 values"),
        ("--guidance=", "--g"),
        ("--solver=heun,ddim", "must be 1 to 3 values between commas, each one of heun, euler"),
    ],
)
def test_what_is_no_list_of_numbers_is_a_flag_error(tmp_path, flag, says):
    with pytest.raises(flags.Error, match=says):
        launch("evaluate", "--checkpoint=no/such", "--out=o", flag)


def test_a_plot_of_no_sweep_is_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match="--plot draws a sweep; give several"):
        launch("evaluate", "--checkpoint=no/such", "--out=o", "--plot=p.png", "--steps=8")


CLIPS = np.repeat(inputs.pixels((12, 2, 16, 16, 3), 0), 4, axis=1)  # 8 frames, a change a second


def means(videos):
    """Three numbers a video or frame, in the place of a network's features."""
    return videos.reshape(len(videos), -1, 3).mean(1).astype(np.float32)


def lengths(texts):
    return np.array([[len(text), 1, 2] for text in texts], np.float32)


@pytest.fixture
def networks(monkeypatch):
    """Flags that name weights of networks, which are faked: they have tests of their own."""
    whole = metrics.load

    def load(network, variant, *, weights="", mean="", merges=""):
        if network == "random_conv":
            return whole(network, variant)
        assert weights == f"{network}.pt" and variant == metrics.VARIANTS[network][0]
        assert merges == "merges.txt" and (network != "c3d" or mean == "mean.npz")
        texts = lengths if network == "clip" else None
        return Extractor(f"{network}-sha", variant, network == "clip", 3, means, 1, texts)

    monkeypatch.setattr(metrics, "load", load)
    names = "i3d", "clip", "c3d"
    files = "--merges=merges.txt", "--c3d_mean=mean.npz"
    return (*(f"--{name}={name}.pt" for name in names), *files)


@pytest.fixture
def captioned(tmp_path):
    """A folder of twelve captioned videos."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for i, clip in enumerate(CLIPS):
        video.write_mp4(folder / f"{i}.mp4", clip, 8, scale=1)
        (folder / f"{i}.txt").write_text(f"a red circle moves {i}")
    return folder


def stop_after(monkeypatch, batches):
    """Stops the command when it has measured as many batches."""
    write, done = job._write, []

    def stopping(path, arrays):
        if len(done) == batches:
            raise KeyboardInterrupt
        done.append(path)
        write(path, arrays)

    monkeypatch.setattr(job, "_write", stopping)


def test_a_stopped_evaluation_goes_on_and_ends_with_the_bits_of_an_unbroken_one(
    trained_folder, tmp_path, captioned, networks, monkeypatch
):
    flags = "--protocol=reference", f"--real={captioned}", "--batch_size=4", *networks
    (tmp_path / "whole").mkdir()
    report = evaluate(trained_folder, tmp_path / "whole", *flags)
    (tmp_path / "stopped").mkdir()
    for batches in (4, 4):  # of nine: three each of real videos, losses and samples
        with monkeypatch.context() as patch:
            stop_after(patch, batches)
            with pytest.raises(KeyboardInterrupt):
                evaluate(trained_folder, tmp_path / "stopped", *flags)
    assert len(list((tmp_path / "stopped/report.json.parts").rglob("*.npz"))) == 5
    evaluate(trained_folder, tmp_path / "stopped", *flags)
    bits = [(tmp_path / name / "report.json").read_bytes() for name in ("whole", "stopped")]
    assert bits[0] == bits[1]
    choices = report["choices"]
    assert choices["prompts"]["count"] == choices["real"]["count"] == 12
    assert choices["seed"] == 0 and choices["sampling"]["first"]["steps"] == 3
    assert choices["metrics"]["i3d"] == {
        "variant": "tf1", "weights_sha256": "i3d-sha", "more_sha256": "",
    }  # fmt: skip
    assert set(report["values"]) == {
        "fvd", "fvd limit", "clip_fid", "clip_fid limit", "clipsim", "is", "flicker", "speed",
        "dynamic_degree", *noise_levels.NAMES,
    }  # fmt: skip
    model = report["model"]["first"]
    assert model["checkpoint"] == str(trained_folder) and model["step"] == 3


def real_clips(folder, names):
    for name, clip in zip(names, CLIPS, strict=False):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        video.write_npz(folder / name, clip, 8)


@pytest.mark.parametrize("protocol", ["ucf101", "msrvtt"])
def test_data_sets_are_protocols(trained_folder, tmp_path, networks, monkeypatch, protocol):
    monkeypatch.setattr(sets, "FRAMES", 2)  # as the model makes, in the place of 16
    text, names = tmp_path / "text.txt", [f"YoYo/{i}.npz" for i in range(5)]
    real_clips(tmp_path / "real", names if protocol == "ucf101" else [f"{i}.npz" for i in range(5)])
    text.write_text("".join(f"{name}\n" for name in names))
    flag = {"ucf101": f"--split={text}", "msrvtt": f"--captions={text}"}[protocol]
    flags = f"--protocol={protocol}", f"--real={tmp_path / 'real'}", flag, *networks
    if protocol == "ucf101":
        flags = (*flags, "--num_samples=10")
    else:
        flags = [flag for flag in flags if "c3d" not in flag]  # ten parts of 5 samples are refused
    report = evaluate(trained_folder, tmp_path, *flags)
    assert report["protocol"] == protocol and report["choices"]["real"]["video"] == [2, 16, 16]
    expected = {"ucf101": [10, [240, 320]], "msrvtt": [5, [16, 16]]}[protocol]
    assert [report["choices"]["prompts"]["count"], report["choices"]["source_size"]] == expected
    assert {"fvd", "clip_fid", "clipsim"} <= set(report["values"])
    assert ("is" in report["values"]) == (protocol == "ucf101")


def test_what_does_not_suffice_is_said_before_anything_is_sampled(
    trained_folder, tmp_path, captioned, networks
):
    flags = "--protocol=reference", f"--real={captioned}"
    says = "fvd needs 4 samples and real videos for a covariance of 3 numbers, there are 3 and 3"
    with pytest.raises(DataError, match=f"^{says}$"):
        evaluate(trained_folder, tmp_path, *flags, *networks, "--num_samples=3")
    with pytest.raises(DataError, match="^an inception score needs 10 samples, there are 9$"):
        evaluate(trained_folder, tmp_path, *flags, *networks, "--num_samples=9")
    with pytest.raises(ConfigError, match="^--num_samples=13: there are 12 videos in"):
        evaluate(trained_folder, tmp_path, *flags, *networks, "--num_samples=13")
    (tmp_path / "captions.txt").write_text("a caption")
    video.write_npz(tmp_path / "clips/a.npz", np.repeat(CLIPS[0], 2, axis=0), 8)
    flags = "--protocol=msrvtt", f"--real={captioned}", f"--captions={tmp_path / 'captions.txt'}"
    with pytest.raises(DataError, match="0.mp4: has 8 frames, the protocol takes 16"):
        evaluate(trained_folder, tmp_path, *flags)
    assert not (tmp_path / "report.json.parts").exists()


REFUSALS = {
    "--checkpoint is required for --protocol=shapes": ("--out=o",),
    "--out is required for --protocol=shapes": ("--checkpoint=c",),
    "--split is required for --protocol=ucf101": (
        "--checkpoint=c", "--out=o", "--protocol=ucf101", "--real=r",
    ),
    "--captions does nothing here: it needs --protocol=msrvtt": (
        "--checkpoint=c", "--out=o", "--captions=f",
    ),
    "--real does nothing here: it needs another protocol than shapes": (
        "--checkpoint=c", "--out=o", "--real=f",
    ),
    "--c3d does nothing here: it needs --c3d_mean": ("--checkpoint=c", "--out=o", "--c3d=f"),
    "--compare needs two results: --compare=A.json,B.json": ("--compare=a",),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSALS)
def test_flags_that_lack_or_that_nothing_reads_are_one_line(message):
    with pytest.raises(ConfigError) as error:
        launch("evaluate", *REFUSALS[message])
    assert str(error.value) == message


def test_weights_of_another_network_are_one_line(trained_folder, tmp_path, captioned):
    np.savez(tmp_path / "w.npz", x=np.ones(3))
    flags = "--protocol=reference", f"--real={captioned}", f"--inception={tmp_path / 'w.npz'}"
    with pytest.raises(DataError, match=r"w\.npz: lacks '.*'; is it a file of this network\?"):
        evaluate(trained_folder, tmp_path, *flags)


def test_two_results_are_compared_or_what_differs_is_said(tmp_path, capsys):
    for name, seed, value in (("a", 0, 9.5), ("b", 0, 8.0), ("c", 1, 7.0)):
        choices = {"protocol": "ucf101", "seed": seed}
        of = Result(choices, {"first": {"step": seed}}, {"fvd": Value(value)}, {})
        result.write(tmp_path / f"{name}.json", of)
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    launch("evaluate", f"--compare={a},{b}")
    assert capsys.readouterr().out.splitlines()[-1].split() == ["fvd", "9.5", "8", "-1.5"]
    with pytest.raises(ConfigError, match="^results of unlike protocols: seed 0 and 1; measure"):
        launch("evaluate", f"--compare={a},{c}")


@pytest.mark.slow
def test_two_processes_share_an_evaluation_and_end_with_the_values_of_one(
    servers, trained_folder, tmp_path
):
    flags = f"--checkpoint={trained_folder}", "--num_samples=33", "--batch_size=8"
    reports = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        command = "evaluate", *flags, f"--out={out}", f"--cache={tmp_path / str(count)}"
        both = count > 1
        for code, _, stderr in run_job(servers, command, command) if both else [run_alone(command)]:
            assert code == 0, stderr
        reports.append(json.loads(out.read_text()))
    one, two = reports
    assert one["protocol_id"] == two["protocol_id"]
    assert {"random_conv", "factors", "factors limit"} <= set(one["values"])
    for name, value in one["values"].items():
        assert two["values"][name]["value"] == pytest.approx(value["value"], rel=1e-3, abs=1e-3)


def run_alone(command):
    """(exit code, stdout, stderr) of one process with as many devices as two of a job have."""
    name, *flags = command
    environment = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr
