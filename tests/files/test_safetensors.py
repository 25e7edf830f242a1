"""Safetensors files: bits survive, and a damaged or forged file is refused in one line."""

import json
import struct
import weakref

import ml_dtypes
import numpy as np
import pytest

from snapvideo_jax.errors import DataError
from snapvideo_jax.files import safetensors

ARRAYS = {
    "odd": np.arange(7, dtype=np.uint8),  # so that what follows is not aligned
    "network/kernel": np.sin(np.arange(24, dtype=np.float32)).reshape(2, 3, 4),
    "network/bias": np.cos(np.arange(9)).astype(ml_dtypes.bfloat16).reshape(3, 3),
    "step": np.full((), 3.5, np.float32),
    "none": np.zeros((0, 4), np.float16),
    "mask": np.array([True, False, True]),
}


def write(path, arrays):
    safetensors.write(path, {n: (a.shape, a.dtype) for n, a in arrays.items()}, arrays.get)
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "model.safetensors", ARRAYS)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_by_bit(file, name):
    infos = safetensors.open_file(file)
    assert list(infos) == list(ARRAYS)
    assert same(safetensors.read(file, infos[name]), ARRAYS[name])


@pytest.mark.parametrize("name", ["network/kernel", "network/bias", "none"])
def test_a_slice_is_the_slice_of_the_whole(file, name):
    index = (slice(0, 2), slice(1, 3))
    part = safetensors.read(file, safetensors.open_file(file)[name], index)
    assert same(part, ARRAYS[name][index].copy()) and part.flags.owndata


def test_an_empty_tensor_may_be_all_there_is_behind_a_page(tmp_path):
    empty = np.zeros((3, 0), np.float32)
    for length in range(4000, 4096):
        path = write(tmp_path / "f", {"x" * length: empty})
        (info,) = safetensors.open_file(path).values()
        assert same(safetensors.read(path, info), empty)
    assert info.start > 4096


def test_the_reference_implementation_reads_our_files(file):
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(file, framework="np") as tensors:
        assert set(tensors.keys()) == set(ARRAYS)
        assert all(same(tensors.get_tensor(name), array) for name, array in ARRAYS.items())


def test_we_read_files_of_the_reference_implementation(tmp_path):
    numpy_format = pytest.importorskip("safetensors.numpy")
    numpy_format.save_file(ARRAYS, tmp_path / "f", {"format": "np"})
    infos = safetensors.open_file(tmp_path / "f")
    assert set(infos) == set(ARRAYS)
    assert all(same(safetensors.read(tmp_path / "f", i), ARRAYS[n]) for n, i in infos.items())


def test_the_data_begin_at_a_multiple_of_eight_bytes(file):
    assert len(safetensors.header({"x": ((1,), np.float32)})) % 8 == 0
    assert safetensors.open_file(file)["odd"].start % 8 == 0


def test_the_writer_holds_one_array_at_a_time(tmp_path):
    references = []

    def value(name):
        assert all(reference() is None for reference in references), f"{name} is not the only one"
        array = np.ones(1000, np.float32)
        references.append(weakref.ref(array))
        return array

    safetensors.write(tmp_path / "f", {n: ((1000,), np.float32) for n in "abc"}, value)
    assert len(references) == 3


def test_an_array_of_another_shape_than_the_header_says_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"a is float32\(2,\), not .*\(3,\)"):
        safetensors.write(tmp_path / "f", {"a": ((3,), np.float32)}, lambda _: np.ones(2, "f4"))


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path):
    array = np.ones(1, np.float32)
    begins = []
    for length in range(480, 640, 8):
        path = write(tmp_path / "f", {"x" * length: array})
        begins.append(path.read_bytes()[:2])
        assert list(safetensors.open_file(path)) == ["x" * length]
    assert b"\x80\x02" in begins  # a header of 640 bytes


def forged(entries, data=b"12345678"):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


TWICE = b'{"a":%s,"a":%s}' % ((json.dumps(tensor()).encode(),) * 2)
REFUSED = {
    "empty": (b"", "has 0 bytes"),
    "short": (b"\x01\x00", "has 2 bytes"),
    "long header": (struct.pack("<Q", 2**63) + b"{}", "claims 9223372036854775808 bytes"),
    "header beyond the file": (struct.pack("<Q", 3) + b"{}", "claims 3 bytes, of a file of 10"),
    "zip": (b"PK\x03\x04" + bytes(40), "a pickle, which is never loaded"),
    "pickle": (b"\x80\x04\x95\x20" + b"\0" * 7 + b"x" * 40, "a pickle, which is never loaded"),
    "no JSON": (forged(b"{]"), "not valid JSON"),
    "no UTF-8": (forged(b'{"\xff": 1}'), "not valid JSON"),
    "nested": (forged(b"[" * 99_999), "not valid JSON"),
    "list": (forged([]), "not an object"),
    "metadata": (forged({"__metadata__": 3, "a": tensor()}), "__metadata__ is not an object"),
    "name twice": (forged(TWICE), "'a' stands twice"),
    "entry": (forged({"a": 3}), "'a' has not just dtype, shape and data_offsets"),
    "more keys": (forged({"a": tensor(more=1)}), "'a' has not just dtype, shape"),
    "unknown dtype": (forged({"a": tensor("F7")}), "unknown dtype 'F7'"),
    "dtype list": (forged({"a": tensor(["F32"])}), "unknown dtype"),
    "negative shape": (forged({"a": tensor(shape=(-1, -2))}), r"has the shape \[-1, -2\]"),
    "bool shape": (forged({"a": tensor(shape=(True, 2))}), r"has the shape \[True, 2\]"),
    "float shape": (forged({"a": tensor(shape=(2.0,))}), r"has the shape \[2.0\]"),
    "deep shape": (forged({"a": tensor(shape=(1,) * 99)}), "has the shape"),
    "overflow": (forged({"a": tensor(shape=(2**62, 0, 4), offsets=(0, 0))}), "has the shape"),
    "big numbers": (forged({"a": tensor(shape=(10**400,))}), "has the shape"),
    "bigger numbers": (forged(b'{"a": 1' + b"0" * 5000 + b"}"), "not valid JSON"),
    "one offset": (forged({"a": tensor(offsets=(0,))}), "has the data_offsets"),
    "negative offset": (forged({"a": tensor(offsets=(-8, 0))}), "has the data_offsets"),
    "backwards": (forged({"a": tensor(offsets=(8, 0))}), "has -8 bytes"),
    "size": (forged({"a": tensor(shape=(3,))}), "has 8 bytes"),
    "overlap": (forged({"a": tensor(), "b": tensor(offsets=(4, 12))}), "'b' overlaps"),
    "gap": (forged({"a": tensor(offsets=(4, 12))}, bytes(12)), "'a' leaves a gap"),
    "truncated": (forged({"a": tensor()}, b"1234567"), "announces"),
    "appended": (forged({"a": tensor()}, b"123456789"), "announces"),
    "line breaks": (forged({"a\n\x1b[2J" * 99: tensor("F7")}), r"a\\n\\x1b"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_a_damaged_or_forged_file_is_refused_in_one_line(tmp_path, damage):
    content, reason = REFUSED[damage]
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        safetensors.open_file(tmp_path / "f")
    message = str(error.value)
    assert message.isprintable() and message.startswith(str(tmp_path / "f")) and len(message) < 500


def test_metadata_beside_the_tensors_is_no_tensor(tmp_path):
    (tmp_path / "f").write_bytes(forged({"__metadata__": {"format": "np"}, "a": tensor()}))
    assert list(safetensors.open_file(tmp_path / "f")) == ["a"]


def test_any_flipped_byte_of_a_header_is_refused_or_harmless(file):
    whole = file.read_bytes()
    end = min(info.start for info in safetensors.open_file(file).values())
    draw = np.random.Generator(np.random.Philox(key=[0, 0]))
    refused = 0
    for position, byte in zip(draw.integers(0, end, 500), draw.integers(0, 256, 500), strict=True):
        file.write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
        try:
            infos = safetensors.open_file(file)
            assert all(0 <= i.start <= i.end <= len(whole) for i in infos.values())
            assert sum(safetensors.read(file, i).nbytes for i in infos.values()) == len(whole) - end
        except DataError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 250


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_what_is_not_a_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=f"cannot read the weights .*{name}"):
        safetensors.open_file(tmp_path / name)


def test_a_file_that_shrinks_after_it_was_opened_is_refused(file):
    info = safetensors.open_file(file)["network/bias"]
    file.write_bytes(file.read_bytes()[: info.start])
    with pytest.raises(DataError, match="cannot read the weights"):
        safetensors.read(file, info)


SHARDS = {"a.safetensors": ["odd", "step"], "b.safetensors": ["network/kernel", "mask"]}


def sharded(folder, weight_map=None):
    for name, names in SHARDS.items():
        write(folder / name, {n: ARRAYS[n] for n in names})
    places = {n: file for file, names in SHARDS.items() for n in names}
    index = {"weight_map": places if weight_map is None else weight_map(places)}
    (folder / safetensors.INDEX).write_text(json.dumps(index))
    return folder


def test_shards_are_found_by_their_index(tmp_path):
    tensors = safetensors.open_folder(sharded(tmp_path))
    assert {n: file.name for n, (file, _) in tensors.items()} == {
        n: file for file, names in SHARDS.items() for n in names
    }
    assert all(same(safetensors.read(*where), ARRAYS[n]) for n, where in tensors.items())


def test_a_folder_with_one_file_needs_no_index(file):
    tensors = safetensors.open_folder(file.parent)
    assert set(tensors) == set(ARRAYS) and {f for f, _ in tensors.values()} == {file}


def test_an_index_beside_a_whole_file_is_not_read(file):
    (file.parent / safetensors.INDEX).write_text("left over")
    assert set(safetensors.open_folder(file.parent)) == set(ARRAYS)


@pytest.mark.parametrize(
    ("reason", "weight_map"),
    [
        ("has no weight_map", lambda places: ["odd"]),
        ("names the file '../a.safetensors'", lambda places: places | {"odd": "../a.safetensors"}),
        ("names the file '/etc/passwd'", lambda places: places | {"odd": "/etc/passwd"}),
        ("names the file 3", lambda places: places | {"odd": 3}),
        ("it holds 'odd', not placed there", lambda places: places | {"odd": "b.safetensors"}),
        ("it holds 'mask', not placed there", lambda p: {n: p[n] for n in p if n != "mask"}),
        ("it lacks 'new'", lambda places: places | {"new": "b.safetensors"}),
        ("cannot read the weights .*c.safetensors", lambda p: p | {"new": "c.safetensors"}),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path, reason, weight_map):
    with pytest.raises(DataError, match=reason) as error:
        safetensors.open_folder(sharded(tmp_path, weight_map))
    assert str(error.value).isprintable()


def test_a_folder_without_weights_says_what_it_lacks(tmp_path):
    with pytest.raises(DataError, match="cannot read the weights .*model.safetensors"):
        safetensors.open_folder(tmp_path)
