"""One training step of a device beside the CPU's, from the same state and batch.

Compared are losses, and the optimizer's moments: after the first step these are the gradient and
its squares. Parameters would not do, as Adam's first update is little more than the gradient's
signs, which rounding can turn.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from snapvideo_jax import build
from snapvideo_jax.benchmark import report
from snapvideo_jax.benchmark.programs import random_arrays
from snapvideo_jax.benchmark.report import Table
from snapvideo_jax.build import Config
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import attention
from snapvideo_jax.planner.programs import VOCABULARY

LIMIT = 1e-4  # of the gradient's distance in float32, whose sums may have another order
KERNEL_LIMIT = 1.5  # of a kernel's in bfloat16, in distances of plain attention
HEADER = ("config", "dtype", "attention", "loss", "gradient", "limit", "agrees")


class Step(NamedTuple):
    """What a training step gave, on the host. moments: the optimizer's. attention: its kernel."""

    loss: float
    moments: list[np.ndarray]
    attention: str


class Agreement(NamedTuple):
    """How far a step's loss and gradient are from the CPU's in float32, as shares of their size.

    limit: of the gradient's distance.
    """

    config: str
    dtype: str
    attention: str
    loss: float
    gradient: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the gradient is within its limit, and the loss a number."""
        return self.gradient <= self.limit and math.isfinite(self.loss)


def check(name: str, config: Config, device: jax.Device) -> list[Agreement]:
    """Compares the first training step of a config on `device` with the CPU's.

    In float32 it must agree to LIMIT. In bfloat16 rounding decides how far plain attention is off,
    and the fastest may be KERNEL_LIMIT times as far. Raises ConfigError where JAX may use no CPU.
    """
    cpu = host_cpu()
    exact = build.with_arithmetic(config, dtype="float32", attention="plain")
    halves = build.with_arithmetic(config, dtype="bfloat16", attention="plain")
    fastest = build.with_arithmetic(config, dtype="bfloat16", attention="fastest")
    start = first_arguments(exact, cpu)
    expected = run_step(exact, cpu, start)

    def compare(dtype: str, changed: Config, limit: float) -> Agreement:
        step = run_step(changed, device, start)
        return Agreement(
            config=name,
            dtype=dtype,
            attention=step.attention,
            loss=abs(step.loss / expected.loss - 1),
            gradient=distance(step.moments, expected.moments),
            limit=limit,
        )

    plain = compare("bfloat16", halves, limit=1.0)
    return [
        compare("float32", exact, limit=LIMIT),
        plain,
        compare("bfloat16", fastest, limit=KERNEL_LIMIT * plain.gradient),
    ]


def host_cpu() -> jax.Device:
    """Returns a CPU; raises ConfigError where JAX may use none."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError as error:
        raise ConfigError("JAX may not use the CPU to compare with; unset JAX_PLATFORMS") from error


def first_arguments(config: Config, device: jax.Device) -> Any:
    """Returns the first state and a random batch, on the host."""
    program = build.train_program(config, VOCABULARY, [device])
    return jax.device_get((program.init(), random_arrays(program.abstract_batch)))


def run_step(config: Config, device: jax.Device, start: Any) -> Step:
    """Runs a training step on a device; products in float32 are not rounded to fewer bits."""
    program = build.train_program(config, VOCABULARY, [device])
    abstract = program.abstract_state, program.abstract_batch
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    with jax.default_matmul_precision("highest"):
        state, metrics = program.step(*jax.device_put(start, places))
    leaves = jax.device_get(jax.tree.leaves(state.opt_state))
    return Step(
        loss=float(metrics["loss"]),
        moments=[leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)],
        attention=attention.kernel_name(program.denoiser.network.attend),
    )


def distance(
    actual: Sequence[Float[np.ndarray, "..."]], expected: Sequence[Float[np.ndarray, "..."]]
) -> float:
    """Returns |actual - expected| / |expected|, Euclidean norms over all arrays."""
    norm = lambda arrays: math.sqrt(sum(float(np.sum(np.square(a, dtype=float))) for a in arrays))
    return norm([a - b for a, b in zip(actual, expected, strict=True)]) / norm(expected)


def table(agreements: Sequence[Agreement], facts: Mapping[str, Any]) -> Table:
    """Returns the agreements as a table. facts: device, versions, date and command."""
    lines = [
        (
            one.config,
            one.dtype,
            one.attention,
            *(f"{value:.1e}" for value in (one.loss, one.gradient, one.limit)),
            "yes" if one.holds else "NO",
        )
        for one in agreements
    ]
    title = "A training step beside the CPU's in float32"
    source = report.source(facts, "measured", [facts["device"]])
    return Table(title=title, source=source, load="", header=HEADER, lines=lines)
