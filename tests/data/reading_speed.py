"""What a clip costs: from files, from the frames that were packed of them, and by PyAV alone.

  python -m tests.data.reading_speed bikes.mp4      or h264.mp4, or mpeg4.avi

prints milliseconds of one core, in turns, so that other work on the machine slows all alike. A
process of its own, as checks of types in tests cost as much as reading does.
"""

import json
import shutil
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation

from snapvideo_jax.data import choice, clips, order, pack, packed, sources, tfds_source
from snapvideo_jax.data.tfds_fields import Fields
from tests.data.test_clips import BIKES

SPEC = choice.ClipSpec(num_frames=16, height=36, width=64, frame_rates=(4.0, 8.0, 12.0, 24.0))
TURNS, CLIPS = 5, 12


def write_film(path, codec):
    """300 frames of 320 x 240 with a key frame every 12: an easy file to read."""
    with av.open(str(BIKES)) as file:
        pictures = [
            frame.reformat(320, 240, "yuv420p").to_ndarray() for frame in file.decode(video=0)
        ]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 320, 240, "yuv420p", 12
        for k in range(300):
            frame = av.VideoFrame.from_ndarray(pictures[k % len(pictures)], format="yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def bare(path):
    """Draws the same clips with PyAV alone: seeks, decodes, scales by area what is nearest."""
    info = clips.probe(path)

    def draw(g):
        rng = order.generator(0, g, "clip 0")
        start, rate = choice.choose_clip(info, 16, SPEC.frame_rates, rng)
        times, shown, last = start + np.arange(16) / rate, [], None
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            stream.codec_context.thread_count = 1
            file.seek(int(start / stream.time_base), stream=stream)
            for frame in file.decode(stream):
                while len(shown) < 16 and frame.time > times[len(shown)] - info.frame_rate**-1 / 2:
                    if last is not frame:
                        scale = max(36 / frame.height, 64 / frame.width)
                        size = round(frame.width * scale), round(frame.height * scale)
                        area = Interpolation.AREA
                        whole = frame.reformat(*size, "rgb24", interpolation=area).to_ndarray()
                        top, left = (size[1] - 36) // 2, (size[0] - 64) // 2
                        pixels, last = whole[top : top + 36, left : left + 64], frame
                    shown.append(pixels)
                if len(shown) == 16:
                    return np.stack(shown)
        return np.stack(shown)

    return draw


def readers(folder):
    """Draws by name: clip g by PyAV alone, from the file, and from each packing of it."""
    source = sources.open_folder(folder)
    draws = {"bare": bare(folder / source.videos[0][0]), "files": source}
    for encoding in packed.ENCODINGS:
        place = folder.parent / f"{folder.name}_{encoding}"
        pack.pack(
            source,
            place,
            pack.Packing(36, 64, encoding, 95, 10),
            pack.processes(1, lambda *_: None),
        )
        fields = Fields("", "", "")
        draws[encoding] = tfds_source.open_build(
            str(place), split="train", images="images", fields=fields, spec=SPEC
        )
    reading = lambda source: (
        lambda g: source.draw(g, image=False, seed=0, spec=SPEC, report_bad=print)
    )
    return {k: draw if k == "bare" else reading(draw) for k, draw in draws.items()}


def milliseconds(draws):
    """Of the processor for one clip, the least of the turns."""
    least = dict.fromkeys(draws, np.inf)
    for turn in range(TURNS + 1):
        for name, draw in draws.items():
            start = time.process_time()
            for g in range(CLIPS):
                draw(g)
            spent = (time.process_time() - start) / CLIPS * 1e3
            least[name] = min(least[name], spent) if turn else np.inf  # the first one warms up
    return least


def main(film, folder):
    """Prints the costs as JSON."""
    films = Path(folder) / "films"
    films.mkdir()
    if film == "bikes.mp4":
        shutil.copy(BIKES, films / film)
    else:
        write_film(films / film, "libx264" if film == "h264.mp4" else "mpeg4")
    (films / film).with_suffix(".txt").write_text("a film")
    print(json.dumps(milliseconds(readers(films))))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(*sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as place:
            main(sys.argv[1], place)
