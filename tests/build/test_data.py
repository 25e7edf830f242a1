"""How captions enter: with the vocabulary that the model was trained with, bit for bit."""

import pytest

from snapvideo_jax import build
from snapvideo_jax.data.text import train_vocabulary
from snapvideo_jax.errors import DataError
from tests import tiny
from tests.mutations import mutations

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
