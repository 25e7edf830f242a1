"""One file -> the frames of one training example, read here or in a process (decoders.py)."""

from typing import Literal, NamedTuple

from snapvideo_jax.data import order
from snapvideo_jax.data.choice import (
    Clip,
    ClipSpec,
    Decode,
    VideoInfo,
    draw_clip,
    draw_framing,
    draw_still,
    flipped,
)
from snapvideo_jax.files.tar import Member


class Request(NamedTuple):
    """What is to be read, as values that JSON holds.

    kind: "clip" of a video, "frame" of a video (a still), or "picture" (a still, too). seed, g and
    stream: of the random numbers that choose the clip's rate and start.
    """

    kind: Literal["clip", "frame", "picture"]
    path: str | Member
    spec: ClipSpec
    seed: int
    g: int
    stream: str


def read(request: Request) -> Clip:
    """Reads a file; a still is one frame. Raises DataError if the file cannot be read.

    The decoder is imported here: benchmarks and plans decode nothing and need none installed.
    """
    from snapvideo_jax.data import clips

    path, spec = request.path, request.spec
    framing = draw_framing(spec, request.seed, request.g)
    if request.kind == "picture":
        picture = clips.load_image(path, spec.height, spec.width, framing)
        info = VideoInfo(str(path), 0.0, 0.0, *clips.probe_image(path))
        return Clip(flipped(picture[None], framing), 0.0, info, start=0.0, framing=framing)
    rng = order.generator(request.seed, request.g, request.stream)
    draw = draw_clip if request.kind == "clip" else draw_still
    return draw(clips.probe(path), spec, rng, _decoder(path, spec), framing)


def _decoder(path: str | Member, spec: ClipSpec) -> Decode:
    from snapvideo_jax.data import clips

    return lambda start, rate, num_frames, framing: clips.decode_clip(
        path,
        start=start,
        frame_rate=rate,
        num_frames=num_frames,
        height=spec.height,
        width=spec.width,
        framing=framing,
    )
