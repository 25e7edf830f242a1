"""Vocabularies and tokens."""

import itertools

import numpy as np
import pytest

from snapvideo_jax.data import text
from snapvideo_jax.errors import DataError, StorageError

COLORS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle")
DIRECTIONS, SPEEDS = ("left", "right", "up", "down"), ("slowly", "quickly")
GRAMMAR = [
    f"a {color} {shape} moves {direction} {speed}"
    for color, shape, direction, speed in itertools.product(COLORS, SHAPES, DIRECTIONS, SPEEDS)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "vocabulary.model"
    text.train_vocabulary(GRAMMAR, path)
    return text.Tokenizer(path)


def test_each_word_of_a_small_grammar_is_one_token(tokenizer):
    ids, mask = tokenizer(GRAMMAR, 10)
    assert ids.shape == mask.shape == (96, 10) and ids.dtype == np.int32 and mask.dtype == bool
    np.testing.assert_array_equal(mask.sum(axis=1), 7)  # six words and the end
    assert len(np.unique(ids[:, :6])) == 2 + 4 + 3 + 4 + 2
    assert ids.max() < tokenizer.vocabulary_size


def test_ids_end_with_one_and_are_padded_with_zero(tokenizer):
    ids, mask = tokenizer(["a red circle"], 6)
    assert ids[0, 3] == 1 and (ids[0, 4:] == 0).all() and (ids[0, :3] > 2).all()
    np.testing.assert_array_equal(mask[0], [True] * 4 + [False] * 2)


@pytest.mark.parametrize("caption", ["", "  \n\t", "\0", "\ufeff"])
def test_a_caption_without_text_has_an_empty_mask(tokenizer, caption):
    ids, mask = tokenizer([caption, "a"], 4)
    assert not mask[0].any() and not ids[0].any() and mask[1].any()


def test_a_long_caption_loses_words_but_not_the_end(tokenizer):
    whole, _ = tokenizer([GRAMMAR[0]], 8)
    ids, mask = tokenizer([GRAMMAR[0], "red " * 10_000], 4)
    assert mask.all()
    np.testing.assert_array_equal(ids[0], [*whole[0, :3], 1])
    assert ids[1, 3] == 1


def test_words_that_training_never_showed_are_named(tokenizer):
    assert tokenizer.unknown_words("a blue drum moves A left") == ["drum", "A"]
    assert tokenizer.unknown_words(GRAMMAR[5]) == [] and tokenizer.unknown_words("") == []


def test_of_a_full_vocabulary_only_words_with_unknown_letters_are_named(tokenizer, monkeypatch):
    monkeypatch.setattr(text, "MAX_VOCABULARY", tokenizer.vocabulary_size)
    assert tokenizer.unknown_words("a drum 日本語") == ["日本語"]


def test_unseen_words_split_into_known_pieces(tokenizer):
    ids, mask = tokenizer(["drums"], 8)
    assert mask.sum() > 2 and (ids[0, : mask.sum()] != 2).all()


@pytest.mark.parametrize("caption", ["日本語 🎉", "\ud800", "مرحبا", "<s> </s> <pad>", "x" * 9999])
def test_any_text_gives_ids_in_range(tokenizer, caption):
    ids, mask = tokenizer([caption], 8)
    assert mask[0].any() and ids.min() >= 0 and ids.max() < tokenizer.vocabulary_size


def test_captions_are_cleaned():
    assert text.clean_caption("\ufeff a\r\n man\0talks\t\u2028 \ud83d") == "a man talks ?"


def test_training_repeats_byte_for_byte_and_says_nothing(tmp_path, capfd):
    for name in ("a", "b"):
        text.train_vocabulary(GRAMMAR, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    out, err = capfd.readouterr()
    assert out == err == ""


def test_large_sets_stay_below_the_cap_with_frequent_words_whole(tmp_path):
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(10_000)]
    ranks = (rng.pareto(0.8, (3000, 12)) * 20).astype(int) % len(words)
    text.train_vocabulary([" ".join(words[k] for k in row) for row in ranks], tmp_path / "v")
    tokenizer = text.Tokenizer(tmp_path / "v")
    assert 7000 < tokenizer.vocabulary_size <= text.MAX_VOCABULARY
    _, mask = tokenizer(words[:200], 8)
    assert (mask.sum(axis=1) == 2).mean() > 0.95


@pytest.mark.parametrize("captions", [["a"], ["a dog"], ["🎉 x"], ["", "one two"]])
def test_tiny_sets_can_be_learned(tmp_path, captions):
    text.train_vocabulary(captions, tmp_path / "v")
    ids, mask = text.Tokenizer(tmp_path / "v")(captions[-1:], 4)
    assert mask.sum() == len(captions[-1].split()) + 1


@pytest.mark.parametrize("captions", [[], ["", " "], ["\u200b"]])
def test_captions_without_text_are_refused(tmp_path, captions):
    with pytest.raises(DataError, match="caption"):
        text.train_vocabulary(captions, tmp_path / "v")
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing/v", tmp_path / "file/v"):
        with pytest.raises(StorageError, match="cannot write .*v"):
            text.train_vocabulary(GRAMMAR, path)


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 99])
def test_what_is_no_vocabulary_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "v.model").write_bytes(content)
    with pytest.raises(DataError, match=r"v\.model: "):
        text.Tokenizer(tmp_path / "v.model")


def test_a_vocabulary_with_other_special_ids_is_refused(tmp_path):
    import sentencepiece

    with (tmp_path / "v.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(GRAMMAR),
            model_writer=file,
            vocab_size=60,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    with pytest.raises(DataError, match=r"ids \(-1, 2, 0\); \(0, 1, 2\) are needed"):
        text.Tokenizer(tmp_path / "v.model")
