"""What a configuration costs, counted from the traced program."""

import importlib

import pytest

from snapvideo_jax.planner import estimate

# Of one call on one video, by the compiler's count, which has element-wise work too.
GFLOPS = {"fit_3b9": 6467, "fit_3b9_upsampler": 28819, "unet_85m": 672, "unet_284m": 1786}


@pytest.mark.parametrize("name", GFLOPS)
def test_flops_are_within_two_percent_of_the_compilers(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert estimate.count(config).forward_flops_per_video == pytest.approx(
        GFLOPS[name] * 1e9, rel=0.02
    )


def test_an_encoder_trained_along_is_in_neither_figure():
    from tests import tiny

    config = tiny.get_config()
    small = estimate.count(config)
    config.model.text_encoder.update(layers=2)
    assert estimate.count(config) == small
