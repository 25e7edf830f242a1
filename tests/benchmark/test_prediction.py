"""A program that is run beside its prediction, on the devices at hand."""

import jax
import jax.numpy as jnp
import pytest

from snapvideo_jax.benchmark import prediction
from snapvideo_jax.benchmark.programs import _draw, random_arrays
from snapvideo_jax.parallel import chips
from snapvideo_jax.planner import estimate_table, programs
from tests import tiny


@pytest.fixture(scope="module")
def program():
    return planned("float32")


def planned(dtype):
    config = tiny.get_config()
    config.model.dtype = dtype
    config.model.text_encoder.source = "stored"
    return programs.planned(config, "network", jax.devices()[:1])


def test_without_a_data_sheet_rates_are_measured_and_the_slower_of_two_bounds_it(program):
    found = prediction.compare(program)
    assert found.rates.source == "measured by microbenchmarks"
    assert len(found.rounds) == 3 and found.measured == sorted(found.rounds)[1] > 0
    held = sum(program.device_bytes.values())
    bounds = program.flops / found.rates.multiply, held / found.rates.move
    assert found.predicted == max(bounds) > 0
    text = estimate_table.compare(found)
    assert text.startswith("measured ") and "rates (measured by microbenchmarks)" in text


def test_a_data_sheet_is_believed_where_it_gives_the_peak_of_the_dtype(program, monkeypatch):
    sheet = chips.Chip("toy", peak=1e9, hbm=1e6)
    monkeypatch.setattr(chips, "of", lambda kind: sheet)
    monkeypatch.setattr(prediction, "measured_rates", lambda dtype: prediction.Rates(2, 1, "here"))
    rates = [prediction.compare(planned(name)).rates for name in ("bfloat16", "float32")]
    assert rates == [(1e9, 1e6, "data sheet"), (2, 1, "here")]


def test_inputs_that_are_alike_are_made_by_one_program_and_differ():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    kind = jax.ShapeDtypeStruct((5, 7), jnp.float32, sharding=place)
    first, second = random_arrays((kind, kind))
    assert (first != second).any() and 0 <= first.min() and second.max() < 1
    before = _draw.cache_info().misses
    random_arrays((kind, kind))
    assert _draw.cache_info().misses == before
