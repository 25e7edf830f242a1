"""Files of torch read without torch: all three forms, and every damage in one line."""

import json
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from snapvideo_jax.errors import DataError
from snapvideo_jax.files import torch_archive

FOLDER = Path(__file__).parents[1] / "golden/metrics/archives"
TENSORS = json.loads((FOLDER.parent / "archives.json").read_text())
FORMS = ("zip", "old", "script")


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_is_torchs(form):
    tensors = torch_archive.read(FOLDER / f"{form}.pt")
    assert set(tensors) == set(TENSORS)
    for name, (shape, values) in TENSORS.items():
        assert tensors[name].shape == tuple(shape)
        np.testing.assert_array_equal(tensors[name].ravel(), np.array(values, tensors[name].dtype))
    assert (
        tensors["turned"].dtype == np.float16 and tensors["1.num_batches_tracked"].dtype == np.int64
    )


def refusal(path):
    with pytest.raises(DataError) as error:
        torch_archive.read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


class Attack:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize("content", [Attack(), [Attack()], {"weight": Attack()}])
def test_a_pickle_that_calls_is_refused_and_calls_nothing(tmp_path, capsys, content):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(content, 2))
    assert "more than tensors is never loaded" in refusal(path)
    path.write_bytes(pickle.dumps(content, 2))
    refusal(path)
    assert not capsys.readouterr().out


def test_a_missing_file_an_empty_one_and_text(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.pt")
    (tmp_path / "x.pt").write_bytes(b"")
    assert "it is no file of torch" in refusal(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_text("<html>not found</html>")
    assert "it is no file of torch" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_short_is_refused(tmp_path, form):
    whole = (FOLDER / f"{form}.pt").read_bytes()
    for size in range(1, len(whole), 97):
        (tmp_path / "x.pt").write_bytes(whole[:size])
        refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("form", FORMS)
def test_no_damage_raises_anything_but_one_line(tmp_path, form):
    whole, generator = (FOLDER / f"{form}.pt").read_bytes(), random.Random(form)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        (tmp_path / "x.pt").write_bytes(damaged)
        try:
            torch_archive.read(tmp_path / "x.pt")
        except DataError as error:
            assert "\n" not in str(error)


def rewritten(path, change):
    """Copies zip.pt with other contents of its parts."""
    with zipfile.ZipFile(FOLDER / "zip.pt") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = change(name.partition("/")[2], source.read(name))
            if content is not None:
                target.writestr(name, content)
    return path


def test_a_part_that_is_missing_or_short_is_named(tmp_path):
    path = rewritten(tmp_path / "x.pt", lambda name, c: None if name == "data/0" else c)
    assert "its part 'data/0' is missing" in refusal(path)
    path = rewritten(tmp_path / "x.pt", lambda name, c: c[:-4] if name == "data/0" else c)
    assert "its part '0' has 8 bytes" in refusal(path)


def test_a_tensor_larger_than_its_part_allocates_nothing(tmp_path):
    # The shape (2, 3, 1, 1) becomes (65535, 3, 1, 1).
    forge = lambda name, c: c.replace(b"(K\x02K\x03K\x01K\x01t", b"(M\xff\xffK\x03K\x01K\x01t")
    path = rewritten(tmp_path / "x.pt", forge)
    assert "a tensor lies outside its part" in refusal(path)


def test_a_compressed_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**6))
    assert "compressed" in refusal(tmp_path / "x.pt")


def test_a_self_reference_ends(tmp_path):
    # EMPTY_DICT, memo 0, "a", get 0, SETITEM, STOP.
    loop = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", loop)
    assert "too many modules" in refusal(tmp_path / "x.pt")
