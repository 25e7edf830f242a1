"""Files are read in other processes, which may die, hang or fill the memory without harm."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image

from snapvideo_jax.data import decoders, reading
from snapvideo_jax.errors import DataError, StorageError

SPEC = reading.ClipSpec(4, 16, 24, (8.0,))


# A process that reads from a network's file system whose server is gone: what FFmpeg says then.
OUT_OF_REACH = """
import av, av.error, errno
from snapvideo_jax.data import decoder_process

av.open = lambda *args, **options: av.error.err_check(-errno.ESTALE)
decoder_process.main()
"""


def write(path, size=(32, 48), frames=20, codec="mpeg4"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for k in range(frames):
            picture = np.full((*size, 3), 12 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return str(path)


def clip(path):
    return reading.Request("clip", path, SPEC, 0, 3, "clip 0")


@pytest.fixture
def pool():
    pool = decoders.Decoders(20.0)
    yield pool
    pool.close()


def test_a_process_reads_what_this_one_would(tmp_path, pool):
    path = write(tmp_path / "a.mp4")
    for kind in ("clip", "frame"):
        request = clip(path)._replace(kind=kind)
        there, here = pool.read(request), reading.read(request)
        np.testing.assert_array_equal(there[0], here[0])
        assert there[1:] == here[1:]
    assert len(pool._idle) == 1 and pool.busy() == []


def test_a_process_says_where_it_cut_and_whether_the_clip_flips(tmp_path, pool):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 32, 3), np.uint8)).save(
        tmp_path / "a.png"
    )
    spec = dataclasses.replace(SPEC, random_crop=True, random_flip=True)
    for path, kind in ((write(tmp_path / "a.mp4"), "clip"), (str(tmp_path / "a.png"), "picture")):
        request = clip(path)._replace(kind=kind, spec=spec)
        there, here = pool.read(request), reading.read(request)
        np.testing.assert_array_equal(there[0], here[0])
        assert there[1:] == here[1:] and here.framing.crop is not None


def test_bad_files_are_refused_in_the_words_of_the_reader(tmp_path, pool):
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"b\.mp4: cannot be read: Invalid data"):
        pool.read(clip(str(tmp_path / "b.mp4")))
    pool.read(clip(write(tmp_path / "a.mp4")))  # by the same process
    assert len(pool._idle) == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_costs_one_file(tmp_path, pool, number):
    path = write(tmp_path / "a.mp4")
    pool.read(clip(path))
    pool._seconds = 1.0
    process = pool._idle[0]
    take = pool._take
    pool._take = lambda path: os.kill(process.pid, number) or (pool._busy.update(
        {process: (path, 0.0)}) or pool._idle.clear() or process)  # fmt: skip
    reason = r"took over 1 s" if number == signal.SIGSTOP else r"was ended by SIGSEGV"
    with pytest.raises(DataError, match=reason):
        pool.read(clip(path))
    pool._take, pool._seconds = take, 20.0
    assert not process.is_alive()
    pool.read(clip(path))


def test_closing_ends_what_waits(tmp_path, pool):
    path, raised = write(tmp_path / "a.mp4"), []
    pool.read(clip(path))
    os.kill(pool._idle[0].pid, signal.SIGSTOP)

    def wait():
        try:
            pool.read(clip(path))
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not pool.busy():
        time.sleep(0.01)
    assert "reads" in pool.busy()[0] and path in pool.busy()[0]
    pool.close()
    thread.join(5)
    assert not thread.is_alive() and "closed" in str(raised[0])


def test_a_process_that_cannot_start_is_no_bad_file(monkeypatch, pool):
    command = (sys.executable, "-c", "raise SystemExit('no such library')")
    monkeypatch.setattr(decoders, "COMMAND", command)
    with pytest.raises(RuntimeError, match="could be started: no such library"):
        pool.read(clip("a.mp4"))


def test_a_file_out_of_reach_is_no_bad_file(monkeypatch, pool):
    monkeypatch.setattr(decoders, "COMMAND", (sys.executable, "-c", OUT_OF_REACH))
    with pytest.raises(StorageError, match=r"a\.mp4: cannot be read: Stale file handle; see that"):
        pool.read(clip("a.mp4"))


def test_pictures_that_fill_the_memory_are_refused_below_500_mb(tmp_path, pool):
    path = str(tmp_path / "a.png")
    Image.new("RGBA", (8000, 8000)).save(path, compress_level=1)
    pool.read(clip(write(tmp_path / "a.mp4")))
    process = pool._idle[0]
    with pytest.raises(DataError, match=r"a\.png: cannot be read: needs more memory"):
        pool.read(clip(path)._replace(kind="picture"))
    with open(f"/proc/{process.pid}/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    assert peak * 1024 < 500e6


def test_processes_end_with_the_one_that_started_them(tmp_path):
    path = write(tmp_path / "a.mp4")
    code = (
        "import json, os, sys\n"
        "from snapvideo_jax.data import decoders, reading\n"
        "pool = decoders.Decoders(20.0)\n"
        f"spec = reading.ClipSpec(4, 16, 24, (8.0,))\n"
        f"pool.read(reading.Request('clip', {path!r}, spec, 0, 3, 'clip 0'))\n"
        "print(json.dumps(pool._idle[0].pid), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    pid, deadline = json.loads(done.stdout), time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")
