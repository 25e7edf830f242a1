"""How long work still takes: nothing is said too early, and compiling is no measure."""

from snapvideo_jax.pace import Pace


def test_the_time_until_the_first_report_is_no_measure_of_the_rest():
    pace = Pace()
    assert pace.seconds_left(1, 9, now=100.0) is None  # it compiled
    assert pace.seconds_left(3, 9, now=104.0) == 12.0
    assert pace.seconds_left(7, 9, now=106.0) == 2.0
    assert pace.seconds_left(9, 9, now=107.0) == 0.0


def test_what_is_done_at_its_first_report_takes_no_more_time():
    assert Pace().seconds_left(2, 2, now=50.0) == 0.0


def test_nothing_is_said_while_nothing_new_is_done():
    pace = Pace()
    pace.seconds_left(4, 9, now=1.0)
    assert pace.seconds_left(4, 9, now=7.0) is None
