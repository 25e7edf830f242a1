"""Writes checkpoints: Orbax, with a digest of every leaf beside it. restore.py reads them.

In a job of many processes all of them call what is here, each writes its own part of the arrays,
and the first alone looks at the folder, so that all see the same one.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from snapvideo_jax import storage
from snapvideo_jax.errors import StorageError, reason
from snapvideo_jax.fields import STEP
from snapvideo_jax.parallel import hosts
from snapvideo_jax.storage import Damaged, parse_object, read, sealed
from snapvideo_jax.training import leaf_digests
from snapvideo_jax.units import size_text

FORMAT = 2  # 1 had no seal
NEVER = 30 * 86_400  # seconds; Orbax waits by the clock on the wall, which may jump by a day
FAILURES = OSError, ValueError, StorageError  # of a save
MOST_FAILURES = 3  # in a row
PATIENCE = 10  # seconds for the threads of a failed save to end
# What a replica writes of an array that many hold, at least: to cut out its part takes a program
# of its own, a millisecond for each array and device, while the loop waits.
LEAST_PART = 1 << 20  # bytes
DISK_FULL = re.compile("RESOURCE_EXHAUSTED|No space left|ENOSPC|quota exceeded", re.IGNORECASE)
STEP_NAME = re.compile(r"0|[1-9][0-9]{0,9}")


def step_folders(folder: Path) -> list[int]:
    """Lists the steps that have a folder, newest first, whole or not.

    Raises StorageError where the system cannot say: a run that took that for none would start anew.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"cannot read {folder}: {reason(error)}") from error
    return sorted((int(name) for name in names if STEP_NAME.fullmatch(name)), reverse=True)


def check_never_saved(folder: Path) -> None:
    """Raises StorageError where steps are gone that `folder` held: nobody meant to start anew."""
    steps = hosts.broadcast(lambda: _steps_gone(folder))
    if steps:
        raise StorageError(
            f"{folder} held checkpoints{steps}, and none is there; put them back, or start anew in "
            f"another --workdir (or without {_marker(folder)})"
        )


def _steps_gone(folder: Path) -> str:
    """Says which steps were there; "" if none were."""
    aside = sorted(path.name for path in folder.glob("bad-*")) if folder.is_dir() else []
    if aside:
        return f" that did not verify ({', '.join(aside[:5])})"
    try:
        return f" up to step {last_saved(folder)}"
    except Damaged as damage:
        return "" if isinstance(damage.__cause__, FileNotFoundError) else " of some step"


def last_saved(folder: Path) -> int:
    """Reads the newest step that was ever committed in `folder`, or raises storage.Damaged."""
    return parse_object(read(_marker(folder)), {"step": STEP})["step"]


def _marker(folder: Path) -> Path:
    """Returns the file that says that steps were committed; it outlives their folder."""
    return folder.with_name("saved.json")


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    """Returns what writes each item of a checkpoint."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=LEAST_PART)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    state = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    return {"state": state, "meta": ocp.JsonCheckpointHandler()}


def failure(error: Exception) -> str:
    """Says in a few words why Orbax could not save."""
    return "the disk is full" if DISK_FULL.search(str(error)) else reason(error)[:300]


class Checkpoints:
    """The checkpoints under `folder`, one a step. Saving is asynchronous; `close` waits for it.

    A save that fails is said and leaves nothing behind: training goes on, and what is there stays.
    MOST_FAILURES in a row end the run, as does the last save of all. In a job of many processes
    the first failure ends it: the others wait for the one that failed.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int,
        keep_every: int,
        log: Callable[[str], None] = lambda line: None,
    ):
        """Opens the folder, which no other run uses.

        Args:
            folder: made where there is none.
            keep_last: newest steps that stay.
            keep_every: steps that are multiples of it stay too; 0 for none.
            log: called with a line for each save that failed.
        """
        self._folder, self._log, self._marked = folder, log, 0
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every or None,
            step_prefix=None,
            async_options=ocp.AsyncOptions(
                timeout_secs=NEVER, create_directories_asynchronously=False
            ),
        )
        self._saving: int | None = None  # the step that is being saved
        self._size = 0  # bytes of its state
        self._failures: list[str] = []  # of the last saves, in a row
        self._open()

    def _open(self) -> None:
        """Makes Orbax's manager, and removes what an earlier one has not committed."""
        hosts.broadcast(self._remove_unfinished)
        self._manager = ocp.CheckpointManager(
            self._folder.absolute(), options=self._options, item_handlers=_handlers()
        )

    def _remove_unfinished(self) -> None:
        for path in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove_failed(self) -> None:
        """Deletes what a failed save has written, until its threads have noticed and end too."""
        quiet, deadline = 0, time.monotonic() + PATIENCE
        while quiet < 5 and time.monotonic() < deadline:
            before = list(self._folder.glob("*.orbax-checkpoint-tmp*"))
            self._remove_unfinished()
            time.sleep(0.1)
            quiet = 0 if before else quiet + 1

    def save(
        self, step: int, state: Any, meta: dict, before: Callable[[], None] = lambda: None
    ) -> None:
        """Starts saving; when it returns, `state` may be donated.

        before: writes what must not be older than the checkpoint; the save fails where it raises
        StorageError. Raises StorageError where this or an earlier save is one failure too many.
        """
        self._settle()
        meta = sealed(meta | {"format": FORMAT, "step": step, "digests": leaf_digests.of(state)})
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
        self._saving, self._size = step, sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        try:
            before()
            self._check_room()
            self._manager.save(step, args=items, force=True)
        except FAILURES as error:
            self._fail(error)

    def _check_room(self) -> None:
        """Raises OSError where the disk has less room than the state takes: why begin."""
        if shutil.disk_usage(self._folder).free < self._size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def check(self) -> None:
        """Notices a save that has failed or ended meanwhile, without waiting; see `save`."""
        if self._saving is not None:
            try:
                self._manager.check_for_errors()
            except FAILURES as error:
                self._fail(error)
            else:
                if not self._manager.is_saving_in_progress():
                    self._settle()

    def steps(self) -> list[int]:
        """Waits until everything is committed, and lists the steps, newest first."""
        with contextlib.suppress(*FAILURES):  # `close` comes next
            self._manager.wait_until_finished()
        return step_folders(self._folder)

    def close(self) -> None:
        """Waits until everything is committed. Raises StorageError if the last save failed."""
        self._settle()
        self._manager.close()
        if self._failures:
            raise StorageError(self._failures.pop())

    def _settle(self) -> None:
        """Waits until the save that is under way has ended, well or not."""
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except FAILURES as error:
            self._fail(error)
        else:
            self._saving, self._failures = None, []
            self._mark()

    def _fail(self, error: Exception) -> None:
        """Counts and says a failed save; raises StorageError where it is one too many."""
        step, self._saving = self._saving, None
        with contextlib.suppress(*FAILURES):  # it may have more to say of the same save
            self._manager.close()
        self._remove_failed()
        steps = step_folders(self._folder)
        newest = f"the newest checkpoint is step {steps[0]}" if steps else "no checkpoint is there"
        line = (
            f"could not save step {step} in {self._folder}: {failure(error)} (the state takes "
            f"{size_text(self._size)}, {size_text(shutil.disk_usage(self._folder).free)} are free)"
            f"; {newest}"
        )
        self._failures.append(line)
        count = len(self._failures)
        if count >= MOST_FAILURES or jax.process_count() > 1:
            self._failures.clear()  # `close` has nothing to add
            raise StorageError(f"{count} saves in a row failed: {line}" if count > 1 else line)
        self._log(f"{line}; training goes on")
        self._open()

    def _mark(self) -> None:
        """Writes down the newest committed step: a run that had one never starts from nothing."""
        if hosts.is_first() and (steps := step_folders(self._folder)) and steps[0] > self._marked:
            with contextlib.suppress(StorageError):  # the next save writes it
                content = json.dumps({"step": steps[0]}) + "\n"
                storage.write(_marker(self._folder), content.encode())
                self._marked = steps[0]

    def set_aside(self, restored_step: int) -> None:
        """Renames folders newer than the restored step, which did not verify, out of the way."""
        hosts.broadcast(lambda: self._rename(restored_step))
        self._manager.reload()

    def _rename(self, restored_step: int) -> None:
        for step in step_folders(self._folder):
            if step > restored_step:
                free = next(n for n in range(1000) if not self._bad(step, n).exists())
                (self._folder / str(step)).rename(self._bad(step, free))

    def _bad(self, step: int, n: int) -> Path:
        return self._folder / f"bad-{step}-{n}"
