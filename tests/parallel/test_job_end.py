"""Which process of a job is silent."""

from snapvideo_jax.parallel.job_end import SILENT, Silence


def polls(silence, *rounds):
    return [silence.poll(counts) for counts in rounds]


def test_a_process_that_counts_is_not_silent():
    silence = Silence([1, 2])
    assert polls(silence, *({1: str(n), 2: str(n)} for n in range(20))) == [None] * 20


def test_a_process_whose_count_stays_is_silent_after_some_polls():
    rounds = [{1: str(n), 2: str(min(n, 3))} for n in range(20)]
    assert polls(Silence([1, 2]), *rounds[: 4 + SILENT]) == [None] * (3 + SILENT) + [2]


def test_one_that_comes_back_in_time_is_not():
    counts = ["1", *["1"] * (SILENT - 1), "2", *["2"] * (SILENT - 1)]
    assert polls(Silence([1]), *({1: count} for count in counts)) == [None] * 2 * SILENT


def test_one_that_has_not_begun_or_is_done_is_not_missed():
    assert polls(Silence([1]), *[{}] * 20) == [None] * 20
    assert polls(Silence([1]), {1: "7"}, *[{1: "left"}] * 20) == [None] * 21
