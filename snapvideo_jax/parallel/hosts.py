"""The processes of a job as one: they exchange values, agree on errors and stop at the same step.

All processes call these functions in the same order (`is_first` excepted); with one process they
return at once. Values travel through JAX's collectives, which wait forever for a process that does
not come. So every exchange begins at a barrier of the job's coordinator, which gives up after WAIT
seconds.
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
from typing import IO, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from snapvideo_jax import errors
from snapvideo_jax.errors import ConfigError, StorageError, UserError, reason

WAIT = 1800  # seconds; scanning a data folder or making a vocabulary may take long
LOOKS = 3  # at a lock that is held, before it is another run's
STORAGE_WAIT = 60  # seconds until the other hosts see what one host wrote
T = TypeVar("T")
_exchanges = itertools.count()  # every barrier needs a name of its own


def is_first() -> bool:
    """Returns whether this process writes the job's shared files and prints its messages."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Returns the `value` (JSON) of every process, in their order. With one process, `[value]`.

    Raises UserError where a process does not come.
    """
    if jax.process_count() == 1:
        return [value]
    _meet(f"exchange {next(_exchanges)}", WAIT)
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)  # few shapes, few compilations
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def broadcast(function: Callable[[], Any], catch: type[Exception] = UserError) -> Any:
    """Calls `function` on the first process alone and returns its value (JSON) on all of them."""
    return gather(raise_on_all(function if is_first() else lambda: None, catch))[0]


def raise_on_all(function: Callable[[], T], catch: type[Exception] = UserError) -> T:
    """Returns `function()`. A `catch` that it raises on one process is raised on all of them.

    The error's message, one line, then ends with the number of the process that failed.
    """
    if jax.process_count() == 1:
        return function()
    value, problem = None, None
    try:
        value = function()
    except catch as error:
        problem = type(error).__name__, str(error)
    for process, failure in enumerate(gather(problem)):
        if failure:
            kind, message = failure
            raise getattr(errors, kind, catch)(f"{message} (process {process})")
    return value  # pyright: ignore[reportReturnType]


def check_same(facts: Mapping[str, Any], error: type[UserError]) -> None:
    """Raises `error` on all processes where the `facts` (JSON) of one differ from the first's."""
    reports = gather([socket.gethostname(), dict(facts)])
    _, expected = reports[0]
    for process, (host, actual) in enumerate(reports):
        for name in sorted(expected.keys() | actual.keys()):
            value, first_value = actual.get(name), expected.get(name)
            if value != first_value:
                raise error(
                    f"process {process} on {host} has {name}={value!r} where process 0 has "
                    f"{first_value!r}; give all processes the same command, code and data"
                )


def compile_on_all(function: Any, *arguments: Any) -> Callable[..., Any]:
    """Compiles a jitted function for (abstract) arguments on all processes before any runs it.

    Otherwise a process that compiles for long would come too late: the collectives of CPUs give up
    after 30 seconds. With one process, returns `function` as it is: its first call compiles.
    """
    if jax.process_count() == 1:
        return function
    program = function.lower(*arguments).compile()
    _meet(f"exchange {next(_exchanges)}", WAIT)
    return program


def all_leave(seconds: float) -> bool:
    """Returns whether all processes call this within `seconds`, and so end at the same time."""
    try:
        _meet("the end", seconds)
    except UserError:
        return False
    return True


@contextlib.contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Makes the folder of a run, proves that it can be written, and keeps other runs out of it.

    The first process does so for all. Raises ConfigError where another run uses the folder, and
    StorageError where it cannot be written or another process does not see the first one's files.
    """
    with contextlib.ExitStack() as stack:
        owner = broadcast(lambda: stack.enter_context(_lock_folder(folder)))
        raise_on_all(lambda: _check_seen(folder, owner))
        yield


def process_name(pid: int) -> str:
    """Returns what stands in the lock of a run's folder if process `pid` of this host holds it."""
    return f"process {pid} on {socket.gethostname()}"


def _lock(file: IO[str]) -> bool:
    """Locks a file if no other process does; waits for one that only looks at it (`holder`).

    Raises OSError where the storage cannot lock.
    """
    for _ in range(LOOKS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[str]:
    """Holds the folder's lock; yields the text in it, which names this process."""
    owner = process_name(os.getpid())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+", errors="replace")
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {reason(error)}") from error
    with lock:
        try:
            if not _lock(lock):
                lock.seek(0)
                user = " ".join(lock.read(200).split()) or "another process"
                raise ConfigError(f"{folder} is in use by {user}")
            lock.truncate(0)
            lock.write(f"{owner}\n")
            lock.flush()
            os.fsync(lock.fileno())
        except OSError as error:
            raise StorageError(f"cannot write to {folder}: {reason(error)}") from error
        yield owner


class Holder(NamedTuple):
    """Who last held the lock of a run's folder, in words, and whether it holds it still.

    here: whether it is, or was, a process of this host.
    """

    owner: str
    holds: bool
    here: bool


def holder(folder: Path) -> Holder | None:
    """Looks at the lock of a run's folder, which it does not change; None where there is none.

    What a host sees of the locks of another depends on the storage: `holds` is sure `here` alone.
    """
    try:
        with (folder / "lock").open(errors="replace") as lock:
            owner = " ".join(lock.read(200).split())
            here = owner.endswith(f" on {socket.gethostname()}")
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return Holder(owner, holds=True, here=here)
            return Holder(owner, holds=False, here=here)
    except OSError:
        return None


def _check_seen(folder: Path, owner: str) -> None:
    """Raises StorageError unless this process sees the folder that `owner` locked."""
    deadline = time.monotonic() + STORAGE_WAIT
    while not _contains(folder / "lock", owner):
        if time.monotonic() > deadline:
            raise StorageError(
                f"{folder} on {socket.gethostname()} is not the folder of process 0; it "
                "must be on storage that all hosts share"
            )
        time.sleep(0.5)


def _contains(path: Path, line: str) -> bool:
    try:
        return path.read_bytes() == f"{line}\n".encode()
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
    """Waits until all processes call this; raises UserError with those that come too late."""
    from orbax.checkpoint import multihost  # slow to import: only in a job of many processes

    try:
        multihost.get_barrier_sync_fn()(key=f"snapvideo_jax: {name}", timeout_ms=int(seconds * 1e3))
    except jax.errors.JaxRuntimeError as error:
        late = re.findall(r"^(?:/job:\w+/.*task:)?(\d+)$", str(error), re.MULTILINE)
        raise UserError(
            f"waited {seconds} s for process {' and '.join(late) or '?'} of the job, which hangs "
            "or has ended: see what it said last"
        ) from error
