"""Parameters as a checkpoint of Orbax that Orbax restores without this package.

import orbax.checkpoint as ocp

params = ocp.StandardCheckpointer().restore("/path/to/exported/orbax")
"""

import errno
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from snapvideo_jax.training import checkpoint

NAME = "orbax"  # of the folder in an export


def write(folder: Path, params: Any) -> None:
    """Writes a tree of numpy arrays.

    Those come back anywhere; arrays of JAX do without a target only on the devices of their kind
    and number that they were saved from. Raises OSError where the disk is full or fails.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), params)
    except ValueError as error:  # as which Orbax reports a full disk
        raise OSError(errno.EIO, checkpoint.failure(error)) from error
