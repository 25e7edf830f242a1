"""Video containers: which stream of a file is the video, and its frames in the order of display.

Files are not trusted: only containers that cannot refer to other files or to the network are
opened, the size of a frame is bounded, and whatever the decoder raises becomes a DataError.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition

from snapvideo_jax.errors import DataError, UserError, reason, unreadable
from snapvideo_jax.files.tar import Member

REORDER = 17  # packets that a frame may be decoded ahead of its display; codecs allow 16
MAX_PIXELS = 64 * 2**20  # of one frame or picture
CONTAINERS = "mov,mp4,matroska,webm,avi"  # playlists are left out: they open other files
_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_PICTURES = ("mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000")  # codecs of covers too
_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave WebM's alpha out


Place = str | Path | Member  # of a video: a file, or a part of one


class Video:
    """An open file, its video stream, and what decodes it in one thread.

    Attributes:
      stream: of the video; players show this one.
      format: the container, as FFmpeg calls it: "avi", "mov,mp4,m4a,3gp,3g2,mj2" ...
    """

    def __init__(self, path: Place, formats: str):
        self._path, self._formats = path, formats
        self._member: Any = path.open() if isinstance(path, Member) else None
        self.open()

    def open(self) -> None:
        """Opens the file at its beginning, also where it is open already."""
        # FFmpeg never takes an absolute path for a protocol such as "concat:".
        file = self._member or str(Path(str(self._path)).absolute())
        if self._member:
            self._member.seek(0)
        self._container = av.open(file, options={"format_whitelist": self._formats})
        self.format = self._container.format.name
        self._sought = False
        self.stream = _video_stream(self._path, self._container)
        self._decoder = _decoder(self._path, self.stream)

    def close(self) -> None:
        """Closes the file."""
        self._container.close()
        if self._member:
            self._member.close()

    def last_whole(self) -> int | None:
        """Returns the time of decoding of the last packet that a file holds before it is cut off.

        Returns None where the index says that it is whole, or there is none. ValueError if there is
        no such packet.
        """
        entries = self.stream.index_entries
        place = self._path
        size = place.size if isinstance(place, Member) else Path(place).stat().st_size
        if not len(entries) or entries[-1].pos + entries[-1].size <= size:
            return None
        whole = [entry for entry in entries if entry.pos + entry.size <= size]
        if not whole:
            raise ValueError("is cut off before its first frame")
        return whole[-1].timestamp

    def packets(self) -> Iterator[Any]:
        """Yields the stream's packets that are shown, in the order of decoding."""
        return (packet for packet in self._demux() if packet.size and not packet.is_discard)

    def frames(self) -> Iterator[Any]:
        """Yields frames in the order of display, from the place sought; `pts` is their packet's.

        Frames that are shown before a key frame but decoded after it may need what lies before the
        place sought: those are left out.
        """
        for count, packet in enumerate(self._demux()):
            try:
                yield from self._decoder.decode(packet if packet.size else None)
            except InvalidDataError:
                if not self._sought or count > REORDER:
                    raise

    def _demux(self) -> Iterator[Any]:
        """Yields packets, and an empty one at the end.

        AVI has times of decoding alone, and what FFmpeg derives from them is sometimes wrong: they
        stand in for those of display, which follow from them (data/timeline.py).
        """
        for packet in self._container.demux(self.stream):
            if self.format == "avi":
                packet.pts = packet.dts
            if not packet.is_corrupt:  # the last one of a file that was cut off
                yield packet

    def seek(self, stamp: int) -> None:
        """Goes to the last key frame at `stamp` or before, or else to any frame."""
        try:
            self._container.seek(stamp, stream=self.stream)
        except FFmpegError:
            self._container.seek(stamp, stream=self.stream, any_frame=True)
        self._sought = True
        self._flush()

    def seek_end(self) -> None:
        """Goes to the last key frame; FFmpegError where the file has no index."""
        self._container.seek(1 << 62)
        self._flush()

    def _flush(self) -> None:
        if self._decoder is not self.stream.codec_context and self._decoder.is_open:
            self._decoder.flush_buffers()


@contextlib.contextmanager
def as_data_error(path: object, problem: str = "cannot be read") -> Iterator[None]:
    """Turns whatever a decoder raises for an unreadable or strange file into one DataError.

    Raises StorageError where the file is out of reach, which is no fault of its own.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: {problem}: needs more memory than there is for it") from error
    except Exception as error:  # FFmpeg's are of ten kinds, and Pillow's of any
        detail = reason(error) or type(error).__name__
        raise unreadable(f"{path}: {problem}: {detail}", error) from error


@contextlib.contextmanager
def open_video(
    path: Place, formats: str = CONTAINERS, problem: str = "cannot be read"
) -> Iterator[Video]:
    """Opens the video of a file; raises DataError, also for what is raised while it is open."""
    with as_data_error(path, problem), contextlib.closing(Video(path, formats)) as video:
        yield video


def _decoder(path: Place, stream: Any) -> Any:
    """Returns the decoder of a stream; DataError where there is none."""
    decoder = stream.codec_context
    if decoder is None:
        raise DataError(f"{path}: is coded in a way that no installed decoder knows")
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in _ALPHA:
        decoder = av.CodecContext.create(_ALPHA[decoder.name], "r")
        decoder.extradata = stream.codec_context.extradata
    decoder.thread_count = 1  # clips are decoded in parallel; more threads cost more CPU
    decoder.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
    return decoder


def _video_stream(path: Place, container: Any) -> Any:
    """Returns the stream that players show: no cover, and the default one where it is marked."""
    streams = [s for s in container.streams.video if not s.disposition & _COVERS]
    if not streams:
        cover = " but a cover" if container.streams.video else ""
        raise DataError(f"{path}: has no video stream{cover}")
    return max(streams, key=_rank)  # of equals the first


def _rank(stream: Any) -> tuple:
    """Returns what makes a stream the video: it moves, is marked as default, and is large."""
    codec = stream.codec_context
    if codec is None:
        return (False,)
    moves = codec.name not in _PICTURES and stream.frames != 1
    default = bool(stream.disposition & Disposition.default)
    return (True, moves, default, codec.width * codec.height)
