"""Measurements: they come back from JSON, and unlike protocols are refused by name."""

import dataclasses
import json

import pytest

from snapvideo_jax.errors import ConfigError, DataError
from snapvideo_jax.evaluation import measurement
from snapvideo_jax.evaluation.measurement import Measurement, Protocol

PROTOCOL = Protocol(
    metric="FVD",
    distance="frechet",
    features="i3d",
    weights_sha256="ab" * 32,
    variant="tf1",
    n_real=2048,
    n_generated=2048,
    reference="UCF-101 train",
    frames=16,
    frame_rate=25.0,
    height=256,
    width=256,
    compression="h264 crf 18",
)
VALUE = Measurement(260.5, None, PROTOCOL, {"checkpoint": "runs/a", "ema": True, "seed": 0})


def test_a_measurement_comes_back(tmp_path):
    measurement.write(tmp_path / "fvd.json", VALUE)
    assert measurement.read(tmp_path / "fvd.json") == VALUE
    assert json.loads((tmp_path / "fvd.json").read_text())["protocol_digest"] == PROTOCOL.digest()


def test_like_protocols_are_compared_whatever_the_model():
    other = dataclasses.replace(VALUE, value=200.25, model={"checkpoint": "runs/b"})
    assert measurement.difference(VALUE, other) == 60.25


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Protocol)])
def test_every_field_of_a_protocol_decides(field):
    value = getattr(PROTOCOL, field)
    changed = dataclasses.replace(PROTOCOL, **{field: value * 2})
    assert changed.digest() != PROTOCOL.digest()
    with pytest.raises(ConfigError) as error:
        measurement.difference(VALUE, dataclasses.replace(VALUE, protocol=changed))
    assert f"unlike protocols: {field} {value!r} and {value * 2!r};" in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "text", "edited", "field", "list"])
def test_a_damaged_or_edited_file_is_one_line(tmp_path, damage):
    path = tmp_path / "fvd.json"
    measurement.write(path, VALUE)
    fields = json.loads(path.read_text())
    if damage == "missing":
        path.unlink()
    if damage == "text":
        path.write_text("FVD 260")
    if damage == "edited":
        fields["protocol"]["n_real"] = 10_000
        path.write_text(json.dumps(fields))
    if damage == "field":
        del fields["protocol"]["frames"]
        path.write_text(json.dumps(fields))
    if damage == "list":
        path.write_text("[1]")
    with pytest.raises(DataError) as error:
        measurement.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
