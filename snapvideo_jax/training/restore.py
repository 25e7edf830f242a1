"""Reads checkpoints onto any mesh: the newest that proves whole, or the one of a step.

Orbax commits a step atomically but does not notice a flipped bit in a committed one, nor an empty
folder that looks like a step. So each checkpoint carries a digest per leaf; restoring walks back
from the newest step to the newest that proves whole, and never silently starts anew.

In a job of many processes all of them call what is here, each reads its own part of the arrays, and
the first alone looks at the folder, so that all see the same one.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from snapvideo_jax.errors import REMOUNT, StorageError, reason, storage_is_lost
from snapvideo_jax.fields import STEP
from snapvideo_jax.kinds import Table, Text, Whole
from snapvideo_jax.parallel import hosts
from snapvideo_jax.storage import Damaged, check_kinds, check_seal, parse_object, read
from snapvideo_jax.training import leaf_digests
from snapvideo_jax.training.checkpoint import FORMAT, step_folders
from snapvideo_jax.trees import leaves_by_name, path_name

# What lies beside every state, and what a run adds.
META = {"format": Whole(1, FORMAT), "step": STEP, "digests": Table(Whole(0, 2**32 - 1))}
RUNS = {"config": Table(), "data": Text(1_000_000), "text": Text(), "numerics": Table()}
NOTHING = {"config": {}, "data": "", "text": "", "numerics": {}}
READ_BYTES = 2**30  # of a checkpoint that is compared


class Restored(NamedTuple):
    """A verified checkpoint: its step, and its state or part of one."""

    step: int
    state: Any


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


def at_step(folder: Path, step: int, abstract: Any) -> Restored:
    """Restores the tree `abstract` from the checkpoint of `step` (see `newest`).

    Raises StorageError if it is not there or not whole.
    """
    _check_there(folder, step)
    try:
        return _restore(folder, step, abstract)
    except _Broken as reason:
        raise StorageError(f"{folder}: checkpoint {step} {reason}") from reason


def newest(folder: Path, abstract: Any, log: Callable[[str], None]) -> Restored | None:
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


def _unusable(folder: Path, problem: str, error: Exception) -> _Broken | StorageError:
    """Returns the error of a folder that cannot be read; one out of reach is not passed over."""
    if storage_is_lost(error):
        return StorageError(f"{folder} cannot be read: {problem}; {REMOUNT}")
    return _Broken(f"is incomplete: {problem}")


def _restore(folder: Path, step: int, abstract: Any) -> Restored:
    meta = hosts.broadcast(lambda: _read_meta(folder, step), _Broken)
    missing = [name for name in leaves_by_name(abstract) if name not in meta["digests"]]
    if missing:
        raise _Broken(f"holds no {missing[0]}")
    path = folder / str(step) / "state"
    state = hosts.raise_on_all(lambda: _read(path, abstract), _Broken)
    for name, value in leaf_digests.of(state).items():
        if value != meta["digests"][name]:
            raise _Broken(f"failed its checksum in {name}")
    return Restored(step, state)


def _read(folder: Path, tree: Any) -> Any:
    """Reads this process's part of `tree`.

    By the handler: a checkpointer would wait for processes that failed.
    """
    path: Any = folder.absolute()
    try:
        state = ocp.PyTreeCheckpointHandler().restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=tree,
                restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
                partial_restore=True,
            ),
        )
    except Exception as error:  # Orbax and tensorstore raise many kinds for damaged files
        raise _unusable(folder, str(error).splitlines()[0][:200], error) from error
    for name, leaf in leaves_by_name(state).items():
        if isinstance(leaf, jax.ShapeDtypeStruct):  # Orbax leaves out what its own list lacks
            raise _Broken(f"is incomplete: its list of arrays has no {name}")
    return state


def _read_meta(folder: Path, step: int) -> dict:
    """Reads what lies beside a state: format, step, config, fingerprint of the data, digests."""
    try:
        meta = parse_object(read(folder / str(step) / "meta" / "metadata"), META)
        if meta["format"] > 1:
            check_seal(meta)
        meta = NOTHING | meta
        check_kinds(meta, RUNS)
    except Damaged as damage:
        raise _unusable(folder / str(step), f"its meta data {damage}", damage) from damage
    if meta["step"] != step:
        raise _Broken(f"says that it is of step {meta['step']}")
    return meta
