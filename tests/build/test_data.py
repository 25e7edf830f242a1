"""What a config may ask of data, and how captions enter: with the vocabulary of the training."""

import pytest

from snapvideo_jax import build
from snapvideo_jax.build import checks
from snapvideo_jax.data.text import train_vocabulary
from snapvideo_jax.errors import ConfigError, DataError
from tests import tiny
from tests.mutations import mutations

MIXTURE = (("shapes", "", 0, 1),)
CAPTIONS = ["a red circle moves left", "a blue square moves up quickly"]


def test_two_hundred_mutations_of_a_vocabulary_are_noticed_before_they_are_parsed(tmp_path):
    path, config = tmp_path / "vocabulary.model", tiny.get_config()
    train_vocabulary(CAPTIONS, path)
    text = build.text(config, path)
    assert build.text(config, path, text.encoder).encoder == text.encoder
    for damaged in mutations(path.read_bytes(), 200):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="vocabulary.model is not what the model was trained"):
            build.text(config, path, text.encoder)


@pytest.mark.parametrize(
    "data, line",
    [
        ({"random_flip": True}, "random_flip=True: captions of data.source=shapes say left"),
        ({"random_crop": True}, "do nothing to data.source=shapes, which is drawn at the size"),
        ({"aspect": "pad"}, "do nothing to data.source=shapes, which is drawn at the size"),
        (
            {"source": "folder", "path": "x", "random_flip": True, "mixture": MIXTURE},
            "captions of data.source=shapes say left and right",
        ),
        (
            {"source": "folder", "path": "x", "aspect": "pad", "random_crop": True},
            "data.random_crop=True needs data.aspect=crop",
        ),
    ],
)
def test_framing_that_makes_captions_wrong_or_does_nothing_is_refused(data, line):
    config = tiny.get_config()
    config.data.update(data)
    with pytest.raises(ConfigError, match=line):
        build.check(config)


BUCKET = "gs://bucket/clips"


@pytest.mark.parametrize("source", ["folder", "tfds"])
@pytest.mark.parametrize("field", [*checks.PLACES, "data.mixture"])
def test_a_bucket_that_is_not_mounted_is_refused_by_field(source, field):
    config = tiny.get_config()
    config.data.update(source=source, path="clips")
    value = ((source, BUCKET, 0, 1),) if field == "data.mixture" else BUCKET
    section, _, name = field.partition(".")
    config[section][name] = value
    with pytest.raises(
        ConfigError, match=rf"{field}: {BUCKET} is no folder of this machine.*mount"
    ):
        build.check(config)


def test_a_mixture_with_shapes_may_be_padded():
    config = tiny.get_config()
    config.data.update(source="folder", path="x", aspect="pad", mixture=MIXTURE)
    build.check(config)
