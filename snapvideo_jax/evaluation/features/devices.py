"""Batches on all devices of this process: each computes the features of its own videos."""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped


def split(batch: Shaped[np.ndarray | Array, "B ..."]) -> Shaped[Array, "B ..."]:
    """Returns the batch, split evenly over as many of this process's devices as divide it.

    What is computed from it stays split; parameters that lie on no device in particular follow.
    """
    count = math.gcd(len(batch), jax.local_device_count())
    mesh = Mesh(np.array(jax.local_devices()[:count]), ("videos",))
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("videos")))
