"""Video files: uint8 [T, H, W, 3] <-> mp4, GIF, PNG frames and npz; and contact sheets."""

import io
import textwrap
import zipfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from snapvideo_jax import storage
from snapvideo_jax.errors import DataError

Video = UInt8[np.ndarray, "T H W 3"]

MIN_SIDE = 128  # pixels; players show smaller videos too small to see, or not at all
MAX_BYTES = 4 * 2**30  # of a whole video that is read

_INDEX, _INDEX_OF_FRAME = 2048, 32  # bytes of an mp4's index, at most
_BT709, _LIMITED_RANGE = 1, 1  # in an mp4's tags of color (ITU-T H.273)
_MARGIN, _GAP, _FONT_SIZE = 12, 2, 15  # pixels of a contact sheet
_LONGEST_TITLE = 400  # characters
_BLACK, _GREEN, _RED, _GRAY = (20, 20, 20), (0, 150, 60), (210, 30, 40), 170


def default_scale(video: Video) -> int:
    """Returns the smallest whole factor that brings the short side to at least 128 pixels."""
    return -(-MIN_SIDE // min(video.shape[1:3]))


def _enlarge(video: Video, scale: int | None) -> UInt8[np.ndarray, "T _ _ 3"]:
    """Turns each pixel into a square of scale x scale."""
    scale = default_scale(video) if scale is None else scale
    return video.repeat(scale, axis=1).repeat(scale, axis=2)


def write_mp4(path: str | Path, video: Video, frame_rate: float, scale: int | None = None) -> None:
    """Writes H.264 that plays everywhere (yuv420p, crf 18), its colors tagged as BT.709.

    The index stands before the frames, so that a player starts before it has read the whole file.
    An odd height or width, which yuv420p cannot hold, grows by one repeated row or column.

    Args:
      path: the file, replaced in one step.
      video: frames to write.
      frame_rate: frames per second.
      scale: whole factor by which pixels are repeated; None: `default_scale`.

    Raises:
      StorageError: the file cannot be written.
    """
    import av

    video = _enlarge(video, scale)
    height, width = video.shape[1:3]
    video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    content = io.BytesIO()
    index = str(_INDEX + _INDEX_OF_FRAME * len(video))
    with av.open(content, "w", format="mp4", options={"moov_size": index}) as container:
        rate = Fraction(frame_rate).limit_denominator(1001)  # 30000 / 1001 stays exact
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1  # the same bytes on every machine
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED_RANGE
        for pixels in video:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())
    storage.write(path, content.getvalue())


def write_gif(path: str | Path, video: Video, frame_rate: float, scale: int | None = None) -> None:
    """Writes an endless GIF with 256 colors a frame.

    Args:
      path: the file, replaced in one step.
      video: frames to write.
      frame_rate: frames per second; GIF counts hundredths of a second, and viewers slow down
        anything faster than 50. 0, of a still, is one.
      scale: as for `write_mp4`.

    Raises:
      StorageError: the file cannot be written.
    """
    # The octree is 70 times faster than Pillow's default median cut.
    frames = [
        Image.fromarray(pixels).quantize(256, method=Image.Quantize.FASTOCTREE)
        for pixels in _enlarge(video, scale)
    ]
    content = io.BytesIO()
    frames[0].save(
        content,
        format="gif",
        save_all=True,
        append_images=frames[1:],
        duration=max(20, round(1000 / (frame_rate or 1))),
        loop=0,
    )
    storage.write(path, content.getvalue())


def write_frames(path: str | Path, video: Video, frame_rate: float) -> None:
    """Writes the folder `path` of 0000.png, 0001.png, ..., lossless; no `frame_rate` is stored.

    Raises:
      StorageError: the folder cannot be written.
    """
    folder = storage.make_folder(path)
    for number, pixels in enumerate(video):
        write_png(folder / f"{number:04d}.png", Image.fromarray(pixels))


def read_frames(path: str | Path) -> Video:
    """Reads the frames that `write_frames` wrote; raises DataError if the folder holds no such."""
    try:
        frames = [np.asarray(Image.open(file)) for file in sorted(Path(path).glob("*.png"))]
        video = np.stack(frames)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not a folder of PNG frames of one size") from error
    return _check(path, video)


def _check(path: str | Path, video: Shaped[np.ndarray, "..."]) -> Video:
    """Returns the video; raises DataError where it is something else."""
    if video.ndim != 4 or video.dtype != np.uint8 or video.shape[-1] != 3:
        raise DataError(f"{path}: holds {video.dtype} {video.shape}, expected uint8 [T, H, W, 3]")
    return video


def write_npz(path: str | Path, video: Video, frame_rate: float) -> None:
    """Writes NumPy's npz with the arrays `video`, lossless, and `frame_rate`.

    Raises:
      StorageError: the file cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(content, video=video, frame_rate=np.float64(frame_rate))
    storage.write(path, content.getvalue())


def read_npz(path: str | Path) -> Video:
    """Reads the video that `write_npz` wrote; raises DataError if the file holds no such."""
    try:
        # np.load leaves a file open that it opened itself and finds damaged.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            video = arrays["video"]
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is not an npz of a video") from error
    return _check(path, video)


def read_video(path: str | Path) -> Video:
    """Reads all frames of a video or GIF file, upright and in their own size.

    Raises:
      DataError: the file is no readable video, needs over 4 GiB, or changes its size.
    """
    from snapvideo_jax.files import containers, frames

    shown, count, scale = [], 0, frames.Scaler()
    formats, problem = f"{containers.CONTAINERS},gif", "is not a readable video"
    with containers.open_video(path, formats, problem) as video:
        for frame in video.frames():
            count += 3 * frame.height * frame.width
            if count > MAX_BYTES:
                raise DataError(f"{path}: is over {MAX_BYTES >> 30} GiB decoded; cut it")
            pixels = scale(frame, frame.height, frame.width)
            shown.append(frames.upright(pixels, frames.orientation(frame)))
    if not shown:
        raise DataError(f"{path}: holds no frame")
    sizes = sorted({pixels.shape[:2] for pixels in shown})
    if len(sizes) > 1:
        raise DataError(f"{path}: its frames are of {len(sizes)} sizes, {sizes[0]}, {sizes[1]} ...")
    return np.stack(shown)


def thumbnail(video: Video) -> UInt8[np.ndarray, "T _ _ 3"]:
    """Repeats or drops pixels until the short side has 128 to 255 of them."""
    skip = max(1, min(video.shape[1:3]) // MIN_SIDE)
    return _enlarge(video[:, ::skip, ::skip], None)


def contact_sheet(
    videos: Sequence[UInt8[np.ndarray, "_ H W 3"]],
    titles: Sequence[str],
    columns: int = 4,
    scale: int = 4,
    frames: int = 4,
    marks: Sequence[bool] | None = None,
) -> Image.Image:
    """Draws many videos on one white sheet, each a strip of frames with its title below.

    Args:
      videos: of one size; lengths may differ.
      titles: one for each video.
      columns: strips side by side, at most.
      scale: whole factor by which pixels are repeated.
      frames: frames of each video, evenly spread from its first to its last, from left to right.
      marks: for each video a green tick (True) or a red cross (False) before its title.
    """
    strips = [_strip(video, frames, scale) for video in videos]
    font = ImageFont.load_default(_FONT_SIZE)
    indent = 0 if marks is None else _FONT_SIZE + 5
    width = max(strip.width for strip in strips)
    wrapped = [_wrap(title, font, width - indent) for title in titles]
    line = _FONT_SIZE + 4
    cell_height = max(s.height for s in strips) + line * max(map(len, wrapped)) + _MARGIN
    columns = min(columns, len(strips))
    rows = -(-len(strips) // columns)
    size = (columns * (width + _MARGIN) + _MARGIN, rows * (cell_height + _MARGIN) + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for k, (strip, lines) in enumerate(zip(strips, wrapped, strict=True)):
        left = _MARGIN + k % columns * (width + _MARGIN)
        top = _MARGIN + k // columns * (cell_height + _MARGIN)
        sheet.paste(strip, (left, top))
        below = top + strip.height + 4
        if marks is not None:
            _draw_mark(draw, left, below, marks[k])
        for number, words in enumerate(lines):
            draw.text((left + indent, below + number * line), words, fill=_BLACK, font=font)
    return sheet


def moving_sheet(
    videos: UInt8[np.ndarray, "N T H W 3"], titles: Sequence[str], columns: int = 4, scale: int = 4
) -> UInt8[np.ndarray, "T _ _ 3"]:
    """Draws a `contact_sheet` in which all videos move."""
    moments = np.swapaxes(videos[:, :, None], 0, 1)  # [T, N, 1, H, W, 3]
    sheets = [contact_sheet(list(now), titles, columns, scale, frames=1) for now in moments]
    return np.stack([np.asarray(sheet) for sheet in sheets])


def write_png(path: str | Path, picture: Image.Image) -> None:
    """Writes a picture, such as a contact sheet, in one step; StorageError if that fails."""
    content = io.BytesIO()
    picture.save(content, format="png")
    storage.write(path, content.getvalue())


def _strip(video: Video, frames: int, scale: int) -> Image.Image:
    """Lays frames side by side with a gray line between them, which white frames need too."""
    chosen = np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)
    pixels = _enlarge(video[chosen], scale)
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=_GRAY)
    return Image.fromarray(np.concatenate(pixels, axis=1)[:, :-_GAP])


def _wrap(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Cuts the title into lines of at most `width` pixels, and off where it is very long."""
    if len(title) > _LONGEST_TITLE:
        title = f"{title[:_LONGEST_TITLE]} ..."
    characters = max(1, int(len(title) * width / max(1.0, font.getlength(title))))
    while characters > 1:
        lines = textwrap.wrap(title, characters)
        if all(font.getlength(line) <= width for line in lines):
            return lines
        characters -= 1
    return textwrap.wrap(title, 1)


def _draw_mark(draw: ImageDraw.ImageDraw, left: int, top: int, right: bool) -> None:
    """Draws a tick or a cross, as tall as the text beside it."""
    strokes = [((0, 8), (5, 13)), ((5, 13), (14, 2))]
    if not right:
        strokes = [((1, 2), (13, 14)), ((13, 2), (1, 14))]
    for stroke in strokes:
        points = [(left + x, top + y) for x, y in stroke]
        draw.line(points, fill=_GREEN if right else _RED, width=3)
