"""The windows of long videos, for many lengths, frame rates and models."""

import pytest

from snapvideo_jax.diffusion import hierarchy
from snapvideo_jax.errors import ConfigError

CASES = [
    (duration, rates, T)
    for duration in (4.0, 5.3, 16 / 6, 11.0)
    for rates in ((6,), (6, 12), (6, 12, 24), (6, 24), (7.5, 30), (6, 18, 36))
    for T in (2, 5, 16)
]
every_case = pytest.mark.parametrize(("duration", "rates", "T"), CASES)


@every_case
def test_every_frame_of_the_highest_rate_is_made_exactly_once(duration, rates, T):
    made = [f for window in hierarchy.windows(duration, rates, T) for f in window.new_frames]
    assert sorted(made) == list(range(round(duration * rates[-1])))


@every_case
def test_every_window_has_t_frames_of_its_rate_and_makes_some(duration, rates, T):
    total = round(duration * rates[-1])
    for window in hierarchy.windows(duration, rates, T):
        step = round(rates[-1] / window.frame_rate)
        assert window.frame_rate == rates[window.level]
        assert window.frames == tuple(range(window.frames[0], window.frames[0] + T * step, step))
        assert window.frames[0] % step == 0
        assert 0 <= window.frames[0] and window.frames[-1] < total
        assert window.new_frames


@every_case
def test_what_a_window_knows_is_what_the_ones_before_made(duration, rates, T):
    there = set()
    for window in hierarchy.windows(duration, rates, T):
        assert window.known == tuple(f in there for f in window.frames)
        there.update(window.new_frames)


@every_case
def test_levels_follow_each_other_and_end_complete(duration, rates, T):
    windows = hierarchy.windows(duration, rates, T)
    assert [w.level for w in windows] == sorted(w.level for w in windows)
    total = round(duration * rates[-1])
    for level, rate in enumerate(rates):
        made = {f for w in windows if w.level <= level for f in w.new_frames}
        assert made == set(range(0, total, round(rates[-1] / rate)))


@every_case
def test_every_window_but_the_first_is_led_by_its_first_frame(duration, rates, T):
    first, *others = hierarchy.windows(duration, rates, T)
    assert not any(first.known)
    assert all(window.known[0] for window in others)


def test_the_lowest_rate_is_led_by_the_last_frame_and_its_last_window_moves_back():
    windows = hierarchy.windows(10.0, [1], 4)
    assert [w.frames for w in windows] == [(0, 1, 2, 3), (3, 4, 5, 6), (6, 7, 8, 9)]
    assert [sum(w.known) for w in windows] == [0, 1, 1]
    moved = hierarchy.windows(9.0, [1], 4)[-1]
    assert moved.frames == (5, 6, 7, 8) and moved.known == (True, True, False, False)


def test_the_next_rate_is_led_by_every_frame_of_the_lower_one():
    first, second, third, last = hierarchy.windows(4.0, [1, 2], 4)
    assert first.frames == (0, 2, 4, 6)
    assert second.frames == (0, 1, 2, 3) and second.known == (True, False, True, False)
    # From the frame made last, not from the next gap: no seam between 3 and 4.
    assert third.frames[0] == 3 and third.known == (True, True, False, True)
    assert last.new_frames == (7,)


def test_a_video_of_the_models_own_length_is_one_window():
    assert len(hierarchy.windows(16 / 24, [24], 16)) == 1


@pytest.mark.parametrize(
    ("duration", "rates", "T", "words"),
    [
        (4.0, [6, 15], 16, "15 is no multiple of 6"),
        (4.0, [12, 6], 16, "6 is no multiple of 12"),
        (4.0, [6, 6], 16, "6 is no multiple of 6"),
        (2.0, [6, 12], 16, "2 s is too short: 16 frames at 6 per second"),
        (0.0, [6], 16, "duration must be"),
        (4.0, [float("nan")], 16, "above 0"),
        (float("nan"), [6], 16, "duration must be"),
        (float("inf"), [6], 16, "duration must be"),
        (4.0, [], 16, "at least one"),
        (4.0, [0, 6], 16, "above 0"),
        (4.0, [-6, 6], 16, "above 0"),
        (4.0, [6], 1, "at least 2 frames, not 1"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(duration, rates, T, words):
    with pytest.raises(ConfigError, match=words) as refused:
        hierarchy.windows(duration, rates, T)
    assert "\n" not in str(refused.value)
