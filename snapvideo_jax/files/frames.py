"""Decoded frames -> RGB as displayed: colors by their tags, means over areas, upright.

The three planes of a frame are scaled each by itself. FFmpeg's scaler would halve the colors'
resolution on its way to RGB, and so sample them where it should average.
"""

from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from jaxtyping import Shaped, UInt8

BACKGROUND = 255  # shown where a picture is transparent: white, as on a page
_AREA = Interpolation.AREA
_EXACT = Interpolation.POINT | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_FULL_RANGE, _UNTAGGED = 2, 2  # of color_range; of the other tags (ITU-T H.273)
_MATRICES = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020"}
_HD = 1280, 576  # columns, rows above which what is not tagged is BT.709
# Transfer functions near enough to sRGB's to be shown as they are, and two that are not.
_TRANSFERS = {0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15}
_HDR = {16: "PQ", 18: "HLG"}
# Columns and rows of chroma for 64 of luma -> how planar formats are called.
_CHROMA = {
    (64, 64): "444", (32, 64): "422", (32, 32): "420",
    (16, 64): "411", (16, 16): "410", (64, 32): "440",
}  # fmt: skip
_DEPTHS = 8, 9, 10, 12, 14, 16  # bits that planar formats have
_AS_RGB = "pal8", "monow", "monob", "xyz12le", "xyz12be"


class Orientation(NamedTuple):
    """How a stored frame becomes the displayed one: transposed first, then mirrored."""

    transpose: bool
    flip_rows: bool
    flip_columns: bool


def orientation(frame: Any) -> Orientation:
    """Reads the display matrix; raises ValueError where it is no quarter turn and no mirror."""
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return Orientation(False, False, False)
    a, b, _, c, d, *_ = np.frombuffer(stored, np.int32).astype(float)
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if max(a, b, c, d, key=abs) == 0:  # says nothing
        return Orientation(False, False, False)
    if max(abs(b), abs(c)) < 0.02 * straight:
        return Orientation(False, flip_rows=d < 0, flip_columns=a < 0)
    if max(abs(a), abs(d)) < 0.02 * crossed:
        return Orientation(True, flip_rows=b < 0, flip_columns=c < 0)
    turn = -np.degrees(np.arctan2(b, a))
    raise ValueError(f"is displayed turned by {turn:.0f} degrees; turn its frames and encode anew")


def upright(pixels: UInt8[np.ndarray, "H W 3"], how: Orientation) -> UInt8[np.ndarray, "_ _ 3"]:
    """Returns the frame as it is displayed."""
    pixels = pixels.swapaxes(0, 1) if how.transpose else pixels
    pixels = pixels[::-1] if how.flip_rows else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if how.flip_columns else pixels)


def over_background(pixels: UInt8[np.ndarray, "*shape"], alpha: UInt8[np.ndarray, "*shape"]):
    """Lays values over BACKGROUND: what alpha 0 hides is not seen."""
    weight = alpha.astype(np.uint16)
    mixed = pixels * weight + np.uint16(BACKGROUND) * (255 - weight)
    return ((mixed + 127) // 255).astype(np.uint8)


def _matrix(frame: Any) -> Colorspace:
    """Returns the matrix between a frame's Y'CbCr and RGB; ValueError for one we do not know."""
    tag = int(frame.colorspace)
    if tag in (0, _UNTAGGED, 3):
        large = frame.width >= _HD[0] or frame.height > _HD[1]
        return Colorspace.ITU709 if large else Colorspace.ITU601
    if tag not in _MATRICES:
        raise ValueError(f"its color matrix (number {tag}) is unknown; encode it as BT.709")
    return Colorspace[_MATRICES[tag]]


def _check_transfer(frame: Any) -> None:
    """Raises ValueError for colors that would come out dim or pale on an ordinary screen."""
    tag = int(frame.color_trc)
    if tag not in _TRANSFERS:
        kind = f"HDR ({_HDR[tag]})" if tag in _HDR else f"of transfer function {tag}"
        raise ValueError(f"its colors are {kind}; map them to SDR (BT.709) and encode anew")


class Scaler:
    """Scales frames and turns them into RGB; one for each clip, since setting up takes time."""

    def __init__(self):
        self._planar, self._rgb = VideoReformatter(), VideoReformatter()
        self._scale = [VideoReformatter() for _ in range(3)]

    def __call__(self, frame: Any, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
        """Returns a frame, as stored, scaled to height x width by means over areas.

        Raises ValueError where its tags name colors that cannot be shown right.
        """
        _check_transfer(frame)
        kind = frame.format
        alpha = any(part.is_alpha for part in kind.components) or kind.name == "pal8"
        if kind.is_rgb or alpha or kind.name in _AS_RGB:
            return np.stack(self._scale_rgb(frame, alpha, height, width), axis=-1)
        return self._scale_yuv(frame, height, width)

    def _scale_rgb(self, frame: Any, alpha: bool, height: int, width: int) -> list:
        """Returns red, green and blue, scaled after they were laid over the background."""
        colors = {} if frame.format.is_rgb else self._colors(frame)
        name = "gbrap" if alpha else "gbrp"
        planar = self._planar.reformat(
            frame, format=name, interpolation=_EXACT, threads=1, **colors
        )
        green, blue, red, *opacity = (_values(plane, 1) for plane in planar.planes)
        if opacity:
            red, green, blue = (over_background(v, opacity[0]) for v in (red, green, blue))
        return [self._scale_plane(k, v, height, width) for k, v in enumerate((red, green, blue))]

    def _scale_yuv(self, frame: Any, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
        """Returns RGB of scaled luma and chroma, each averaged by itself."""
        depth = max(part.bits for part in frame.format.components)
        depth = depth if depth in _DEPTHS else 8
        planar, itemsize = self._as_planar(frame, depth), 1 if depth == 8 else 2
        planes = [
            self._scale_plane(k, _values(plane, itemsize), height, width)
            for k, plane in enumerate(planar.planes)
        ]
        if len(planes) == 1:  # grey
            planes += 2 * [np.full_like(planes[0], 1 << (depth - 1))]
        merged = av.VideoFrame(width, height, f"yuv444p{_suffix(depth)}")
        for plane, values in zip(merged.planes, planes, strict=True):
            _values(plane, itemsize)[:] = values
        colors = self._colors(frame)
        rgb = self._rgb.reformat(merged, format="rgb24", interpolation=_EXACT, threads=1, **colors)
        return _values(rgb.planes[0], 1, channels=3).copy()

    def _as_planar(self, frame: Any, depth: int) -> Any:
        """Returns the frame with a plane for each component."""
        kind = frame.format
        if len(kind.components) == 1:
            name = f"gray{_suffix(depth)}"
        else:
            name = f"yuv{_CHROMA.get((kind.chroma_width(64), kind.chroma_height(64)), '444')}p"
            name += _suffix(depth)
            name = name if _exists(name) else f"yuv444p{_suffix(depth)}"
        if kind.name in (name, name.replace("yuv", "yuvj")):
            return frame
        return self._planar.reformat(frame, format=name, interpolation=_EXACT, threads=1)

    def _scale_plane(
        self, k: int, values: Shaped[np.ndarray, "h w"], height: int, width: int
    ) -> Shaped[np.ndarray, "H W"]:
        """Scales the k-th plane of a frame."""
        if values.shape == (height, width):
            return values
        name = "gray" if values.dtype == np.uint8 else "gray16le"
        plane = av.VideoFrame.from_numpy_buffer(values, format=name)
        scaled = self._scale[k].reformat(
            plane, width=width, height=height, interpolation=_AREA, threads=1
        )
        return _values(scaled.planes[0], values.itemsize).copy()

    def _colors(self, frame: Any) -> dict:
        """Returns the arguments of a conversion from the frame's Y'CbCr to RGB."""
        grey = len(frame.format.components) == 1  # FFmpeg's grey is of full range if untagged
        tag = int(frame.color_range)
        full = tag == _FULL_RANGE or (tag == 0 and grey) or frame.format.name.startswith("yuvj")
        matrix = _matrix(frame)
        return {
            "src_colorspace": matrix,
            "dst_colorspace": matrix,
            "src_color_range": "JPEG" if full else "MPEG",
            "dst_color_range": "JPEG",
        }


def _exists(name: str) -> bool:
    try:
        av.VideoFormat(name)
    except ValueError:
        return False
    return True


def _suffix(depth: int) -> str:
    """Returns what the names of planar formats of so many bits end with."""
    return "" if depth == 8 else f"{depth}le"


def _values(plane: Any, itemsize: int, channels: int = 1) -> Any:
    """Returns a plane's values [H, W] without copying them."""
    kind = np.uint8 if itemsize == 1 else np.dtype("<u2")
    rows = np.frombuffer(plane, kind).reshape(-1, plane.line_size // itemsize)
    rows = rows[: plane.height, : plane.width * channels]
    return rows if channels == 1 else rows.reshape(plane.height, plane.width, channels)
