"""The processes of a job as one: what they tell each other, and how they fail together.

What is here is for all processes to call, in the same order (but `first`); one that is alone hears
itself. What they say goes through JAX's collectives, which wait for ever for a process that
does not come; so each talk begins at a barrier of the job's coordinator, which waits WAIT seconds.
"""

import contextlib
import fcntl
import itertools
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from snapvideo_jax import errors
from snapvideo_jax.errors import ConfigError, StorageError, UserError

WAIT = 1800  # seconds; scanning a data folder or making a vocabulary may take long
SHARED = 60  # seconds until what one host writes is seen by the others
T = TypeVar("T")
_talks = itertools.count()  # barriers need names of their own


def first() -> bool:
    """Whether this is the process that writes the job's shared files and speaks for it."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The `value` (of JSON) of each process, in their order; UserError if one does not come."""
    if jax.process_count() == 1:
        return [value]
    _meet(f"talk {next(_talks)}", WAIT)
    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(mine.size))
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)  # few shapes, few compilations
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def share(make: Callable[[], Any], catch: type[Exception] = UserError) -> Any:
    """What `make` returns on the first process, on all of them; there alone it is called."""
    return gather(together(make if first() else lambda: None, catch))[0]


def together(make: Callable[[], T], catch: type[Exception] = UserError) -> T:
    """`make()`; its `catch` (of a line) on any process is raised on all, with which it was."""
    if jax.process_count() == 1:
        return make()
    made, problem = None, None
    try:
        made = make()
    except catch as error:
        problem = type(error).__name__, str(error)
    for process, told in enumerate(gather(problem)):
        if told:
            raise getattr(errors, told[0], catch)(f"{told[1]} (process {process})")
    return made  # pyright: ignore[reportReturnType]


def check_same(facts: Mapping[str, Any], error: type[UserError]) -> None:
    """Raises `error` on all processes if one's `facts` (of JSON) are not those of the first."""
    told = gather([socket.gethostname(), dict(facts)])
    _, expected = told[0]
    for process, (host, found) in enumerate(told):
        for name in sorted(expected.keys() | found.keys()):
            here, there = found.get(name), expected.get(name)
            if here != there:
                raise error(
                    f"process {process} on {host} has {name}={here!r} where process 0 has "
                    f"{there!r}; give all processes the same command, code and data"
                )


def compiled(function: Any, *arguments: Any) -> Callable[..., Any]:
    """The jitted `function`, compiled for (abstract) arguments on all processes before any runs it.

    The collectives of CPUs give up on a process that comes 30 seconds late.
    """
    if jax.process_count() == 1:
        return function
    made = function.lower(*arguments).compile()
    _meet(f"talk {next(_talks)}", WAIT)
    return made


def all_leave(seconds: float) -> bool:
    """Whether all processes call this within `seconds`: they end together, not one alone."""
    try:
        _meet("the end", seconds)
    except UserError:
        return False
    return True


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes the folder of a run, proves that it can be written, and keeps other runs out of it.

    The first process does so for all. ConfigError if another run has the folder, StorageError if
    it cannot be written or another process does not see what the first one wrote there.
    """
    with contextlib.ExitStack() as stack:
        owner = share(lambda: stack.enter_context(_locked(folder)))
        together(lambda: _check_seen(folder, owner))
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[str]:
    """Who holds the folder's lock while this lasts: this process."""
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise ConfigError(f"{folder} is in use by {lock.read().strip()}") from None
        lock.truncate(0)
        lock.write(f"{owner}\n")
        lock.flush()
        os.fsync(lock.fileno())
        yield owner


def _check_seen(folder: Path, owner: str) -> None:
    """StorageError unless the folder of this process is the one that `owner` locked."""
    deadline = time.monotonic() + SHARED
    while not _holds(folder / "lock", owner):
        if time.monotonic() > deadline:
            raise StorageError(
                f"{folder} on {socket.gethostname()} is not the folder of process 0; it "
                "must be on storage that all hosts share"
            )
        time.sleep(0.5)


def _holds(path: Path, line: str) -> bool:
    try:
        return path.read_text() == line + "\n"
    except OSError:
        return False


class Signals:
    """Lets a run save when SIGTERM or SIGINT ends it; a second signal ends the process at once.

    Handlers are set by the first call of `stop`, when a step is under way. Until then, as long as
    the step compiles, a signal does what it did outside: there is nothing new to save.
    All processes of a job stop at the same step, whichever got the signal: each step asks the
    devices whether one did, and hears the answer at the next, so that none waits for it.
    """

    def __enter__(self) -> "Signals":
        everywhere = Mesh(np.asarray(jax.devices()), ("device",))
        self._split = NamedSharding(everywhere, PartitionSpec("device"))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(everywhere, PartitionSpec()))
        self._answer: jax.Array | None = None
        self._received = 0
        self._handlers = {}  # those outside
        return self

    def stop(self) -> int:
        """Returns the signal that ends the run after this step, or 0; every step must call this.

        Of several signals it is the largest: SIGTERM rather than SIGINT.
        """
        if not self._handlers:
            both = signal.SIGTERM, signal.SIGINT
            self._handlers = {number: signal.signal(number, self._receive) for number in both}
        if jax.process_count() == 1:
            return self._received
        here = np.full(jax.local_device_count(), self._received, np.int32)
        answer = self._answer
        self._answer = self._any(jax.make_array_from_process_local_data(self._split, here))
        return 0 if answer is None else int(np.asarray(answer))

    def _receive(self, number: int, frame: object) -> None:
        if self._received:
            os._exit(128 + number)
        self._received = number

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():  # None: not set by Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _meet(name: str, seconds: float) -> None:
    """Waits until all processes call this; UserError with those that did not in time."""
    from orbax.checkpoint import multihost  # slow to import: only in a job of many processes

    try:
        multihost.get_barrier_sync_fn()(key=f"snapvideo_jax: {name}", timeout_ms=int(seconds * 1e3))
    except jax.errors.JaxRuntimeError as error:
        late = re.findall(r"^(?:/job:\w+/.*task:)?(\d+)$", str(error), re.MULTILINE)
        raise UserError(
            f"waited {seconds} s for process {' and '.join(late) or '?'} of the job, which hangs "
            "or has ended: see what it said last"
        ) from error
