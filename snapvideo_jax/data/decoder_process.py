"""The process behind decoders.py: reads requests from standard input, and answers them."""

import contextlib
import json
import os
import resource
import signal
import sys
from typing import BinaryIO

from snapvideo_jax.data import clips  # noqa: F401  here, not within the time of the first file
from snapvideo_jax.data.choice import ClipSpec
from snapvideo_jax.data.reading import Request, read
from snapvideo_jax.errors import DataError, StorageError
from snapvideo_jax.files.tar import Member

MEMORY = 384 * 2**20  # bytes of data; libraries add about 100 MB to what the system counts
GRACE = 5  # seconds after which this process ends by itself, if its parent did not end it


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers one request a line until there are no more."""
    answers.write(b"{}\n")
    answers.flush()
    for line in requests:
        fields = json.loads(line)
        # The default of SIGALRM ends a process also where it hangs outside Python.
        signal.setitimer(signal.ITIMER_REAL, fields.pop("seconds") + GRACE)
        path = fields["path"] if isinstance(fields["path"], str) else Member(*fields["path"])
        answer(Request(**fields | {"spec": ClipSpec(**fields["spec"]), "path": path}), answers)
        signal.setitimer(signal.ITIMER_REAL, 0)


def answer(request: Request, answers: BinaryIO) -> None:
    """Writes the frames of a file, or why there are none."""
    try:
        clip = read(request)
    except (DataError, StorageError) as error:
        head = {"problem": str(error), "is_storage": isinstance(error, StorageError)}
        answers.write(json.dumps(head).encode() + b"\n")
    else:
        head = {"shape": clip.frames.shape, "interval": clip.interval, "start": clip.start}
        head |= {"source": clip.source, "framing": clip.framing}
        answers.write(json.dumps(head).encode() + b"\n" + clip.frames.tobytes())
    answers.flush()


def main() -> None:
    """Limits this process, and serves its parent."""
    # Signals to the whole job are the parent's: it may have to save first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
        with contextlib.suppress(BrokenPipeError):
            serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
