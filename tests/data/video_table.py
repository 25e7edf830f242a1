"""A table of video files, each drawn so that its frames and colors are known (docs/video_files.md).

A file of frames holds COUNT of them at RATE a second; frame k carries k in eight bars, black or
white. A file of colors holds four corners: red, green, blue and grey.
"""

import fractions
import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

HEIGHT, WIDTH, COUNT, RATE = 48, 64, 60, 30
BARS, COLORS = "frames", "colors"
LATE = [k + 60 for k in range(COUNT)]
VARIABLE = [0, 1, 2, 3, 10, 11, 12, 13, 14, 40, 41, 42]
ONE, LAST = 1 << 16, 1 << 30  # of display matrices


class Case(NamedTuple):
    """A file and what is due.

    holds: BARS or COLORS. refused: what the refusal says; "": the file is right. due: numbers of
    the frames at RATE from 0 s on. ffmpeg: whether that program shows the same.
    """

    name: str
    write: Callable[[Path], object]
    holds: str = BARS
    refused: str = ""
    due: tuple[int, ...] = tuple(range(COUNT))
    ffmpeg: bool = True


def picture(k: int) -> np.ndarray:
    """Frame k: its number in eight bars, the lowest bit at the left."""
    bars = np.array([20 + 215 * ((k >> bit) & 1) for bit in range(8)], np.uint8)
    return np.tile(np.repeat(bars, WIDTH // 8)[None, :, None], (HEIGHT, 1, 3))


def number(shown: np.ndarray) -> int:
    """The inverse of `picture`, at any size."""
    width = shown.shape[1] / 8
    means = [shown[:, int((b + 0.3) * width) : int((b + 0.7) * width)].mean() for b in range(8)]
    return sum(int(mean > 128) << bit for bit, mean in enumerate(means))


def corners(scale: int = 1) -> np.ndarray:
    """Four colors, of 48 x 64 pixels times `scale`."""
    shown = np.full((HEIGHT * scale, WIDTH * scale, 3), 60, np.uint8)
    half = HEIGHT * scale // 2, WIDTH * scale // 2
    shown[: half[0], : half[1]], shown[: half[0], half[1] :] = (220, 40, 30), (30, 200, 60)
    shown[half[0] :, : half[1]] = (40, 60, 220)
    return shown


class Pipe(io.RawIOBase):
    """A file that cannot be sought."""

    def __init__(self):
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.content += bytes(data)
        return len(data)


def film(
    codec="libx264",
    pix_fmt="yuv420p",
    *,
    stamps=range(COUNT),
    ticks=RATE,
    sound=None,
    pipe="",
    flags="",
    **options,
):
    """Writes frames; sound: (first second, seconds); pipe: the container, for no seeking."""

    def write(path):
        target = Pipe() if pipe else str(path)
        settings = {"movflags": flags} if flags else {}
        with av.open(target, "w", format=pipe or None, options=settings) as file:
            texts = {name.replace("_", "-"): str(value) for name, value in options.items()}
            stream = file.add_stream(codec, rate=ticks, options=texts)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
            kind = "libopus" if path.suffix == ".webm" else "aac"
            voice = file.add_stream(kind, rate=48000, layout="mono") if sound else None
            for k, stamp in enumerate(stamps):
                frame = av.VideoFrame.from_ndarray(picture(k), "rgb24")
                frame.pts, frame.time_base = stamp, fractions.Fraction(1, ticks)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
            for k in range(int(sound[1] * 50) if sound else 0):
                quiet = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
                quiet.rate, quiet.pts = 48000, k * 960 + int(sound[0] * 48000)
                file.mux(voice.encode(quiet))
            file.mux(voice.encode() if voice else [])
        if pipe:
            path.write_bytes(target.content)

    return write


def remux(write, change, suffix=".mp4"):
    """Writes a film and copies its packets: change(k, packet) -> whether it stays."""

    def copy(path):
        source = path.with_name("source" + suffix)
        write(source)
        with av.open(str(source)) as file, av.open(str(path), "w") as out:
            stream = out.add_stream_from_template(file.streams.video[0])
            for k, packet in enumerate(p for p in file.demux(video=0) if p.size):
                if change(k, packet):
                    packet.stream = stream
                    out.mux(packet)

    return copy


def in_coded_order(k, packet):
    """Gives a packet the time of its place in the file, as writers do that know no reordering."""
    packet.pts = packet.dts = round(k / RATE / packet.time_base)
    return True


def cut(write, share):
    """Writes a film and keeps only the first part of the file."""

    def shorten(path):
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return shorten


def still(
    codec="libx264",
    pix_fmt="yuv420p",
    *,
    matrix=None,
    colorspace=2,
    full=False,
    transfer=2,
    as_matrix="ITU601",
    pixels=None,
    **options,
):
    """Writes four equal frames of colors, converted by `as_matrix` and tagged as named."""

    def write(path):
        shown = corners() if pixels is None else pixels
        with av.open(str(path), "w") as file:
            texts = {name.replace("_", "-"): str(value) for name, value in options.items()}
            stream = file.add_stream(codec, rate=10, options=texts)
            stream.height, stream.width, stream.pix_fmt = *shown.shape[:2], pix_fmt
            if matrix:
                stream.set_display_matrix(matrix)
            context = stream.codec_context
            context.colorspace, context.color_trc = colorspace, transfer
            context.color_range = 2 if full else 1
            for _ in range(4):
                frame = av.VideoFrame.from_ndarray(
                    shown, "rgb24" if shown.shape[2] == 3 else "rgba"
                )
                if not pix_fmt.startswith(("rgb", "bgr", "argb")):
                    to = {
                        "dst_colorspace": as_matrix,
                        "dst_color_range": "JPEG" if full else "MPEG",
                    }
                    frame = frame.reformat(format=pix_fmt, **to)
                    frame.colorspace, frame.color_trc = colorspace, transfer
                    frame.color_range = 2 if full else 1
                file.mux(stream.encode(frame))
            file.mux(stream.encode())

    return write


def clear(hidden):
    """The four colors over white, with alpha 0 elsewhere; `hidden` is what that covers."""
    shown = np.zeros((2 * HEIGHT, 2 * WIDTH, 4), np.uint8)
    shown[..., :3] = hidden
    shown[HEIGHT // 2 : -(HEIGHT // 2), WIDTH // 2 : -(WIDTH // 2), :3] = corners()
    shown[HEIGHT // 2 : -(HEIGHT // 2), WIDTH // 2 : -(WIDTH // 2), 3] = 255
    return shown


def two_streams(first, second, covers=False, default=(0,)):
    """Writes two video streams; of each: codec, pix_fmt, height, width, whether it has the bars."""

    def write(path):
        with av.open(str(path), "w") as file:
            streams = []
            for codec, pix_fmt, height, width, _ in (first, second):
                stream = file.add_stream(codec, rate=RATE)
                stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
                streams.append(stream)
            for k, stream in enumerate(streams):
                if covers and k == 0:
                    stream.disposition = av.stream.Disposition.attached_pic
                else:
                    stream.disposition = av.stream.Disposition(int(k in default))
            for k in range(COUNT):
                for which, (_, _, height, width, bars) in enumerate((first, second)):
                    if covers and which == 0 and k:
                        continue
                    grey = np.full((height, width, 3), 200, np.uint8)
                    image = Image.fromarray(picture(k)).resize((width, height), Image.NEAREST)
                    frame = av.VideoFrame.from_ndarray(np.array(image) if bars else grey, "rgb24")
                    frame.pts, frame.time_base = k, fractions.Fraction(1, RATE)
                    file.mux(streams[which].encode(frame))
            for stream in streams:
                file.mux(stream.encode())

    return write


B = {"bf": 3, "g": 24}
PYRAMID = {"bf": 8, "g": 24, "b_pyramid": "strict", "x264_params": "open-gop=1:b-adapt=0"}
X265 = {"x265_params": "keyint=24:bframes=4:open-gop=1:log-level=none"}
BIG, SMALL = ("libx264", "yuv420p", 96, 128, True), ("libx264", "yuv420p", 48, 64, True)
PLAIN = ("mjpeg", "yuvj420p", 64, 64, False)

CODECS = {
    "avi": {"h264 B": film(**B), "h264 pyramid": film(**PYRAMID), "h264": film(bf=0, g=24),
            "mpeg4 B": film("mpeg4", bf=2, g=24), "mpeg2 B": film("mpeg2video", bf=2, g=24),
            "mjpeg": film("mjpeg", "yuvj420p")},
    "mkv": {"h264 B": film(**B), "h264 pyramid": film(**PYRAMID), "mpeg4 B": film("mpeg4", bf=2),
            "mpeg2 B": film("mpeg2video", bf=2), "h265 B": film("libx265", **X265),
            "vp8": film("libvpx", g=24), "ffv1": film("ffv1")},
    "mp4": {"h264 B": film(**B), "h264 pyramid": film(**PYRAMID), "mpeg4 B": film("mpeg4", bf=2),
            "h265 B": film("libx265", **X265), "vp9": film("libvpx-vp9", deadline="realtime")},
    "mov": {"h264 B": film(**B), "mpeg4": film("mpeg4"), "prores": film("prores_ks", "yuv422p10le"),
            "mjpeg": film("mjpeg", "yuvj420p")},
    "webm": {"vp8": film("libvpx", g=24), "vp9": film("libvpx-vp9", g=24, deadline="realtime")},
}  # fmt: skip
STAMPS = [
    *(Case(f"coded order.{c}", remux(film(**B), in_coded_order)) for c in ("mp4", "mov", "mkv")),
    Case("coded order h265.mp4", remux(film("libx265", **X265), in_coded_order)),
    Case("600 ticks.avi", film(ticks=600, stamps=range(0, 20 * COUNT, 20), **B), ffmpeg=False),
    *(Case(f"late.{c}", film(stamps=LATE, sound=(0, 5), **B)) for c in ("mp4", "mov", "mkv")),
    *(Case(f"sound longer.{c}", film(sound=(0, 5), **B)) for c in ("mp4", "mkv")),
    Case("sound longer.webm", film("libvpx", sound=(0, 5))),
    Case("sound late.mkv", film(sound=(4, 3), **B)),
    Case("pipe.mkv", film(pipe="matroska", sound=(0, 4), **B)),
    Case("pipe.webm", film("libvpx", pipe="webm", g=24, sound=(0, 4))),
    Case("fragments.mp4", film(flags="frag_keyframe+empty_moov", sound=(0, 4), **B)),
    Case("fragments to a pipe.mp4", film(flags="frag_keyframe+empty_moov", pipe="mp4", **B)),
    *(
        Case(f"variable.{c}", film("mpeg4", stamps=VARIABLE), due=(
            *(0, 1, 2), *[3] * 7, *(4, 5, 6, 7), *[8] * 26, *(9, 10, 11)))
        for c in ("mkv", "mp4", "mov")
    ),
    Case("no key frame first.mkv", remux(film(bf=0, g=16, sc_threshold=0), lambda k, _: k >= 5),
         due=tuple(range(12, COUNT))),
    Case("half.avi", cut(film("mpeg4", g=12), 0.8), ffmpeg=False),
    Case("half.webm", cut(film("libvpx", g=24), 0.5), ffmpeg=False),
    Case("half.mp4", cut(film(flags="faststart", **B), 0.8), ffmpeg=False),
    Case("half without index.mp4", cut(film(**B), 0.8), refused="cannot be read: "),
    Case("two in one.mkv", two_streams((*SMALL[:4], False), BIG, default=(0, 1)), ffmpeg=False),
    Case("default second.mkv", two_streams((*BIG[:4], False), SMALL, default=(1,))),
    Case("still first.mov", two_streams(PLAIN, SMALL), ffmpeg=False),
    Case("cover.mp4", two_streams(PLAIN, SMALL, covers=True), ffmpeg=False),
]  # fmt: skip
MATRICES = {
    "columns mirrored": (-ONE, 0, 0, 0, ONE, 0), "rows mirrored": (ONE, 0, 0, 0, -ONE, 0),
    "half turn": (-ONE, 0, 0, 0, -ONE, 0), "clockwise": (0, ONE, 0, -ONE, 0, 0),
    "counterclockwise": (0, -ONE, 0, ONE, 0, 0), "transposed": (0, ONE, 0, ONE, 0, 0),
    "turned and mirrored": (0, -ONE, 0, -ONE, 0, 0),
}  # fmt: skip
HD = corners(13)
SHOWN = [
    *(
        Case(f"{name}.{c}", still(matrix=(*values, 0, 0, LAST), crf=4), COLORS)
        for name, values in MATRICES.items()
        for c in ("mp4", "mkv")
    ),
    Case("half a quarter turn.mp4", still(matrix=(46341, 46341, 0, -46341, 46341, 0, 0, 0, LAST)),
         COLORS, refused="turned by -45 degrees"),
    *(
        Case(f"{name}.{c}", still(colorspace=k, as_matrix=matrix, crf=4), COLORS)
        for name, k, matrix in (("bt709", 1, "ITU709"), ("bt601", 6, "ITU601"),
                                ("bt2020", 9, "BT2020"))
        for c in ("mp4", "mkv")
    ),
    Case("full range.mp4", still(colorspace=1, as_matrix="ITU709", full=True, crf=4), COLORS),
    Case("untagged HD.mp4", still(as_matrix="ITU709", pixels=HD, crf=10), COLORS, ffmpeg=False),
    Case("untagged SD.mp4", still(crf=4), COLORS),
    Case("PQ.mp4", still(transfer=16, colorspace=9), COLORS, refused=r"HDR \(PQ\); map them"),
    Case("HLG.mp4", still(transfer=18, colorspace=9), COLORS, refused=r"HDR \(HLG\); map them"),
    Case("linear.mp4", still(transfer=8, colorspace=1), COLORS, refused="transfer function 8"),
    Case("YCgCo.mp4", still(pix_fmt="yuv444p", colorspace=8), COLORS, refused="color matrix"),
    Case("10 bit.mkv", still(pix_fmt="yuv420p10le", crf=4), COLORS),
    Case("4:1:1.mkv", still("ffv1", "yuv411p"), COLORS),
    Case("16 bit.mkv", still("ffv1", "yuv444p16le"), COLORS),
    Case("RGB.mkv", still("libx264rgb", "rgb24", crf=4), COLORS),
    Case("RGB.avi", still("rawvideo", "bgr24"), COLORS),
    *(
        Case(f"transparent {name}", still(codec, kind, pixels=clear(hidden), **more), COLORS,
             ffmpeg=False)
        for hidden in ((10, 200, 30), (90, 10, 200))
        for name, codec, kind, more in (
            (f"over {hidden[0]} vp8.webm", "libvpx", "yuva420p", {"auto_alt_ref": 0, "crf": 4,
                                                                  "b": 4000000}),
            (f"over {hidden[0]} vp9.webm", "libvpx-vp9", "yuva420p", {"crf": 4, "b": 0}),
            (f"over {hidden[0]}.mov", "qtrle", "argb", {}),
        )
    ),
]  # fmt: skip
CASES = {
    case.name: case
    for case in (
        *(
            Case(f"{codec}.{c}", write)
            for c, codecs in CODECS.items()
            for codec, write in codecs.items()
        ),
        *STAMPS,
        *SHOWN,
    )
}


def by_ffmpeg(program: str, path: Path) -> list[np.ndarray]:
    """The frames that the program ffmpeg shows, in their order, each one time."""
    command = [program, "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    pipe = [*command, "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    data, frames = subprocess.run(pipe, capture_output=True, check=True).stdout, []
    while data:
        _, size, _, rest = data.split(b"\n", 3)
        width, height = map(int, size.split())
        pixels, data = rest[: 3 * width * height], rest[3 * width * height :]
        frames.append(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))
    return frames
