"""Files read in processes of their own, so that what hangs or dies in one takes no run with it.

A process holds FFmpeg and Pillow, little else, and at most MEMORY bytes. It reads a request (a line
of JSON) from its standard input, and answers with a line of JSON and the bytes of the frames. It
ends when its input does, so none outlives the run.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from snapvideo_jax.data.choice import Clip, Framing, VideoInfo
from snapvideo_jax.data.reading import Request
from snapvideo_jax.errors import DataError, StorageError

COMMAND = (sys.executable, "-m", "snapvideo_jax.data.decoder_process")
STUCK = 5  # seconds that a killed process may take to end
START = 60  # seconds until a process must have started; the machine may be busy
_ROOT = Path(__file__).parents[2]


class Decoders:
    """Processes that read files, as many as threads call `read` at a time."""

    def __init__(self, seconds: float):
        """Starts none yet.

        seconds: that one file may take; then its process is killed and the file counts as bad.
        """
        self._seconds = seconds
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._busy: dict[_Process, tuple[str, float]] = {}  # path, since when
        self._closings = 0

    def read(self, request: Request) -> Clip:
        """Reads a file as `reading.read` does, in another process.

        Raises:
          DataError: the file cannot be read, or its process took too long or died.
          StorageError: it is out of reach.
          RuntimeError: no process can be started, or `close` was called meanwhile.
        """
        closings, process = self._closings, self._take(str(request.path))
        try:
            return process.answer(request, self._seconds)
        except DataError:
            if self._closings != closings:
                raise RuntimeError("the decoders were closed") from None
            raise
        finally:
            with self._lock:
                self._busy.pop(process)
                usable = process.is_alive() and self._closings == closings
                if usable:
                    self._idle.append(process)
            if not usable:
                process.end()

    def busy(self) -> list[str]:
        """Returns what each process at work reads, the one that has read the longest first."""
        with self._lock:
            now, at_work = time.monotonic(), list(self._busy.items())
        at_work.sort(key=lambda item: item[1][1])
        return [
            f"worker {process.pid} reads {path} for {now - since:.0f} s"
            for process, (path, since) in at_work
        ]

    def close(self) -> None:
        """Ends all processes; reads that wait for one raise RuntimeError."""
        with self._lock:
            self._closings += 1
            idle, self._idle = self._idle, []
            at_work = list(self._busy)
        for process in at_work:  # the thread that waits for it ends it
            process.kill()
        for process in idle:
            process.end()

    def _take(self, path: str) -> "_Process":
        """Returns a process for one file, idle or new."""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process and not process.is_alive():  # it died since
            process.end()
            process = None
        process = process or _Process()
        with self._lock:
            self._busy[process] = path, time.monotonic()
        return process


class _Process:
    """A process that reads files, and the pipes to it."""

    def __init__(self):
        """Starts it; raises RuntimeError with what it said if that fails."""
        self._said = tempfile.TemporaryFile()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self._process: Any = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | threads | {"PYTHONPATH": path},
        )
        self.pid = self._process.pid
        self._killed = False
        self._buffer = b""
        self._deadline = time.monotonic() + START
        try:
            self._line()  # says that it is ready
        except (EOFError, TimeoutError) as error:
            problem = f"no process that decodes could be started: {self._last()}"
            self.end()
            raise RuntimeError(problem) from error

    def is_alive(self) -> bool:
        """Returns whether it can read another file."""
        return not self._killed and self._process.poll() is None

    def kill(self) -> None:
        """Kills it; a read that waits for it raises DataError."""
        self._killed = True
        self._process.kill()

    def end(self) -> None:
        """Kills it and closes the pipes to it; for the thread alone that reads from it."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a file system
            self._process.wait(STUCK)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._said.close()

    def answer(self, request: Request, seconds: float) -> Clip:
        """Returns what the process reads; raises DataError, also where it dies or is too slow."""
        self._deadline = time.monotonic() + seconds
        fields = request._asdict() | {"spec": vars(request.spec), "seconds": seconds}
        try:
            self._process.stdin.write(json.dumps(fields).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._line())
            if "problem" in answer:
                raise (StorageError if answer["is_storage"] else DataError)(answer["problem"])
            shape = answer["shape"]
            frames = np.frombuffer(self._bytes(int(np.prod(shape))), np.uint8).reshape(shape)
            source, (aspect, crop, flip) = VideoInfo(*answer["source"]), answer["framing"]
            framing = Framing(aspect, crop and tuple(crop), flip)
            return Clip(frames, answer["interval"], source, answer["start"], framing)
        except TimeoutError:
            self.kill()
            raise DataError(f"{request.path}: took over {seconds:g} s to decode") from None
        except (EOFError, BrokenPipeError):
            raise DataError(f"{request.path}: its decoder {self._end()}") from None

    def _end(self) -> str:
        """Says how the process ended."""
        self.kill()
        code = self._process.wait(STUCK)
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with code {code}: {self._last()}"

    def _last(self) -> str:
        """Returns the last line that the process wrote to its standard error."""
        self._said.seek(0)
        lines = deque(self._said, maxlen=1)
        return lines[0].decode(errors="replace").strip() if lines else "it said nothing"

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            self._buffer += self._receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _bytes(self, count: int) -> bytes:
        parts, size = [self._buffer], len(self._buffer)
        while size < count:
            parts.append(self._receive())
            size += len(parts[-1])
        whole = b"".join(parts)
        self._buffer = whole[count:]
        return whole[:count]

    def _receive(self) -> bytes:
        """Returns what comes next; raises EOFError or, at the deadline, TimeoutError."""
        pipe = self._process.stdout.fileno()
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        if not waiting.poll(max(0.0, self._deadline - time.monotonic()) * 1e3):
            raise TimeoutError
        data = os.read(pipe, 1 << 20)
        if not data:
            raise EOFError
        return data
