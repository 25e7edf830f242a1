"""Stored text states: what is committed comes back, and nothing else does."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from snapvideo_jax import storage
from snapvideo_jax.data import embeddings, embeddings_writer
from snapvideo_jax.data.embeddings import Embeddings
from snapvideo_jax.data.embeddings_writer import Writer
from snapvideo_jax.errors import ConfigError, DataError, StorageError

K, E = 5, 4
CAPTIONS = [f"caption {i}" for i in range(9)]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def states_of(captions):
    """Random states of 1 to K tokens, a function of the caption; rubbish where padded."""
    seeds = [int.from_bytes(caption.encode(), "big") for caption in captions]
    rngs = [np.random.default_rng(seed) for seed in seeds]
    tokens = np.array([rng.integers(1, K + 1) for rng in rngs])
    states = np.stack([rng.standard_normal((K, E)) for rng in rngs]).astype(np.float32)
    return states, np.arange(K) < tokens[:, None]


def open_writer(folder, **changes):
    return Writer(folder, **dict(encoder="encoder", channels=E, text_length=K) | changes)


def fill(folder, *batches, **options):
    """Writes each batch of captions in a commit of its own."""
    writer = open_writer(folder, **options)
    for captions in batches:
        writer.add(captions, *states_of(captions))
        writer.commit()
    writer.close()


def assert_stored(folder, captions):
    stored, mask = Embeddings(folder)(captions)
    states, expected_mask = states_of(captions)
    assert stored.dtype == BFLOAT16
    np.testing.assert_array_equal(mask, expected_mask)
    expected = np.where(mask[..., None], states, 0).astype(BFLOAT16)
    np.testing.assert_array_equal(stored, expected)


def one_line(error):
    return "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "s", CAPTIONS[:4], CAPTIONS[4:7])
    return tmp_path / "s"


def test_states_come_back_in_the_order_of_the_captions(folder):
    assert_stored(folder, CAPTIONS[:7])
    assert_stored(folder, [CAPTIONS[i] for i in (6, 0, 3, 3)])
    stored = Embeddings(folder)
    assert (stored.count, stored.channels, stored.text_length) == (7, E, K)
    assert stored.encoder == "encoder"


def test_only_the_states_of_real_tokens_take_space(folder):
    tokens = states_of(CAPTIONS[:7])[1].sum()
    assert embeddings.shard_path(folder, 0).stat().st_size == tokens * E * 2


def test_captions_that_clean_alike_are_one(folder):
    states, _ = Embeddings(folder)(["  caption\t1 "])
    expected, _ = Embeddings(folder)(["caption 1"])
    np.testing.assert_array_equal(states, expected)
    assert Embeddings(folder).missing(["caption  1", "caption 7", "\ufeffcaption 7", " "]) == [
        "caption 7"
    ]


def test_no_text_is_masked_and_needs_no_states(folder):
    states, mask = Embeddings(folder)(["", CAPTIONS[0], " \n"])
    assert not mask[[0, 2]].any() and mask[1].any() and not states[[0, 2]].any()


def test_a_caption_that_is_not_stored_is_named_with_the_command(folder):
    with pytest.raises(DataError, match="caption 'a new one'; .*launch.prepare embed") as error:
        Embeddings(folder)([CAPTIONS[0], "a new\n one"])
    assert one_line(error)


def test_an_empty_folder_of_states_lacks_every_caption(tmp_path):
    fill(tmp_path)
    assert Embeddings(tmp_path).missing(CAPTIONS) == CAPTIONS
    with pytest.raises(DataError, match="no states of the caption 'caption 0'"):
        Embeddings(tmp_path)(CAPTIONS)


def test_writing_goes_on_where_it_ended(folder):
    fill(folder, CAPTIONS[7:])
    assert_stored(folder, CAPTIONS)


def test_shards_begin_anew_when_they_are_full(tmp_path):
    fill(tmp_path, CAPTIONS[:4], shard_bytes=8)
    fill(tmp_path, CAPTIONS[4:6], CAPTIONS[6:], shard_bytes=8)
    assert len(list(tmp_path.glob("states-*.bin"))) == 3
    assert_stored(tmp_path, CAPTIONS)


@pytest.mark.parametrize("done", ["states", "states and index", "half of the index"])
def test_a_crash_within_a_commit_leaves_the_last_one(folder, tmp_path, done):
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    fill(whole, CAPTIONS[7:])
    names = [embeddings.shard_path(folder, 0).name]
    names += ["index.bin"] if "index" in done else []
    for name in names:
        shutil.copy(whole / name, folder / name)
    if done.startswith("half"):
        with (folder / "index.bin").open("r+b") as file:
            file.truncate((folder / "index.bin").stat().st_size - 30)
    assert_stored(folder, CAPTIONS[:7])
    assert Embeddings(folder).missing(CAPTIONS) == CAPTIONS[7:]
    fill(folder, [CAPTIONS[8]], [CAPTIONS[7]])
    assert_stored(folder, CAPTIONS)
    sizes = [(path / "index.bin").stat().st_size for path in (folder, whole)]
    assert sizes[0] == sizes[1]


def test_states_that_were_added_and_not_committed_are_missing(folder):
    writer = open_writer(folder)
    writer.add(CAPTIONS[7:], *states_of(CAPTIONS[7:]))
    writer.close()
    assert Embeddings(folder).missing(CAPTIONS) == CAPTIONS[7:]


def test_a_commit_that_fails_can_be_made_again(folder, monkeypatch):
    writer = open_writer(folder)
    writer.add(CAPTIONS[7:], *states_of(CAPTIONS[7:]))

    def full(path, content):
        raise StorageError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write", full)
        with pytest.raises(StorageError):
            writer.commit()
    assert_stored(folder, CAPTIONS[:7])
    writer.commit()
    writer.close()
    assert_stored(folder, CAPTIONS)


def test_a_second_writer_is_refused(tmp_path):
    first = open_writer(tmp_path)
    with pytest.raises(ConfigError, match="is in use by another process"):
        open_writer(tmp_path)
    first.close()
    open_writer(tmp_path).close()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            dict(encoder="other"),
            "holds states of encoder encoder, not other; choose another folder",
        ),
        (dict(channels=E + 1), "holds states of channels 4, not 5"),
        (dict(text_length=K + 1), "holds states of text_length 5, not 6"),
    ],
)
def test_states_of_another_encoder_are_not_mixed_in(folder, change, match):
    with pytest.raises(DataError, match=match) as error:
        open_writer(folder, **change)
    assert one_line(error)
    assert_stored(folder, CAPTIONS[:7])


def test_states_of_another_size_than_the_config_says_are_refused(folder):
    stored = Embeddings(folder)
    stored.check(E, K)
    with pytest.raises(DataError, match="set --config.model.text_encoder.channels=4 or"):
        stored.check(E + 1, K)
    with pytest.raises(DataError, match="data.text_length is 5 .* and 6 in the config"):
        stored.check(E, K + 1)


def test_masks_with_holes_and_other_shapes_are_errors_of_the_caller(tmp_path):
    writer = open_writer(tmp_path)
    states, mask = states_of(CAPTIONS[:2])
    with pytest.raises(ValueError, match="first tokens"):
        writer.add(CAPTIONS[:2], states, np.flip(mask & (np.arange(K) < 2), axis=1))
    with pytest.raises(ValueError, match="expected"):
        writer.add(CAPTIONS[:2], states[..., :2], mask)
    writer.close()


def cut(name, by):
    def change(folder):
        with (folder / name).open("r+b") as file:
            file.truncate((folder / name).stat().st_size - by)

    return change


def set_header(**fields):
    def change(folder):
        header = json.loads((folder / "embeddings.json").read_text())
        (folder / "embeddings.json").write_text(json.dumps(header | fields))

    return change


def set_record(name, value):
    def change(folder):
        records = np.fromfile(folder / "index.bin", embeddings.RECORD)
        records[name][3] = value
        records.tofile(folder / "index.bin")

    return change


DAMAGE = {
    r"states-00000.bin: has \d+ bytes, and \d+ were stored": cut("states-00000.bin", 1),
    r"index.bin: has 335 bytes, and 336 were stored": cut("index.bin", 1),
    r"states-00000.bin: has 0 bytes": lambda folder: (folder / "states-00000.bin").unlink(),
    r"embeddings.json: cannot be read: No such file.*launch.prepare embed": lambda folder: (
        folder / "embeddings.json"
    ).unlink(),
    r"embeddings.json: is not valid JSON": cut("embeddings.json", 5),
    r"embeddings.json: is not of format 1": set_header(format=2),
    r"embeddings.json: is not of format 1; make": set_header(dtype="float64"),
    r"embeddings.json: has sizes that are no": set_header(channels=4.5),
    r"embeddings.json: has sizes that are no whole": set_header(shards=[-1]),
    r"embeddings.json: has sizes that are no whole numbers": set_header(count=2**64),
    r"index.bin: 1 records point at no states": set_record("shard", 7),
    r"index.bin: 1 records point at no states;": set_record("row", 2**64 - 1),
    r"index.bin: 1 records point at no states; make": set_record("tokens", K + 1),
}


@pytest.mark.parametrize("match", DAMAGE)
def test_a_damaged_folder_is_refused_when_opened(folder, match):
    DAMAGE[match](folder)
    with pytest.raises(DataError, match=match) as error:
        Embeddings(folder)
    assert one_line(error)


def test_a_folder_whose_header_is_lost_is_not_overwritten(folder):
    (folder / "embeddings.json").unlink()
    with pytest.raises(DataError, match="holds index.bin without embeddings.json"):
        open_writer(folder)
    assert (folder / "index.bin").stat().st_size == 7 * 48


def test_digests_that_end_in_zeros_are_found(tmp_path, monkeypatch):
    keys = {
        "a": bytes(31) + b"\1",
        "b": b"\1" + bytes(31),
        "c": bytes(32),
        "d": b"\1\2" + bytes(30),
    }
    for module in (embeddings, embeddings_writer):
        monkeypatch.setattr(module, "digest", lambda caption: keys[caption])
    fill(tmp_path, ["a", "b", "c"])
    assert_stored(tmp_path, ["c", "a", "b"])
    assert Embeddings(tmp_path).missing("abcd") == ["d"]


def test_fingerprints_tell_weights_vocabulary_and_dtype_apart():
    facts = [({"x": 1, "y": 2}, b"v", "bfloat16"), ({"x": 1, "y": 3}, b"v", "bfloat16")]
    facts += [({"x": 1, "y": 2}, b"w", "bfloat16"), ({"x": 1, "y": 2}, b"v", "float32")]
    prints = [embeddings.fingerprint(*parts) for parts in facts]
    assert len(set(prints)) == 4
    assert embeddings.fingerprint({"y": 2, "x": 1}, b"v", "bfloat16") == prints[0]
