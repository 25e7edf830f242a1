"""Statistics of real sets: measured one time, and anew where what decides them differs."""

import numpy as np
import pytest

from snapvideo_jax.evaluation import evaluate, moments
from snapvideo_jax.evaluation.evaluate import Setting
from snapvideo_jax.evaluation.metrics import Extractor
from snapvideo_jax.evaluation.sets import RealSet
from snapvideo_jax.sampling.output_folder import WorkShare
from tests.evaluation import inputs

CLIPS = inputs.pixels((9, 2, 8, 8, 3), 0)


def means(videos):
    return videos.reshape(len(videos), -1, 3).mean(1)


@pytest.fixture
def measured(tmp_path):
    """(which clips were read, function that returns the moments of real sets)."""
    read = []
    example = lambda i: read.append(i) or (CLIPS[i], "", 0.0, (8, 8))
    real = RealSet("clips", 9, "fingerprint", (2, 8, 8), example, is_captioned=False)
    networks = {
        "i3d": Extractor("sha", "tf1", False, 3, means),
        "inception": Extractor("sha", "tf1", True, 3, means),
        "c3d": Extractor("sha", "tganv2", False, 3, means),
    }
    setting = Setting(tmp_path, tmp_path, 4, lambda things: lambda done, of: None)

    def measure(changes=None, **more):
        chosen = networks | (changes or {})
        of = real._replace(**more)
        read.clear()
        result = evaluate.real_moments(of, chosen, setting, WorkShare(0, 1))
        return result, sorted(read)

    return measure, networks


def test_real_videos_are_read_one_time_for_all_networks(measured):
    measure, networks = measured
    result, read = measure()
    assert read == list(range(9)) and set(result) == {"i3d", "inception"}  # no distance of c3d's
    expected = {"i3d": means(CLIPS), "inception": means(CLIPS.reshape(18, 1, 8, 8, 3))}
    for name, features in expected.items():
        for here, there in zip(result[name], moments.of(features), strict=True):
            np.testing.assert_allclose(here, there, rtol=1e-12)
    again, read = measure()
    assert read == []
    for name in expected:
        assert all(np.array_equal(a, b) for a, b in zip(result[name], again[name], strict=True))


def test_another_set_variant_or_file_of_weights_is_measured_anew(measured):
    measure, networks = measured
    measure()
    assert measure(fingerprint="other")[1] == list(range(9))
    for changes in ({"variant": "cd_fvd"}, {"sha256": "other"}):
        assert measure({"i3d": networks["i3d"]._replace(**changes)})[1] == list(range(9))
    assert measure()[1] == []
