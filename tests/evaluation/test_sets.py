"""What protocols sample: prompts from a data set's own text, and which real videos they meet."""

import collections
import json

import numpy as np
import pytest

from snapvideo_jax import build
from snapvideo_jax.data import shapes
from snapvideo_jax.data.world import compositions
from snapvideo_jax.errors import ConfigError, DataError
from snapvideo_jax.evaluation import oracle, sets
from snapvideo_jax.files import video
from tests import tiny
from tests.evaluation import inputs

CLIPS = inputs.pixels((6, 16, 16, 24, 3), 0)
CLASSES = ("ApplyEyeMakeup", "YoYo", "TaiChi")


def refusal(call, kind=DataError):
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def ucf(tmp_path):
    """(folder, list): four videos of the first class, one of each other."""
    names = [f"{CLASSES[max(0, i - 3)]}/v_{i}.npz" for i in range(6)]
    for name, clip in zip(names, CLIPS, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        video.write_npz(tmp_path / name, clip, 25)
    (tmp_path / "list.txt").write_text("".join(f"{name} 1\n" for name in names))
    return tmp_path, tmp_path / "list.txt"


def of_ucf101(ucf, prompts="", num=6000, seed=0):
    folder, split = map(str, ucf)
    return sets.of_ucf101(folder, split, prompts, num, seed)


def test_classes_of_ucf101_are_drawn_as_often_as_in_the_split(ucf):
    samples = of_ucf101(ucf).samples
    counts = collections.Counter(samples.prompts)
    expected = {"apply eye makeup": 4000, "yo yo": 1000, "tai chi": 1000}
    for words, count in expected.items():
        assert abs(counts[f"a video of {words}"] - count) < 150  # 4 standard deviations
    assert samples.prompts[:50] != sorted(samples.prompts[:50]) and samples.source_size == (
        240,
        320,
    )
    assert samples == of_ucf101(ucf).samples != of_ucf101(ucf, seed=1).samples
    assert len(of_ucf101(ucf, num=None).samples.prompts) == 10_000


def test_written_prompts_of_classes_replace_the_template_and_none_may_lack(ucf, tmp_path):
    lines = ["ApplyEyeMakeup: a woman paints her eyes: slowly", "YoYo:a yo-yo", "", "TaiChi: x"]
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(lines))
    prompts = set(of_ucf101(ucf, str(path)).samples.prompts)
    assert prompts == {"a woman paints her eyes: slowly", "a yo-yo", "x"}
    path.write_text("\n".join(lines[:2]))
    assert "prompts.txt: lacks a line 'TaiChi: PROMPT' and 0 more" in refusal(
        lambda: of_ucf101(ucf, str(path))
    )


def test_the_real_videos_are_those_of_the_list_and_all_must_be_there(ucf):
    real = of_ucf101(ucf).real
    assert (real.count, real.video_shape, real.name) == (
        6,
        (16, 16, 24),
        "UCF-101, list, first 16 frames",
    )
    np.testing.assert_array_equal(real.example(4)[0], CLIPS[4])
    (ucf[0] / "TaiChi/v_5.npz").unlink()
    assert f"lacks 1 of the 6 videos that {ucf[1]} lists, the first TaiChi/v_5.npz" in refusal(
        lambda: of_ucf101(ucf)
    )


def test_a_fingerprint_is_of_names_and_sizes(ucf):
    before = of_ucf101(ucf).real.fingerprint
    assert before == of_ucf101(ucf, num=5, seed=3).real.fingerprint
    video.write_npz(ucf[0] / "TaiChi/v_5.npz", CLIPS[5][:, ::-1], 25)
    assert before != of_ucf101(ucf).real.fingerprint


def test_a_short_or_another_size_of_real_video_names_its_file(ucf):
    video.write_npz(ucf[0] / "YoYo/v_4.npz", CLIPS[4][:15], 25)
    video.write_npz(ucf[0] / "TaiChi/v_5.npz", CLIPS[5][:, :, :16], 25)
    real = of_ucf101(ucf).real
    assert "v_4.npz: has 15 frames, the protocol takes 16" in refusal(lambda: real.example(4))
    assert "v_5.npz: is 16 x 16, the set began with 16 x 24" in refusal(lambda: real.example(5))


@pytest.fixture
def msrvtt(tmp_path):
    """A folder of three videos, two of them of the test split, and the data set's JSON."""
    for i, clip in enumerate(CLIPS[:3]):
        video.write_npz(tmp_path / f"video{i}.npz", clip, 25)
    videos = [{"video_id": f"video{i}", "split": "test" if i else "train"} for i in range(3)]
    rows = [{"video_id": f"video{i % 3}", "caption": f"caption {i}"} for i in range(9)]
    (tmp_path / "info.json").write_text(json.dumps({"videos": videos, "sentences": rows}))
    return tmp_path


def of_msrvtt(folder, name="info.json", num=None, seed=0):
    return sets.of_msrvtt(str(folder), str(folder / name), num, seed)


def test_msrvtt_has_a_sample_for_every_caption_of_a_test_video(msrvtt):
    samples, real = of_msrvtt(msrvtt).samples, of_msrvtt(msrvtt).real
    expected = [f"caption {i}" for i in range(9) if i % 3]
    assert sorted(samples.prompts) == expected != samples.prompts  # in a random order
    assert real.count == 2 and not real.is_captioned
    np.testing.assert_array_equal(real.example(0)[0], CLIPS[1])
    assert len(of_msrvtt(msrvtt, num=4).samples.prompts) == 4


def test_msrvtts_captions_may_be_lines(msrvtt):
    (msrvtt / "captions.txt").write_text("a\nb\n\nc\nd\n")
    chosen = of_msrvtt(msrvtt, "captions.txt")
    assert sorted(chosen.samples.prompts) == ["a", "b", "c", "d"] and chosen.real.count == 3


def test_what_msrvtt_lacks_is_one_line(msrvtt):
    says = refusal(lambda: of_msrvtt(msrvtt, num=7), ConfigError)
    assert says.startswith("--num_samples=7: there are 6 captions in")
    (msrvtt / "video2.npz").unlink()
    assert "lacks 1 of the 2 test videos" in refusal(lambda: of_msrvtt(msrvtt))
    for text in ("[1]", "{", '{"videos": [], "sentences": []}', '{"videos": [{"video_id": 1}]}'):
        (msrvtt / "info.json").write_text(text)
        assert "info.json: " in refusal(lambda: of_msrvtt(msrvtt))
    assert "cannot be read as text" in refusal(lambda: of_msrvtt(msrvtt, "none.txt"))


def test_a_folder_gives_each_of_its_videos_one_time_with_its_caption(tmp_path):
    for i, clip in enumerate(CLIPS):
        video.write_mp4(tmp_path / f"{i}.mp4", np.full_like(clip, 40 * i), 8, scale=1)
        (tmp_path / f"{i}.txt").write_text(f"caption {i}")
    chosen = sets.of_reference(str(tmp_path), (4, 8, 12), 4.0, None, 0)
    captions = chosen.samples.prompts
    assert sorted(captions) == [f"caption {i}" for i in range(6)] != captions
    for i, caption in enumerate(captions):
        clip, text, interval, size = chosen.real.example(i)
        assert (text, interval, size) == (caption, 0.25, (16, 24)) and clip.shape == (4, 8, 12, 3)
        assert abs(clip.mean() - 40 * int(caption[-1])) < 6
    part = sets.of_reference(str(tmp_path), (4, 8, 12), 4.0, 5, 0)
    assert part.samples.prompts == captions[:5]
    assert part.real.fingerprint != chosen.real.fingerprint
    padded = sets.of_reference(str(tmp_path), (4, 12, 12), 4.0, None, 0, aspect="pad").real
    cut = sets.of_reference(str(tmp_path), (4, 12, 12), 4.0, None, 0).real
    assert padded.fingerprint != cut.fingerprint
    bars = [real.example(captions.index("caption 5"))[0][:, :2].mean() for real in (padded, cut)]
    assert bars[0] == 0 and bars[1] > 190
    (tmp_path / "3.mp4").write_bytes(b"")
    damaged = sets.of_reference(str(tmp_path), (4, 8, 12), 4.0, None, 0).real
    with pytest.raises(DataError, match=r"3\.mp4: .*a distance needs every one"):
        for i in range(6):
            damaged.example(i)


def test_of_several_captions_the_prompt_is_the_one_that_the_video_is_shown_with(tmp_path):
    rows = [{"video": f"{i}.mp4", "captions": ["one", "two", "three"]} for i in range(6)]
    for i, clip in enumerate(CLIPS):
        video.write_mp4(tmp_path / f"{i}.mp4", clip, 8, scale=1)
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen = sets.of_reference(str(tmp_path), (4, 8, 12), 4.0, None, 0)
    assert chosen.samples.prompts == [chosen.real.example(i)[1] for i in range(6)]
    assert len(set(chosen.samples.prompts)) > 1


def test_shapes_are_half_held_out_and_are_not_those_of_training():
    world = build.world(tiny.get_config())
    chosen = sets.of_shapes(world, 4.0, 6, seed=3)
    prompts, real = chosen.samples.prompts, chosen.real
    facts = [{shapes.caption(c) for c in compositions(world, held_out)} for held_out in (0, 1)]
    assert set(prompts[:6]) <= facts[0] and set(prompts[6:]) <= facts[1]
    clips, captions, intervals, _ = zip(*map(real.example, range(8)), strict=True)
    assert all(text in facts[i % 2] for i, text in enumerate(captions)) and set(intervals) == {0.25}
    scored = oracle.score(clips, captions, world, intervals)
    assert scored["color"] == 1
