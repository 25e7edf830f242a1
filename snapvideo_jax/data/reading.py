"""One file -> the frames of one training example, read here or in a process (decoders.py)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from snapvideo_jax.data import order

Size = tuple[int, int]  # H, W of a source
# Frames (one of a still), frame interval in seconds (0 of a still), size of the source.
Clip = tuple[UInt8[np.ndarray, "_ H W 3"], float, Size]


@dataclass(frozen=True)
class ClipSpec:
    """The clips that training draws: T frames of H x W at one of the frame rates (1/s)."""

    num_frames: int
    height: int
    width: int
    frame_rates: Sequence[float]


class Request(NamedTuple):
    """What is to be read, as values that JSON holds.

    kind: "clip" of a video, "frame" of a video (a still), or "picture" (a still, too). seed, g and
    stream: of the random numbers that choose the clip's rate and start.
    """

    kind: Literal["clip", "frame", "picture"]
    path: str
    spec: ClipSpec
    seed: int
    g: int
    stream: str


def read(request: Request) -> Clip:
    """Reads a file; raises DataError if that cannot be.

    The decoder is imported here: benchmarks and plans decode nothing and need none installed.
    """
    from snapvideo_jax.data import clips

    path, spec = Path(request.path), request.spec
    if request.kind == "picture":
        picture = clips.load_image(path, spec.height, spec.width)
        return picture[None], 0.0, clips.probe_image(path)
    rng, info = order.generator(request.seed, request.g, request.stream), clips.probe(path)
    if request.kind == "clip":
        return _draw_clip(info, spec, rng)
    one_frame = replace(spec, num_frames=1, frame_rates=(info.frame_rate,))
    frame, _, size = _draw_clip(info, one_frame, rng)
    return frame, 0.0, size


def _draw_clip(info: Any, spec: ClipSpec, rng: np.random.Generator) -> Clip:
    """Draws a clip of the video that `clips.probe` returned `info` about."""
    from snapvideo_jax.data import clips

    start, rate = clips.choose_clip(
        info, num_frames=spec.num_frames, frame_rates=spec.frame_rates, rng=rng
    )
    frames = clips.decode_clip(
        info.path,
        start=start,
        frame_rate=rate,
        num_frames=spec.num_frames,
        height=spec.height,
        width=spec.width,
    )
    return frames, 1 / rate, (info.height, info.width)
