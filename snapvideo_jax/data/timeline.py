"""When the frames of a video are shown: in seconds from its first, whatever its container says.

AVI stores no time of display, and what is derived from its order of decoding runs backwards where
the codec reorders pictures. Their order is right all the same, so the sorted times are the right
ones. Matroska stores no length of the picture alone, and a file that was written to a pipe none at
all, so the last packets are read.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from av.error import FFmpegError

from snapvideo_jax.files.containers import REORDER, Video

_SURVEY = 2 * REORDER  # packets that show whether their times say the order of display
MAX_RATE = 1000 / 3  # frames per second; headers that say more mean their unit of time


class Timeline(NamedTuple):
    """The times of a stream.

    Attributes:
      origin: stamp of the first frame that can be decoded; what was cut out of another file may
        begin with frames that cannot.
      unit: seconds of a stamp.
      interval: seconds between frames, on average.
      slack: seconds before its time that a frame is shown: half of what usually lies between two.
      is_sorted: whether stamps say when frames are shown; else they are to be sorted.
      span: seconds from the first frame to the last, where that had to be measured; else None.
    """

    origin: int
    unit: float
    interval: float
    slack: float
    is_sorted: bool
    span: float | None

    def seconds(self, stamp: int) -> float:
        """Returns the time of a stamp, from the first frame.

        Stamps of a constant rate that are rounded, to milliseconds in Matroska, are put right.
        """
        seconds = (stamp - self.origin) * self.unit
        grid = round(seconds / self.interval) * self.interval
        return grid if abs(seconds - grid) <= self.unit else seconds


def read_timeline(video: Video, max_frames: int) -> Timeline:
    """Reads the header and the first packets; all packets where the header gives no frame rate.

    The file is then to be sought. Raises ValueError where the stream holds no packet, or more than
    one frame would need to have a rate.
    """
    stream = video.stream
    packets = list(itertools.islice(video.packets(), _SURVEY))
    stamps = [_stamp(packet) for packet in packets]
    if not stamps:
        raise ValueError("its video stream is empty")
    origin, unit = min(stamps), float(stream.time_base)
    in_order = all(a <= b for a, b in itertools.pairwise(stamps))
    is_sorted = not (in_order and stream.codec_context.has_b_frames)
    if is_sorted and (stamps[0] > origin or not packets[0].is_keyframe):
        origin = _first_stamp(video, origin)
    rate = float(stream.average_rate or 0)
    span = None
    if not 0 < rate <= MAX_RATE:
        stamps = _all_stamps(video, max_frames)
        span = (max(stamps) - origin) * unit
        if span <= 0:
            raise ValueError("the header gives no frame rate, and one frame has none")
        rate = (len(stamps) - 1) / span
    gaps = np.diff(sorted(stamps[:_SURVEY])) * unit
    usual = float(np.median(gaps)) if gaps.size else 1 / rate
    return Timeline(origin, unit, 1 / rate, min(usual, 1 / rate) / 2, is_sorted, span)


def last_time(video: Video, timeline: Timeline, max_frames: int) -> float:
    """Returns when the last frame starts, in seconds.

    The index of MOV and MP4 is trusted. In all else the last packets are read, or all of them
    where the file cannot be sought.
    """
    if timeline.span is not None:
        return timeline.span
    stream = video.stream
    if stream.frames and stream.duration and "mp4" in video.format:
        if (last := video.last_whole()) is not None:
            return timeline.seconds(last)
        end = (stream.start_time or 0) + stream.duration
        return (end - timeline.origin) * timeline.unit - timeline.interval
    try:
        video.seek_end()
        stamps = [_stamp(packet) for packet in video.packets()]
    except FFmpegError:
        stamps = []
    return timeline.seconds(max(stamps or _all_stamps(video, max_frames)))


def timed_frames(
    video: Video, timeline: Timeline, start: float = 0.0
) -> Iterator[tuple[float, Any]]:
    """Yields (seconds, frame) in the order of display, from one shown at `start` or earlier.

    Where the index does not lead there, from the first frame. Raises ValueError where times run
    backwards.
    """
    # Frames that are shown before a key frame but decoded after it are lost by seeking to it.
    margin = 0.0 if timeline.is_sorted else REORDER * timeline.interval
    for back in (margin, margin + 2 * REORDER * timeline.interval):
        sought = max(0.0, start - back)
        video.seek(timeline.origin + math.floor(sought / timeline.unit))
        frames = _in_order(video, timeline)
        first = next(frames, None)
        if first is not None and first[0] <= sought + timeline.interval / 2:
            break
    else:
        video.open()
        frames = _in_order(video, timeline)
        first = next(frames, None)
    if first is not None:
        yield first
    yield from frames


def _in_order(video: Video, timeline: Timeline) -> Iterator[tuple[float, Any]]:
    """Yields (seconds, frame), with sorted stamps where they do not come so."""
    last = None
    frames = video.frames()
    for stamp, frame in _stamped(frames) if timeline.is_sorted else _sort_stamps(frames):
        if last is not None and stamp < last:
            raise BackwardsError(f"its times run backwards at {timeline.seconds(stamp):.3f} s")
        last = stamp
        yield timeline.seconds(stamp), frame


class BackwardsError(ValueError):
    """Frames whose times do not rise in the order of display."""


def _sort_stamps(frames: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    """Deals the stamps of the next REORDER frames out to them in rising order."""
    stamps: list[int] = []
    shown: deque = deque()
    for frame in frames:
        heapq.heappush(stamps, _stamp(frame))
        shown.append(frame)
        if len(shown) > REORDER:
            yield heapq.heappop(stamps), shown.popleft()
    while shown:
        yield heapq.heappop(stamps), shown.popleft()


def _stamped(frames: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    return ((_stamp(frame), frame) for frame in frames)


def _stamp(item: Any) -> int:
    """Returns the time of a packet or frame, in the stream's units; ValueError without one."""
    stamp = item.dts if item.pts is None else item.pts
    if stamp is None:
        raise ValueError("a frame has no time")
    return stamp


def _first_stamp(video: Video, default: int) -> int:
    """Decodes the first frame and returns its time; `default` where there is none."""
    video.open()
    frame = next(video.frames(), None)
    return default if frame is None else _stamp(frame)


def _all_stamps(video: Video, max_frames: int) -> list[int]:
    """Reads the times of all packets; ValueError if they are over `max_frames`."""
    video.open()
    stamps = [_stamp(packet) for packet in itertools.islice(video.packets(), max_frames + 1)]
    if len(stamps) > max_frames:
        raise ValueError(f"over {max_frames} frames; cut the video into shorter files")
    return stamps
