"""The command that measures folders of videos."""

import gzip
import json

import numpy as np
import pytest

from snapvideo_jax.errors import ConfigError, DataError
from snapvideo_jax.evaluation import distances, moments, scores
from snapvideo_jax.evaluation.features import clip, clip_tokens, i3d, inception, random_conv
from snapvideo_jax.evaluation.features.clip_names import Sizes, Tower
from snapvideo_jax.evaluation.features.weights import Weights
from snapvideo_jax.files import video
from tests.evaluation import inputs, networks
from tests.in_process import launch

N, T = 70, 4
REAL, FAKE = inputs.pixels((N, T, 16, 16, 3), 0), inputs.pixels((N, T, 16, 16, 3), 1) // 2
SIZES = Sizes(Tower(64, 1, 1), Tower(64, 1, 1), patch=8, side=16, tokens=49408, embedding=6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name, clips in (("real", REAL), ("fake", FAKE)):
        (folder / name).mkdir()
        for i, each in enumerate(clips):
            video.write_npz(folder / name / f"{i:03d}.npz", each, 8)
    return folder


def measure(folders, out, metric, *flags, real=True, frames=T):
    sets = [f"--generated={folders / 'fake'}", *([f"--real={folders / 'real'}"] if real else [])]
    launch("metrics", f"--metric={metric}", *sets, f"--frames={frames}", f"--out={out}", *flags)
    return json.loads(out.read_text())


def test_a_distance_is_that_of_all_features_whatever_the_batches(folders, tmp_path):
    flags = ("--batch_size=13", "--frame_rate=8", "--reference=blocks")
    report = measure(folders, tmp_path / "d.json", "random_conv", *flags)
    of_sets = [moments.of(random_conv.features(x)) for x in (REAL, FAKE)]
    assert report["value"] == pytest.approx(distances.frechet_distance(*of_sets), rel=1e-5)
    protocol = report["protocol"]
    assert (protocol["n_real"], protocol["n_generated"], protocol["frames"]) == (N, N, T)
    assert (protocol["height"], protocol["reference"]) == (16, "blocks")


@pytest.fixture
def random_numbers(monkeypatch):
    """Three numbers a video in the place of the random network's 64, so that 70 videos are many."""
    monkeypatch.setattr(random_conv, "FEATURES", 3)
    monkeypatch.setattr(random_conv, "features", means)
    return [means(REAL), means(FAKE)]


def test_a_distance_is_extrapolated_to_infinitely_many_videos(folders, tmp_path, random_numbers):
    report = measure(folders, tmp_path / "l.json", "random_conv", "--distance=limit")
    real, fake = random_numbers
    expected = distances.frechet_limit(moments.of(real), fake, smallest=7, seed=0)
    assert (report["value"], report["error"]) == pytest.approx(tuple(expected))
    assert report["protocol"]["distance"] == "limit"


@pytest.mark.parametrize("name, kernel", [("mmd", "polynomial"), ("gaussian_mmd", "gaussian")])
def test_the_maximum_mean_discrepancy_has_an_error(folders, tmp_path, random_numbers, name, kernel):
    report = measure(folders, tmp_path / "m.json", "random_conv", f"--distance={name}")
    expected = distances.mmd(*random_numbers, getattr(distances, kernel))
    assert (report["value"], report["error"]) == pytest.approx(tuple(expected))


def test_too_few_videos_for_a_limit_are_one_line(folders, tmp_path):
    with pytest.raises(DataError, match="needs 256 samples of 64 numbers, has 70; take more"):
        measure(folders, tmp_path / "l.json", "random_conv", "--distance=limit")


def test_values_of_one_protocol_are_compared_and_others_are_refused(folders, tmp_path, capsys):
    measure(folders, tmp_path / "a.json", "random_conv")
    measure(folders, tmp_path / "b.json", "random_conv", f"--compare={tmp_path / 'a.json'}")
    assert "+0 against" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="unlike protocols: n_real 66 and 70, n_generated"):
        flags = ("--num_videos=66", f"--compare={tmp_path / 'a.json'}")
        measure(folders, tmp_path / "c.json", "random_conv", *flags)


def test_motion_needs_no_real_videos(folders, tmp_path):
    report = measure(folders, tmp_path / "m.json", "motion", "--num_videos=2", real=False)
    assert set(report) == {"flicker", "smoothness", "speed", "dynamic_degree"}


def test_clipsim_pairs_captions_with_videos_in_order(folders, tmp_path):
    arrays = networks.tensors(clip.CLIP(SIZES), *clip.abstract_inputs(SIZES))
    weights = networks.write(tmp_path / "clip.safetensors", arrays)
    lines = "".join(f"{i} {i}\n" for i in range(clip_tokens.MERGES))
    (tmp_path / "m.txt.gz").write_bytes(gzip.compress(("#\n" + lines).encode()))
    captions = ["red one", "blue two", "a", "no b", "x"]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    flags = (f"--weights={weights}", f"--merges={tmp_path / 'm.txt.gz'}", "--num_videos=5")
    flags = (*flags, f"--captions={tmp_path / 'captions.txt'}", "--batch_size=2")
    report = measure(folders, tmp_path / "c.json", "clipsim", *flags, real=False)
    loaded, merges = clip.load(weights), clip_tokens.read_vocabulary(tmp_path / "m.txt.gz")
    texts = clip.text_features(loaded, merges, captions)
    expected = scores.clipsim(clip.frame_features(loaded, FAKE[:5]), texts)
    assert (report["value"], report["error"]) == pytest.approx(tuple(expected), abs=1e-5)
    assert report["protocol"]["weights_sha256"] == loaded.weights.sha256
    with pytest.raises(DataError, match="captions.txt: has 5 lines, the set 70 videos"):
        rest = [flag for flag in flags if "num_videos" not in flag]
        measure(folders, tmp_path / "c.json", "clipsim", *rest, real=False)


def means(batch):
    return batch.reshape(len(batch), -1, 3).mean(1)


@pytest.mark.parametrize("metric", ["fvd", "fid", "kid"])
def test_networks_are_loaded_by_metric_and_fed_videos_or_frames(
    folders, tmp_path, monkeypatch, metric
):
    place, shapes = i3d if metric == "fvd" else inception, []

    def load(path, sha256):  # loading and the network itself have tests of their own
        assert (path, sha256) == ("w.safetensors", "0123abcd")
        return Weights(None, path, "0123abcd" * 8)

    def features(loaded, batch, *variant):
        shapes.append(batch.shape)
        values = means(batch)
        return inception.Features(values, values) if place is inception else values

    monkeypatch.setattr(place, "load", load)
    monkeypatch.setattr(place, "features", features)
    variant = "cd_fvd" if metric == "fvd" else "half_pixel"
    flags = ("--weights=w.safetensors", "--sha256=0123abcd", f"--variant={variant}")
    flags = (*flags, "--batch_size=30")
    if metric == "kid":
        with pytest.raises(DataError, match="KID takes subsets of 1000 samples"):
            measure(folders, tmp_path / "k.json", metric, *flags)
    else:
        report = measure(folders, tmp_path / "f.json", metric, *flags)
        assert report["protocol"]["variant"] == variant
        assert report["protocol"]["weights_sha256"] == "0123abcd" * 8
        shape = (-1, 1, 16, 16, 3) if place is inception else REAL.shape
        of_sets = [moments.of(means(x.reshape(shape))) for x in (REAL, FAKE)]
        assert report["value"] == pytest.approx(distances.frechet_distance(*of_sets), rel=1e-9)
    frames = place is inception
    # The last batch is filled up, so that one program measures them all.
    assert set(shapes) == {(30 * T, 16, 16, 3) if frames else (30, T, 16, 16, 3)}


REFUSALS = {
    "--metric=fvd needs --real": ("fvd", False, ()),
    "--metric=motion takes no --real": ("motion", True, ()),
    "--metric=fvd needs --weights; see docs/metrics.md": ("fvd", True, ()),
    "--variant=clean is not one of fvd's: tf1, cd_fvd, videogpt": (
        "fvd", True, ("--variant=clean",),
    ),
    "--distance does nothing here: it needs a metric of two sets other than kid": (
        "kid", True, ("--distance=mmd",),
    ),
    "--metric=clipsim needs --weights; see docs/metrics.md": ("clipsim", False, ()),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSALS)
def test_flags_that_do_not_fit_are_one_line(folders, tmp_path, message):
    metric, real, flags = REFUSALS[message]
    with pytest.raises(ConfigError) as error:
        measure(folders, tmp_path / "x.json", metric, *flags, real=real)
    assert str(error.value) == message
    assert not (tmp_path / "x.json").exists()


def test_sets_and_weights_that_do_not_fit_are_one_line(folders, tmp_path):
    with pytest.raises(DataError, match="fake: holds 70 videos, expected 2048"):
        measure(folders, tmp_path / "x.json", "random_conv", "--num_videos=2048")
    with pytest.raises(DataError, match=r"000.npz: has 4 frames, the protocol takes 16"):
        measure(folders, tmp_path / "x.json", "random_conv", frames=16)
    with pytest.raises(DataError, match="the real set has 20 samples, and a covariance of 64"):
        measure(folders, tmp_path / "x.json", "random_conv", "--num_videos=20")
    np.savez(tmp_path / "w.npz", x=np.ones(3))
    flags = (f"--weights={tmp_path / 'w.npz'}", "--sha256=00000000")
    with pytest.raises(DataError, match=r"w.npz: has the sha256 \w+, expected 00000000"):
        measure(folders, tmp_path / "x.json", "fid", *flags)
