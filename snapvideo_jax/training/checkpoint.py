"""Checkpoints: Orbax, with a digest of every leaf, restored onto any mesh.

Orbax commits a step atomically but does not notice a flipped bit in a committed one, nor an
empty folder that looks like a step. So each checkpoint carries a digest per leaf; restoring walks
back from the newest step to the newest that proves whole, and never silently starts anew.

In a job of many processes all of them call what is here, each writes and reads its own part of the
arrays, and the first alone looks at the folder, so that all see the same one.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from snapvideo_jax import storage
from snapvideo_jax.errors import StorageError, reason
from snapvideo_jax.fields import STEP
from snapvideo_jax.kinds import Table, Text, Whole
from snapvideo_jax.parallel import hosts
from snapvideo_jax.storage import Damaged, check_kinds, check_seal, parse_object, read, sealed
from snapvideo_jax.trees import leaves_by_name, path_name
from snapvideo_jax.units import size_text

FORMAT = 2  # 1 had no seal
# What lies beside every state, and what a run adds.
META = {"format": Whole(1, FORMAT), "step": STEP, "digests": Table(Whole(0, 2**32 - 1))}
RUNS = {"config": Table(), "data": Text(1_000_000), "text": Text(), "numerics": Table()}
NOTHING = {"config": {}, "data": "", "text": "", "numerics": {}}
NEVER = 30 * 86_400  # seconds; Orbax waits by the clock on the wall, which may jump by a day
READ_BYTES = 2**30  # of a checkpoint that is compared
FAILURES = OSError, ValueError, StorageError  # of a save
MOST_FAILURES = 3  # in a row
PATIENCE = 10  # seconds for the threads of a failed save to end
DISK_FULL = re.compile("RESOURCE_EXHAUSTED|No space left|ENOSPC|quota exceeded", re.IGNORECASE)
STEP_NAME = re.compile(r"0|[1-9][0-9]{0,9}")


class Restored(NamedTuple):
    """A verified checkpoint: its step, and its state or part of one."""

    step: int
    state: Any


def digest(leaf: jax.Array) -> jax.Array:
    """Computes a uint32 that any single flipped bit changes and that is the same on every mesh.

    It is the sum, modulo 2^32, of the bits of each element times an odd number of its position:
    integer arithmetic, so the order of summation does not matter.
    """
    if jnp.issubdtype(leaf.dtype, jnp.bool_):
        leaf = leaf.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(
            jnp.uint32, leaf.shape, axis
        )
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)


@jax.jit
def _digest_tree(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([digest(leaf) for leaf in leaves])


def digests(tree: Any) -> dict[str, int]:
    """Returns leaf name -> digest."""
    leaves = leaves_by_name(tree)
    values = _on_host(_digest_tree(list(leaves.values())))
    return {name: int(value) for name, value in zip(leaves, values, strict=True)}


@jax.jit
def _finite_leaves(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def not_finite(tree: Any) -> list[str]:
    """Returns the names of the leaves that hold not-a-number or an infinity."""
    leaves = leaves_by_name(tree)
    finite = _on_host(_finite_leaves(list(leaves.values())))
    return [name for name, whole in zip(leaves, finite, strict=True) if not whole]


def _on_host(values: jax.Array) -> np.ndarray:
    """Fetches all of an array that may be spread over the devices of many processes."""
    if values.is_fully_addressable:
        return np.asarray(values)
    return multihost_utils.process_allgather(values, tiled=True)


def step_folders(folder: Path) -> list[int]:
    """Lists the steps that have a folder, newest first, whole or not."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir())
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
    if not _marker(folder).exists():
        return ""
    try:
        return f" up to step {parse_object(read(_marker(folder)), {'step': STEP})['step']}"
    except Damaged:
        return " of some step"


def _marker(folder: Path) -> Path:
    """Returns the file that says that steps were committed; it outlives their folder."""
    return folder.with_name("saved.json")


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
        self._manager = ocp.CheckpointManager(self._folder.absolute(), options=self._options)

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
        meta = sealed(meta | {"format": FORMAT, "step": step, "digests": digests(state)})
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
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
        words = "the disk is full" if DISK_FULL.search(str(error)) else reason(error)[:300]
        with contextlib.suppress(*FAILURES):  # it may have more to say of the same save
            self._manager.close()
        self._remove_failed()
        steps = step_folders(self._folder)
        newest = f"the newest checkpoint is step {steps[0]}" if steps else "no checkpoint is there"
        line = (
            f"could not save step {step} in {self._folder}: {words} (the state takes "
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


def newest_meta(folder: Path) -> dict | None:
    """Reads what the newest checkpoint was saved with, or returns None if `folder` holds no step.

    Its arrays are not looked at. Raises StorageError if steps exist and none can be read.
    """
    reasons = []
    for step in hosts.broadcast(lambda: step_folders(folder)):
        try:
            return hosts.broadcast(lambda step=step: _read_meta(folder, step), _Broken)
        except _Broken as reason:
            reasons.append(f"checkpoint {step} {reason}")
    if reasons:
        raise _no_usable(folder, reasons)
    return None


def step_meta(folder: Path, step: int) -> dict:
    """Reads what the checkpoint of `step` was saved with.

    Raises StorageError if it is not there or cannot be read.
    """
    _check_there(folder, step)
    try:
        return hosts.broadcast(lambda: _read_meta(folder, step), _Broken)
    except _Broken as reason:
        raise StorageError(f"{folder}: checkpoint {step} {reason}") from reason


def _check_there(folder: Path, step: int) -> None:
    steps = hosts.broadcast(lambda: step_folders(folder))
    if step not in steps:
        there = ", ".join(map(str, reversed(steps))) or "none"
        raise StorageError(f"{folder} holds no checkpoint {step}; there are: {there}")


def host_leaves(folder: Path, step: int) -> Iterator[tuple[str, np.ndarray]]:
    """Reads a checkpoint leaf by leaf into this process's own memory, about READ_BYTES at a time.

    Yields (name, whole array) in the order of names. Digests are not looked at. Raises StorageError
    if the checkpoint cannot be read.
    """
    path: Any = (folder / str(step) / "state").absolute()
    handler = ocp.PyTreeCheckpointHandler()
    try:
        stored: Any = handler.metadata(path)
        leaves = leaves_by_name(stored.tree)
        for names in _parts(leaves):
            tree = jax.tree_util.tree_map_with_path(
                lambda at, leaf, names=names: leaf if path_name(at) in names else ocp.PLACEHOLDER,
                stored.tree,
            )
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            args = ocp.args.PyTreeRestore(item=tree, restore_args=as_numpy)
            part = leaves_by_name(handler.restore(path, args=args))
            yield from ((name, part[name]) for name in names)
    except Exception as error:  # Orbax and tensorstore raise many kinds for damaged files
        raise StorageError(f"{folder}: checkpoint {step}: {reason(error)[:200]}") from error


def _parts(leaves: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the sorted names of leaves in parts of about READ_BYTES."""
    part, size = [], 0
    for name in sorted(leaves):
        part.append(name)
        size += math.prod(leaves[name].shape) * np.dtype(leaves[name].dtype).itemsize
        if size >= READ_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def restore_step(folder: Path, step: int, abstract: Any) -> Restored:
    """Restores the tree `abstract` from the checkpoint of `step` (see `restore_newest`).

    Raises StorageError if it is not there or not whole.
    """
    _check_there(folder, step)
    try:
        return _restore(folder, step, abstract)
    except _Broken as reason:
        raise StorageError(f"{folder}: checkpoint {step} {reason}") from reason


def restore_newest(folder: Path, abstract: Any, log: Callable[[str], None]) -> Restored | None:
    """Restores the newest checkpoint that verifies; returns None if `folder` holds no step at all.

    Args:
        folder: the checkpoints' folder.
        abstract: the tree to restore, with shapes, dtypes and shardings; a part of the saved tree
            restores that part alone.
        log: called with a line for each step that is passed over, and why.

    Raises:
        StorageError: steps exist and none of them is whole.
    """
    reasons = []
    for step in hosts.broadcast(lambda: step_folders(folder)):
        try:
            return _restore(folder, step, abstract)
        except _Broken as reason:
            reasons.append(f"checkpoint {step} {reason}")
            log(f"ignoring {reasons[-1]}")
    if reasons:
        raise _no_usable(folder, reasons)
    return None


def _no_usable(folder: Path, reasons: list[str]) -> StorageError:
    return StorageError(f"no usable checkpoint in {folder}: {'; '.join(reasons)}")


class _Broken(Exception):
    """Why a step's folder cannot be used."""


def _restore(folder: Path, step: int, abstract: Any) -> Restored:
    meta = hosts.broadcast(lambda: _read_meta(folder, step), _Broken)
    missing = [name for name in leaves_by_name(abstract) if name not in meta["digests"]]
    if missing:
        raise _Broken(f"holds no {missing[0]}")
    path = folder / str(step) / "state"
    state = hosts.raise_on_all(lambda: _read(path, abstract), _Broken)
    for name, value in digests(state).items():
        if value != meta["digests"][name]:
            raise _Broken(f"failed its checksum in {name}")
    return Restored(step, state)


def _read(folder: Path, tree: Any) -> Any:
    """Reads this process's part of `tree`.

    By the handler: a checkpointer would wait for processes that failed.
    """
    path: Any = folder.absolute()
    try:
        return ocp.PyTreeCheckpointHandler().restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=tree,
                restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
                partial_restore=True,
            ),
        )
    except Exception as error:  # Orbax and tensorstore raise many kinds for damaged files
        raise _Broken(f"is incomplete: {str(error).splitlines()[0][:200]}") from error


def _read_meta(folder: Path, step: int) -> dict:
    """Reads what lies beside a state: format, step, config, fingerprint of the data, digests."""
    try:
        meta = parse_object(read(folder / str(step) / "meta" / "metadata"), META)
        if meta["format"] > 1:
            check_seal(meta)
        meta = NOTHING | meta
        check_kinds(meta, RUNS)
    except Damaged as damage:
        raise _Broken(f"is incomplete: its meta data {damage}") from damage
    if meta["step"] != step:
        raise _Broken(f"says that it is of step {meta['step']}")
    return meta
