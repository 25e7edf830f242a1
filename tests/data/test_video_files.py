"""Every file of the table comes out right, frame by frame and color by color, or is refused."""

import re

import numpy as np
import pytest

from snapvideo_jax.data import clips
from snapvideo_jax.errors import DataError
from tests.data import video_table
from tests.data.video_table import CASES, COLORS, COUNT, HEIGHT, RATE, WIDTH, number

QUICK = (
    "h264 B.avi", "h264 pyramid.avi", "h264 pyramid.mp4", "coded order.mp4", "late.mkv",
    "sound longer.mkv", "pipe.webm", "fragments.mp4", "variable.mp4", "no key frame first.mkv",
    "half.avi", "default second.mkv", "still first.mov", "cover.mp4", "rows mirrored.mp4",
    "transposed.mkv", "half a quarter turn.mp4", "untagged HD.mp4", "full range.mp4", "HLG.mp4",
    "transparent over 10 vp9.webm", "transparent over 90 vp9.webm",
)  # fmt: skip
CORNERS = ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))


def cases(names):
    return pytest.mark.parametrize("case", [CASES[name] for name in names], ids=lambda c: c.name)


def ffmpeg():
    """The program ffmpeg, or None where it is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    return imageio_ffmpeg.get_ffmpeg_exe()


def decode(path, start, count, rate=RATE, height=HEIGHT, width=WIDTH):
    return clips.decode_clip(
        path, start=start, frame_rate=rate, num_frames=count, height=height, width=width
    )


def check(case, folder):
    path = folder / case.name
    case.write(path)
    if case.refused:
        with pytest.raises(DataError, match=re.escape(str(path)) + ": .*" + case.refused):
            clips.probe(path)
            decode(path, 0.0, 1)
    elif case.holds == COLORS:
        check_colors(case, path)
    else:
        check_frames(case, path)


def check_frames(case, path):
    info = clips.probe(path)
    due = case.due[: round(info.duration * RATE)]
    if case.name.startswith("half"):
        assert len(due) >= 10
    else:
        assert info.duration == pytest.approx(len(case.due) / RATE, abs=0.4 / RATE)
    if "variable" not in case.name:
        assert info.frame_rate == pytest.approx(RATE, rel=0.02)
    assert tuple(number(frame) for frame in decode(path, 0.0, len(due))) == due
    for first, count in ((len(due) - 5, 5), (len(due) // 2, 4), (len(due) // 3 + 0.2, 1), (7, 2)):
        shown = [number(frame) for frame in decode(path, first / RATE, count)]
        assert tuple(shown) == due[int(first) : int(first) + count], first
    if case.ffmpeg and ffmpeg():
        there = [number(frame) for frame in video_table.by_ffmpeg(ffmpeg(), path)]
        assert there == sorted(set(due))


def check_colors(case, path):
    info = clips.probe(path)
    (shown,) = decode(path, 0.0, 1, 10, info.height, info.width)
    if case.ffmpeg and ffmpeg():
        due = video_table.by_ffmpeg(ffmpeg(), path)[0]
        assert due.shape == shown.shape
    else:
        due = expected(case)
    if "transparent" in case.name:
        assert shown[4, 4] == pytest.approx((255, 255, 255), abs=3)
        shown = shown[HEIGHT // 2 : -(HEIGHT // 2), WIDTH // 2 : -(WIDTH // 2)]
    for row, column in CORNERS:
        here, there = (
            pixels[int(row * len(pixels)), int(column * pixels.shape[1])].astype(int)
            for pixels in (shown, due)
        )
        assert np.abs(here - there).max() <= 6, (here, there)
    if not any(name in case.name for name in video_table.MATRICES):
        np.testing.assert_allclose(corners_of(shown), corners_of(video_table.corners()), atol=6)


def expected(case):
    """The four colors as displayed."""
    pixels = video_table.corners()
    for name, (a, b, _, c, d, _) in video_table.MATRICES.items():
        if case.name.startswith(name + "."):
            # Where the pixel at (x, y) from the center is displayed: (a x + c y, b x + d y).
            columns, rows = (
                np.array([[a * x + c * y, b * x + d * y] for y in (-1, 1) for x in (-1, 1)]).T > 0
            )
            shown = pixels if not b else pixels.swapaxes(0, 1)
            shown = shown.copy()
            height, width = shown.shape[:2]
            for value, right, below in zip(corners_of(pixels), columns, rows, strict=True):
                rows_of = slice(height // 2, None) if below else slice(None, height // 2)
                columns_of = slice(width // 2, None) if right else slice(None, width // 2)
                shown[rows_of, columns_of] = value
            return shown
    return pixels


def corners_of(pixels):
    height, width = pixels.shape[:2]
    return [pixels[int(r * height), int(c * width)].astype(int) for r, c in CORNERS]


@cases(QUICK)
def test_these_files_are_right(tmp_path, case):
    check(case, tmp_path)


@pytest.mark.slow
@cases([name for name in CASES if name not in QUICK])
def test_all_other_files_of_the_table_are_right(tmp_path, case):
    check(case, tmp_path)


def test_the_table_has_at_least_sixty_files():
    assert len(CASES) >= 60 and set(QUICK) <= CASES.keys() and COUNT == 60
