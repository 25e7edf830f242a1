"""The ranking of a search as people read it."""

from unittest import mock

from snapvideo_jax.planner import predict, search, search_table
from snapvideo_jax.planner.estimate import Estimate

LIMIT = 16 * 10**9


def candidate(dtype="bfloat16", **axes):
    mesh = dict(data=1, fsdp=1, group=1, tensor=1) | axes
    return search.Candidate(mesh, "dots", dtype, 4, 10**9, 1.0, 0.5)


def estimate(slow, waiting=0.0):
    seconds = predict.Seconds(
        compute=slow - waiting,
        kernels=0.0,
        waiting=waiting,
        overlapped=0.0,
        fast=slow / 2,
        slow=slow,
    )
    return mock.Mock(spec=Estimate, seconds=seconds, mfu=0.5, total=12 * 10**9, limit=LIMIT)


def too_large():
    return mock.Mock(spec=Estimate, seconds=None, mfu=None, total=LIMIT + 2 * 10**9, limit=LIMIT)


def test_a_row_has_the_layout_and_what_it_takes():
    row = search_table.row(candidate(data=2, group=4), estimate(0.0125))
    assert " ".join(row.split()) == (
        "data 2 x group 4 bfloat16 remat dots accumulate 4: 12.5 ms a step, MFU 50%, 12.0 GB a chip"
    )
    row = search_table.row(candidate("float32", fsdp=8), too_large())
    assert "float32" in row and row.endswith("does not fit, 2.00 GB too much")


def test_the_best_layout_is_last_as_flags_with_its_gain_over_plain_fsdp():
    rows = [(candidate(fsdp=8), estimate(1.25)), (candidate(fsdp=4, group=2), estimate(1.0))]
    lines = search_table.ranking(rows).splitlines()
    assert lines[-2] == "The best is 25% faster than plain fsdp (predicted):"
    assert lines[-1].split() == [
        "--config.mesh.data=1",
        "--config.mesh.fsdp=4",
        "--config.mesh.group=2",
        "--config.mesh.tensor=1",
        "--config.model.remat=dots",
        "--config.model.dtype=bfloat16",
        "--config.training.accumulate=4",
    ]


def test_where_plain_fsdp_is_the_best_it_says_why():
    rows = [(candidate(data=8), estimate(2.0)), (candidate(fsdp=8), estimate(1.0, waiting=0.25))]
    assert "exchanges that it waits for are 25% of its step" in search_table.ranking(rows)
    rows = [(candidate(fsdp=8), estimate(1.0))]
    assert "Nothing beats plain fsdp, which waits for no exchanges:" in search_table.ranking(rows)
    assert "--config.mesh.fsdp=8" in search_table.ranking(rows).splitlines()[-1]


def test_a_gain_that_rounds_to_nothing_is_none():
    rows = [(candidate(fsdp=8), estimate(1.004)), (candidate(data=8), estimate(1.0))]
    assert "The best is as fast as plain fsdp (predicted):" in search_table.ranking(rows)
    rows[0] = candidate(fsdp=8), estimate(1.009)
    assert "The best is 0.90% faster than plain fsdp" in search_table.ranking(rows)


def test_what_does_not_fit_is_not_ranked():
    rows = [(candidate(fsdp=8), too_large()), (candidate(fsdp=4, group=2), estimate(1.0))]
    assert "Plain fsdp does not fit, or does not divide; the best is:" in search_table.ranking(rows)
    assert search_table.ranking(rows[:1]) == "none of the compiled layouts fits"
