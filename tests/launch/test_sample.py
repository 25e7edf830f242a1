"""Runs of launch.sample: their work list, what a killed one leaves, and what does not fit it."""

import dataclasses
import itertools
import json
import math
import os
import re
import signal
import time
import types

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from launch import screen
from snapvideo_jax import build, storage
from snapvideo_jax.data.choice import Framing
from snapvideo_jax.errors import ConfigError, DataError, StorageError
from snapvideo_jax.files import video
from snapvideo_jax.sampling import generate as generate_module
from snapvideo_jax.sampling import known_frames, output_folder
from snapvideo_jax.sampling.generate import generate
from snapvideo_jax.sampling.trained import load
from tests.fork_server import ForkServer
from tests.in_process import launch
from tests.launch.test_entry import ENVIRONMENT
from tests.mutations import mutations
from tests.test_storage import fill

SETTINGS = {"steps": 3, "frame_rate": 4.0, "format": "npz", "upsampler": {"steps": 2}}
WORK = output_folder.work_list(["a red circle", "../../a blue square", ""], seed=7, num=2)


def draw(chunk):
    """A video that its prompt and seed decide, in place of a model."""
    return [np.full((2, 16, 16, 3), len(s.prompt) * 5 + s.seed, np.uint8) for s in chunk]


def complete(results, make=draw, batch_size=4, rounds=None):
    rounds = -(-len(results.missing()) // batch_size) if rounds is None else rounds
    for batch in results.batches(batch_size, rounds):
        for sample, frames in zip(batch, make(batch), strict=True):
            results.add(sample, frames)


def finished(folder, **changes):
    folder.mkdir(exist_ok=True)
    results = output_folder.OutputFolder(folder, SETTINGS | changes, WORK)
    complete(results)
    results.finish()
    return folder


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_prompts_are_the_lines_that_are_neither_blank_nor_comments(tmp_path):
    text = "\ufeff# in German \r\na red circle \r\n\n  \nein Fuchs im Schnée # 2"
    (tmp_path / "p.txt").write_bytes(text.encode())
    prompts = output_folder.read_prompts(tmp_path / "p.txt")
    assert prompts == ["a red circle", "ein Fuchs im Schnée # 2"]


@pytest.mark.parametrize(
    "content, says", [(None, "cannot read"), (b" \n# red", "no prompt"), (b"\xff", "not UTF-8")]
)
def test_a_file_without_prompts_is_one_line(tmp_path, content, says):
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"^[^\n]*{says}[^\n]*$"):
        output_folder.read_prompts(tmp_path / "p.txt")


def test_each_prompt_has_the_same_seeds():
    assert [s.seed for s in WORK] == [7, 8] * 3
    assert [s.prompt for s in WORK[2:4]] == ["../../a blue square"] * 2
    assert [s.index for s in WORK] == list(range(6))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_processes_share_the_work_evenly(count):
    shares = [output_folder.WorkShare(i, count).of(WORK) for i in range(count)]
    assert sorted(s.index for part in shares for s in part) == list(range(6))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("name", list(output_folder.FORMATS))
def test_every_format_names_its_files_by_place_and_never_by_prompt(tmp_path, name):
    folder = finished(tmp_path / "out", format=name)
    whole = json.loads((folder / "samples.json").read_text())
    files = [f"{i:05d}{'' if name == 'png' else '.' + name}" for i in range(6)]
    assert sorted(p.name for p in folder.iterdir()) == [*files, "samples.json", "sheet.png"]
    assert whole["samples"][2] == {
        "file": files[2],
        "index": 2,
        "prompt": "../../a blue square",
        "seed": 7,
        "digest": storage.digest(folder / files[2]),
    }
    video = output_folder.FORMATS[name].read(folder / files[2])
    assert abs(int(video[0, 8, 8, 0]) - draw(WORK[2:3])[0][0, 8, 8, 0]) <= 2
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["mp4", "png", "npz"])
def test_a_killed_run_goes_on_to_the_same_files(tmp_path, name):
    whole = contents(finished(tmp_path / "whole", format=name))
    folder, made = tmp_path / "broken", []
    folder.mkdir()
    results = output_folder.OutputFolder(folder, SETTINGS | {"format": name}, WORK)
    write = results.format.write

    def write_three(path, *rest):
        if path.stem == "00003":
            raise Killed
        write(path, *rest)

    results.format = results.format._replace(write=write_three)
    with pytest.raises(Killed):
        complete(results)
    with (folder / "samples.jsonl").open("ab") as part:
        part.write(b'{"file": "00004')  # cut in two
    resumed = output_folder.OutputFolder(folder, SETTINGS | {"format": name}, WORK)
    assert resumed.done == {0, 1, 2}
    complete(resumed, lambda chunk: made.extend(s.index for s in chunk) or draw(chunk), 2)
    assert made == [3, 4, 5]
    assert output_folder.OutputFolder(folder, SETTINGS | {"format": name}, WORK).done == set(
        range(6)
    )
    resumed.finish()
    assert contents(folder) == whole


def test_samples_on_a_full_disk_are_whole_and_go_on_when_there_is_room(disk):
    folder = disk(64 << 10)
    ballast = fill(folder, leave=12 << 10)
    with pytest.raises(StorageError, match="cannot write .*: No space left on device"):
        finished(folder / "out")
    assert not list((folder / "out").glob(".*"))
    ballast.unlink()
    finished(folder / "out")
    assert (folder / "out" / "samples.json").exists()


def test_a_finished_run_makes_nothing_and_changes_nothing(tmp_path):
    folder = finished(tmp_path / "out")
    before = contents(folder)
    results = output_folder.OutputFolder(folder, SETTINGS, WORK)
    assert not results.missing()
    results.finish()
    assert contents(folder) == before


def test_an_infinite_setting_is_kept_and_is_strict_json(tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    folder = finished(tmp_path / "out", S_max=math.inf)
    json.loads((folder / "samples.json").read_text(), parse_constant=refuse)
    assert not output_folder.OutputFolder(folder, SETTINGS | {"S_max": math.inf}, WORK).missing()
    with pytest.raises(ConfigError, match="S_max is 'Infinity' there and 50.0 here"):
        output_folder.OutputFolder(folder, SETTINGS | {"S_max": 50.0}, WORK)


def test_a_sample_without_its_file_is_made_again(tmp_path):
    folder = finished(tmp_path / "out")
    (folder / "00002.npz").unlink()
    assert [s.index for s in output_folder.OutputFolder(folder, SETTINGS, WORK).missing()] == [2]


@pytest.mark.parametrize("name", list(output_folder.FORMATS))
def test_a_sample_whose_file_is_damaged_is_made_again(tmp_path, name):
    folder = finished(tmp_path / "out", format=name)
    before = contents(folder)
    path = next(p for p in sorted(folder.rglob("*")) if p.is_file() and "00004" in str(p))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    results = output_folder.OutputFolder(folder, SETTINGS | {"format": name}, WORK)
    assert [sample.index for sample in results.missing()] == [4]
    complete(results)
    results.finish()
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["samples.json", "samples.jsonl"])
def test_two_hundred_mutations_of_the_records_are_one_line_or_samples_made_again(tmp_path, name):
    folder = finished(tmp_path / "out")
    if name == "samples.jsonl":
        whole = json.loads((folder / "samples.json").read_text())
        rows = [{"settings": SETTINGS}, *whole["samples"]]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "samples.json").unlink()
    content, harmless = (folder / name).read_bytes(), 0
    for damaged in mutations(content, 200):
        (folder / name).write_bytes(damaged)
        try:
            results = output_folder.OutputFolder(folder, SETTINGS, WORK)
            assert results.done <= set(range(6))  # each with its own settings, seed and digest
            harmless += 1
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
    assert (5 if name == "samples.json" else 150) < harmless < 200


def test_a_longer_list_goes_on_in_the_same_folder(tmp_path):
    folder = finished(tmp_path / "out")
    longer = [*WORK, output_folder.Sample(6, "a green triangle", 7)]
    results = output_folder.OutputFolder(folder, SETTINGS, longer)
    complete(results)
    results.finish()
    assert len(json.loads((folder / "samples.json").read_text())["samples"]) == 7


@pytest.mark.parametrize(
    "settings, work, says",
    [
        ({"steps": 4}, WORK, "steps is 3 there and 4 here"),
        ({"steps": 4, "frame_rate": 8.0}, WORK, "steps is 3"),
        ({"upsampler": {"steps": 3}}, WORK, "upsampler.steps is 2 there and 3 here"),
        ({"upsampler": None}, WORK, "upsampler is {'steps': 2} there and None here"),
        ({"format": "gif"}, WORK, "format is 'npz' there and 'gif' here"),
        ({"new": 1}, WORK, "new is None there and 1 here"),
        (
            {},
            output_folder.work_list(["a red circle"], 8, 6),
            r"samples\[0\].seed is 7 there and 8 here",
        ),
        ({}, output_folder.work_list(["a"], 7, 6), r"samples\[0\].prompt is 'a red circle' there"),
        ({}, WORK[:5], r"samples\[5\].index is 5 there and None here"),
    ],
)
@pytest.mark.parametrize("killed", [False, True])
def test_other_settings_are_refused_in_one_line(tmp_path, settings, work, says, killed):
    folder = finished(tmp_path / "out")
    if killed:
        whole = json.loads((folder / "samples.json").read_text())
        rows = [{"settings": SETTINGS}, *whole["samples"]]
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "samples.json").unlink()
    with pytest.raises(ConfigError, match=rf"^[^\n]*{says}[^\n]*--out[^\n]*$"):
        output_folder.OutputFolder(folder, SETTINGS | settings, work)


@pytest.mark.parametrize("content", ["{", "[]", '{"samples": 3}', '{"samples": [3]}', "{}"])
def test_a_samples_json_of_another_program_is_refused(tmp_path, content):
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(ConfigError, match="give another --out"):
        output_folder.OutputFolder(tmp_path, SETTINGS, WORK)


def test_processes_write_into_one_folder_without_meeting(tmp_path):
    whole = contents(finished(tmp_path / "whole"))
    folder, rounds = tmp_path / "out", []
    folder.mkdir()
    parts = [
        output_folder.OutputFolder(folder, SETTINGS, WORK, output_folder.WorkShare(i, 4))
        for i in range(4)
    ]
    complete(parts[0], batch_size=1, rounds=1)
    with pytest.raises(StorageError, match="lacks 5 of 6 samples; every process"):
        parts[0].finish()
    complete(parts[0], batch_size=1, rounds=1)
    for part in parts[1:]:
        complete(part, lambda chunk: rounds.append(1) or draw(chunk), 1, rounds=2)
    assert len(rounds) == 6  # the two that lack one sample compute along with those that lack two
    parts[0].finish()
    assert contents(folder) == whole


def test_another_number_of_processes_goes_on(tmp_path):
    first = output_folder.OutputFolder(tmp_path, SETTINGS, WORK, output_folder.WorkShare(1, 2))
    complete(first, batch_size=2, rounds=1)
    alone = output_folder.OutputFolder(tmp_path, SETTINGS, WORK)
    assert [s.index for s in alone.missing()] == [0, 2, 4, 5]


# What needs a model.


@pytest.fixture(scope="module")
def trained(trained_folder):
    return load(trained_folder)


def generated(trained, batch_size, num=10, **controls):
    settings = build.sampler_settings(trained.config, guidance=2.0)
    prompts = [s.prompt for s in WORK] * 2
    return generate(trained, settings, prompts[:num], range(num), batch_size, **controls)


@pytest.fixture(scope="module")
def videos(trained):
    return generated(trained, 8)


def test_another_batch_size_changes_a_sample_by_rounding_alone(trained, videos):
    assert np.abs(generated(trained, 16).astype(int) - videos).max() <= 1
    assert np.array_equal(generated(trained, 3), videos)  # rounded up to the 8 devices


def test_one_device_makes_what_eight_make(trained, videos):
    mesh, size = build.counting_mesh(), trained.text.vocabulary_size
    alone = dataclasses.replace(
        trained,
        params=jax.tree.map(np.asarray, trained.params),
        denoiser=build.denoiser(trained.config, size, mesh),
        mesh=mesh,
    )
    alone = generated(alone, 1, 4)
    assert np.array_equal(alone, videos[:4])


def test_each_device_holds_its_part_of_the_batch(trained, videos, monkeypatch):
    held, local_rows = [], generate_module.local_rows
    monkeypatch.setattr(
        generate_module, "local_rows", lambda batch: held.append(batch) or local_rows(batch)
    )
    generated(trained, 8, 8)
    assert [shard.data.shape[0] for shard in held[0].addressable_shards] == [1] * 8


def test_a_negative_prompt_and_a_source_size_change_the_sample(trained, videos):
    negative = generated(trained, 8, 2, negative="a yellow square")
    assert not np.array_equal(negative, videos[:2])
    assert not np.array_equal(generated(trained, 8, 2, source_size=(1080, 1920)), videos[:2])
    assert np.array_equal(generated(trained, 8, 2, source_size=(16, 16)), videos[:2])


def test_the_prompt_as_its_own_negative_is_no_guidance(trained):
    settings = build.sampler_settings(trained.config, guidance=0.0)
    plain = generate(trained, settings, ["a red circle"], [3], 1)
    settings = build.sampler_settings(trained.config, guidance=2.0)
    same = generate(trained, settings, ["a red circle"], [3], 1, negative="a red circle")
    assert np.abs(same.astype(int) - plain).max() <= 1


def made(run, out, *flags):
    """What the command writes: (videos, samples.json)."""
    asked = f"--checkpoint={run}", f"--out={out}", "--format=npz", "--prompt=a red circle"
    launch("sample", *asked, *flags)
    files = [output_folder.FORMATS["npz"].read(path) for path in sorted(out.glob("*.npz"))]
    return np.stack(files), json.loads((out / "samples.json").read_text())


def test_a_batch_that_takes_long_says_how_much_is_done(
    trained_folder, tmp_path, monkeypatch, capsys
):
    clock = types.SimpleNamespace(monotonic=itertools.count(0, 4).__next__)
    monkeypatch.setattr(screen, "time", clock)
    made(trained_folder, tmp_path / "short")
    made(trained_folder, tmp_path / "long", "--duration=1", "--frame_rates=2,4")
    pattern = r"^(\d+/\d+ .*) in \d+s(, \d+s left)?$"
    lines = re.findall(pattern, capsys.readouterr().out, re.M)
    assert [things for things, _ in lines] == [
        *(f"{n}/5 denoiser calls of 1 video" for n in range(1, 5)),
        "1/1 videos",
        *(f"{n}/3 windows of 1 video" for n in (1, 2)),
        "1/1 videos",
    ]
    # The first call was compiled in its time: it says nothing of the others.
    assert [left for _, left in lines][:5] == [
        "",
        *(f", {seconds}s left" for seconds in (12, 8, 4)),
        "",
    ]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 4 frames, 4 a second, and its first frame."""
    folder = tmp_path_factory.mktemp("clip")
    frames = np.full((4, 16, 16, 3), 30, np.uint8)
    for k in range(4):
        frames[k, 4 * k :] = 220 - 40 * k
    video.write_mp4(folder / "clip.mp4", frames, 4.0)
    video.write_frames(folder / "frames", frames, 4.0)
    return folder / "clip.mp4", folder / "frames" / "0000.png", frames


def test_a_picture_becomes_the_first_frame(trained_folder, tmp_path, clip):
    _, picture, frames = clip
    videos, how = made(trained_folder, tmp_path, f"--init_image={picture}", "--num=2")
    assert np.array_equal(videos[:, 0], frames[[0, 0]])
    assert not np.array_equal(videos[0, 1], videos[1, 1])
    assert how["known_frames"] == [0] and len(how["known"]) == 64
    with pytest.raises(ConfigError, match=r"known_frames is \[0\] there and None here"):
        made(trained_folder, tmp_path, "--num=2")


def test_known_frames_of_a_video_stay_and_lead_a_long_one(trained_folder, tmp_path, clip):
    path, _, frames = clip
    long = "--duration=1", "--frame_rates=2,4"
    flags = f"--init_video={path}", "--known_frames=3,1", *long
    videos, how = made(trained_folder, tmp_path, *flags)
    assert videos.shape == (1, 4, 16, 16, 3) and how["known_frames"] == [1, 3]
    assert how["span"] == {"duration": 1.0, "frame_rates": [2.0, 4.0]} and how["frame_rate"] == 4
    error = np.abs(videos[0].astype(int) - frames).mean(axis=(1, 2, 3))
    assert (error[[1, 3]] < 5).all() and (error[[0, 2]] > 20).all()  # mp4 loses a little


def test_the_first_half_of_a_video_is_known_where_no_frames_are_named(clip):
    given = known_frames.from_video(str(clip[0]), None, 4, 16, 16, 4.0)
    assert given.mask.tolist() == [True, True, False, False]
    assert given.video[0, 1].std() > 10 and (given.video[0, 2:] == 0).all()


def test_what_training_padded_is_padded_here_too(tmp_path):
    wide = np.full((8, 16, 3), 200, np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    given = known_frames.from_image(str(tmp_path / "wide.png"), 2, 16, 16, Framing("pad"))
    assert (given.video[0, 0, 4:12] == 200).all() and (given.video[0, 0, :4] == 0).all()


@pytest.mark.parametrize(
    "error, says, flags",
    [
        (ConfigError, "--init_image or --init_video, not both", ["--init_image={i}"]),
        (ConfigError, r"--known_frames=\[0, 2\] must be within 0 .. 1", ["--known_frames=0,2"]),
        (ConfigError, "needs a --frame_rate above 0", ["--frame_rate=0"]),
        (ConfigError, "needs both --duration=SECONDS and", ["--duration=1"]),
        (ConfigError, "needs both --duration=SECONDS and", ["--frame_rates=4"]),
        (ConfigError, "no multiple of 4", ["--duration=1", "--frame_rates=4,6"]),
        (ConfigError, "0.25 s is too short", ["--duration=0.25", "--frame_rates=4"]),
        (DataError, "ends", ["--duration=9", "--frame_rates=4", "--known_frames=35"]),
        (flags.Error, "--known_frames=0,x", ["--known_frames=0,x"]),
        (
            ConfigError,
            "--frame_rate does nothing here: it needs a short video",
            ["--frame_rate=2", "--duration=1", "--frame_rates=2,4"],
        ),
    ],
)
def test_known_frames_and_lengths_that_cannot_be_are_one_line(
    trained_folder, tmp_path, clip, error, says, flags
):
    flags = [f"--init_video={clip[0]}", *(flag.format(i=clip[1]) for flag in flags)]
    with pytest.raises(error, match=says) as raised:
        made(trained_folder, tmp_path / "out", *flags)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "flag, needs",
    [
        ("--known_frames=0", "--init_video=FILE"),
        ("--augmentation=0.1", "--upsampler=FOLDER"),
        ("--upsampler_step=3", "--upsampler=FOLDER"),
        ("--upsampler_steps=3", "--upsampler=FOLDER"),
        ("--upsampler_guidance=3", "--upsampler=FOLDER"),
        ("--upsampler_solver=euler", "--upsampler=FOLDER"),
        ("--t5=T5", "a model that was trained on stored text states"),
        ("--negative_prompt=a", "--guidance=W above 0"),
        ("--oscillate", "--guidance=W above 0"),
        ("--guidance_sigma_max=9", "--guidance=W above 0"),
    ],
)
def test_a_flag_that_nothing_would_read_is_refused(trained_folder, tmp_path, flag, needs):
    name = flag.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{name} does nothing here: it needs {needs}$"):
        made(trained_folder, tmp_path / "out", "--guidance=0", flag)


def test_a_solver_that_adds_no_noise_refuses_churn_in_one_line(trained_folder, tmp_path):
    says = (
        r"^S_churn=5: solver=dpmpp_2m adds no noise on the way; give S_churn=0, or another solver$"
    )
    with pytest.raises(ConfigError, match=says):
        made(trained_folder, tmp_path / "out", "--solver=dpmpp_2m", "--S_churn=5", "--nooscillate")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_flags_of_solver_and_interval_decide_the_video_and_are_recorded(
    trained_folder, tmp_path
):
    fast = "--solver=dpmpp_2m", "--nooscillate"
    plain, how = made(trained_folder, tmp_path / "plain", *fast)
    assert (how["solver"], how["guidance_sigma_min"]) == ("dpmpp_2m", 0.0)
    part, how = made(trained_folder, tmp_path / "part", *fast, "--guidance_sigma_min=1")
    assert how["guidance_sigma_min"] == 1.0 and not np.array_equal(part, plain)
    with pytest.raises(ConfigError, match="solver is 'dpmpp_2m' there and 'heun' here"):
        made(trained_folder, tmp_path / "plain", "--nooscillate")


def test_what_training_never_showed_is_noted(trained_folder, tmp_path, capsys):
    prompts = tmp_path / "p.txt"
    prompts.write_text("# two\na red circle\n\na red drum\n")
    made(trained_folder, tmp_path / "out", f"--prompts={prompts}", "--frame_rate=7.5")
    printed = capsys.readouterr().out
    assert "note: no caption of training has the word drum\n" in printed
    assert re.search(r"note: training shows [\d., ]+ frames per second, and not 7.5\n", printed)
    made(trained_folder, tmp_path / "known", "--frame_rate=0")
    assert "note" not in capsys.readouterr().out


def test_a_killed_command_of_32_samples_ends_with_the_same_files(trained_folder, tmp_path):
    prompts, whole, broken = (tmp_path / name for name in ("p.txt", "whole", "broken"))
    prompts.write_text("\n".join(f"a red circle moves left {i}" for i in range(8)))
    flags = (
        *(f"--checkpoint={trained_folder}", f"--prompts={prompts}", "--num=4", "--batch_size=8"),
        *("--format=npz", "--seed=3", "--steps=60"),  # so many that there is time to kill it
    )
    with ForkServer(ENVIRONMENT) as commands:
        pid = commands.start("sample", *flags, f"--out={broken}")
        while not (broken / "00003.npz").exists():
            os.kill(pid, 0)  # raises where it has ended
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert commands.wait().returncode == -signal.SIGKILL
        assert not (broken / "samples.json").exists()
        for out in (whole, broken):
            done = commands.launch("sample", *flags, f"--out={out}")
            assert done.returncode == 0, done.stderr
            assert ("videos are in" in done.stdout) == (out == broken)
    assert len(contents(whole)) == 34
    assert contents(broken) == contents(whole)
