"""Reports of a compiler in their cache: what names them, and what becomes of a damaged file."""

import gzip
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import chips
from snapvideo_jax.planner import compiler

G = 2**30  # as a TPU's compiler writes it


class Lowered(jax.stages.Lowered):
    """A program that can be compiled once, or is refused with `refusal`."""

    def __init__(self, text="module @step", refusal=""):
        self.text, self.refusal, self.compiled = text, refusal, False

    def as_text(self):
        return self.text

    def compile(self):
        if self.refusal:
            raise jax.errors.JaxRuntimeError(self.refusal)
        assert not self.compiled, "compiled a second time"
        self.compiled = True
        needs = SimpleNamespace(
            argument_size_in_bytes=100,
            temp_size_in_bytes=20,
            generated_code_size_in_bytes=3,
            output_size_in_bytes=90,
            alias_size_in_bytes=84,
        )
        return mock.Mock(
            spec=jax.stages.Compiled,
            memory_analysis=lambda: needs,
            as_text=lambda: "HloModule step",
        )


def mesh(*order):
    return Mesh(np.array([jax.devices()[i] for i in order]), ("data",))


def report(lowered, cache, over=(0, 1), version="libtpu 1"):
    return compiler.compile_or_load(lowered, mesh(*over), version, cache)


def test_memory_is_all_that_the_program_holds_at_once():
    first = report(Lowered(), None)
    assert (first.text, first.fits) == ("HloModule step", True)
    # Of the 90 bytes of results, 84 lie where arguments were.
    assert (first.total, first.arguments, first.temporaries) == (100 + 20 + 3 + 6, 100, 20)


def test_the_second_time_a_report_is_loaded(tmp_path):
    lowered, cache = Lowered(), tmp_path / "not" / "there"
    first = report(lowered, cache)
    assert report(lowered, cache) == first and lowered.compiled
    assert len(list(cache.iterdir())) == 1


def test_without_a_folder_nothing_is_cached():
    report(Lowered(), None)
    second = Lowered()
    report(second, None)
    assert second.compiled


@pytest.mark.parametrize(
    "changed",
    [
        dict(lowered=Lowered("module @other")),
        dict(over=(0, 2)),
        dict(over=(1, 0)),
        dict(version="libtpu 2"),
    ],
    ids=["program", "devices", "their order", "compiler"],
)
def test_another_program_place_or_compiler_is_compiled(tmp_path, changed):
    report(Lowered(), tmp_path)
    fresh = changed.pop("lowered", Lowered())
    report(fresh, tmp_path, **changed)
    assert fresh.compiled and len(list(tmp_path.iterdir())) == 2


def test_another_option_of_the_compiler_is_compiled(tmp_path, monkeypatch):
    report(Lowered(), tmp_path)
    monkeypatch.setattr(chips, "options", lambda mesh: {"xla_tpu_scoped_vmem_limit_kib": "65536"})
    fresh = Lowered()
    report(fresh, tmp_path)
    assert fresh.compiled


DAMAGES = {
    "empty": lambda content: b"",
    "cut in the middle": lambda content: content[: len(content) // 2],
    "no gzip": lambda content: b"not a gzip file",
    "bytes changed": lambda content: content[:10] + b"\xff" + content[11:],
    "no JSON": lambda content: gzip.compress(b"{"),
    "another program's": lambda content: gzip.compress(b'["text", true, 5]'),
    "no list": lambda content: gzip.compress(b"7"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_compiled_and_written_again(tmp_path, damage):
    first = report(Lowered(), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    again = Lowered()
    assert report(again, tmp_path)._replace(seconds=first.seconds) == first and again.compiled
    report(again, tmp_path)  # read, since it cannot be compiled twice


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "plans").write_text("a file")
    assert report(Lowered(), tmp_path / "plans").fits


def test_a_refusal_for_memory_is_a_report_and_is_cached(tmp_path):
    refusal = "RESOURCE_EXHAUSTED: E1000: ... required (36.04G) exceeds available HBM (15.75G)."
    first = report(Lowered(refusal=refusal), tmp_path)
    assert (first.text, first.fits, first.total) == ("", False, int(36.04 * G))
    assert report(Lowered(), tmp_path) == first


def test_another_refusal_is_raised_and_not_cached(tmp_path):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: no such operation"):
        report(Lowered(refusal="INTERNAL: no such operation"), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sizes", "total", "limit"),
    [
        ("(20.00G) exceeds available HBM (15.75G)", 20 * G, 15.75 * G),
        ("(1.50T) exceeds available HBM (95.00G)", 1.5 * 1024 * G, 95 * G),
        ("(16385.0M) exceeds available HBM (16384.0M)", 16385 * 2**20, 16 * G),
        ("(512.00K) exceeds available HBM (4.00K)", 512 * 1024, 4096),
        ("in memory space hbm. Used 15.50G of 15.25G hbm. Exceeded", 15.5 * G, 15.25 * G),
    ],
)
def test_sizes_are_read_in_every_unit(sizes, total, limit):
    line = f"RESOURCE_EXHAUSTED: Ran out of memory, the total memory required {sizes}. HLO module"
    assert compiler.read_refusal(line) == (total, limit)


def test_a_refusal_for_other_memory_is_one_line_that_says_what_to_try():
    with pytest.raises(ConfigError, match="refuses the program: .*out of vmem; try another mesh"):
        compiler.read_refusal("RESOURCE_EXHAUSTED: ran out of vmem")
