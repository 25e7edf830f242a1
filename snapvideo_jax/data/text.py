"""Captions -> token ids, with T5's special ids: pad 0, end of sequence 1, unknown 2.

sentencepiece is imported where a vocabulary is learned or read: stored text states need none.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32

from snapvideo_jax import storage
from snapvideo_jax.errors import DataError, reason

PAD, EOS, UNKNOWN = 0, 1, 2
MAX_VOCABULARY = 8000
_QUIET = 2  # log errors only


def clean_caption(text: str) -> str:
    """Returns one line of valid Unicode: no byte order mark, no NUL, white space collapsed.

    Lone surrogates, which JSON and command lines can hold but UTF-8 cannot, become "?".
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(text.replace("\ufeff", "").replace("\0", " ").split())


def train_vocabulary(captions: Sequence[str], path: str | Path) -> None:
    """Learns a sentencepiece vocabulary from captions and writes it, the same bytes every time.

    Byte pairs are merged until nothing repeats or there are 8000 pieces. So each word of a small
    grammar becomes one piece, and unseen words still split into known pieces. (A unigram model
    would split the frequent words of a small set; a word model knows no other words.)

    Args:
      captions: any number; empty ones are skipped.
      path: the model file, replaced in one step.

    Raises:
      DataError: no caption has text, or they use over 8000 different characters.
      StorageError: the file cannot be written.
    """
    lines = [line for line in map(clean_caption, captions) if line]
    if not lines:
        raise DataError(f"no caption has text, so {path} cannot be learned; write captions first")
    storage.write(Path(path), _train(lines))


def _train(lines: list[str]) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=MAX_VOCABULARY,
            hard_vocab_limit=False,
            character_coverage=0.9999,  # only the rarest letters of large sets stay unknown
            max_sentence_length=2**20,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNKNOWN,
            bos_id=-1,
            num_threads=1,
            minloglevel=_QUIET,
        )
    except RuntimeError as error:
        raise DataError(
            f"no vocabulary can be learned from these {len(lines)} captions: they need letters,"
            f" and fewer than {MAX_VOCABULARY} different ones"
        ) from error
    return model.getvalue()


def read_vocabulary(path: str | Path) -> bytes:
    """Reads the bytes of a sentencepiece model; raises DataError if that fails."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the vocabulary: {reason(error)}") from error


class Tokenizer:
    """The sentencepiece model at `path`: captions in, ids out.

    Raises:
      DataError: the file is missing or holds no such model, or one without T5's ids.
    """

    def __init__(self, path: str | Path):
        import sentencepiece

        content = read_vocabulary(path)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise DataError(f"{path}: is no sentencepiece model") from error
        ids = (self._model.pad_id(), self._model.eos_id(), self._model.unk_id())
        if ids != (PAD, EOS, UNKNOWN):
            raise DataError(
                f"{path}: pad, end and unknown have ids {ids}; {(PAD, EOS, UNKNOWN)} are needed"
            )

    @property
    def vocabulary_size(self) -> int:
        """The number of ids."""
        return self._model.get_piece_size()

    def unknown_words(self, caption: str) -> list[str]:
        """Returns the words that training's captions lack, or hold once.

        All others are one piece each, unless the vocabulary is full (`train_vocabulary`); then it
        is the words with a letter that it lacks.
        """
        is_full = self.vocabulary_size >= MAX_VOCABULARY
        encode = self._model.encode
        is_unknown = lambda ids: UNKNOWN in ids or not (is_full or len(ids) == 1)
        return [word for word in clean_caption(caption).split() if is_unknown(encode(word))]

    def __call__(
        self, captions: Sequence[str], length: int
    ) -> tuple[Int32[np.ndarray, "B K"], Bool[np.ndarray, "B K"]]:
        """Returns ids, cut and padded to `length` = K, and the mask of those that are no padding.

        Each caption ends with the end id; one that is too long loses its last words instead. An
        empty caption means no text: its mask is False throughout.
        """
        ids = np.full((len(captions), length), PAD, np.int32)
        mask = np.zeros((len(captions), length), bool)
        for row, caption in enumerate(map(clean_caption, captions)):
            if caption:
                pieces = [*self._model.encode(caption)[: length - 1], EOS]
                ids[row, : len(pieces)] = pieces
                mask[row, : len(pieces)] = True
        return ids, mask
