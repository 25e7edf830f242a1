"""train(config, workdir): a plain for loop, and the only place of effects.

A run is resumed by starting it again: state and position in the data come from the newest
checkpoint that verifies. What is in the folder of a run:
    checkpoints/STEP   state, config, digests     metrics.jsonl       loss and norms by step
    vocabulary.model   text -> tokens             tensorboard/        curves and sample grids
    config.json        the config as last run     bad_records.jsonl   examples that were replaced
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snapvideo_jax import build, checks, sample
from snapvideo_jax.build import Config
from snapvideo_jax.data import order, pipeline
from snapvideo_jax.data.text import train_vocabulary
from snapvideo_jax.errors import ConfigError, DataError, DivergedError, Preempted, StorageError
from snapvideo_jax.parallel.mesh import batch_sharding
from snapvideo_jax.training import checkpoint, graft, telemetry
from snapvideo_jax.training.state import TrainState

# Fields that may change between the runs of one folder; any other makes it another experiment.
FREE = ("mesh", "log", "checkpoint", "sampling", "training.steps", "training.max_skipped",
        "data.path", "data.vocabulary", "data.workers", "data.prefetch")  # fmt: skip

Log = Callable[[str], None]


def train(config: Config, workdir: Path, log: Log = print) -> TrainState:
    """Runs `config` in `workdir` to its last step, resuming what is there. Raises UserError."""
    checks.check(config)
    build.mesh(config)
    source = build.source(config, lambda path, why: _ledger(workdir, path, why))
    with _claimed(workdir):
        text = _text(config, workdir, source)
        program = build.program(config, text.vocabulary_size)
        meta = {
            "config": json.loads(config.to_json()),
            "data": source.fingerprint,
            "text": text.encoder,
        }
        state = _start(config, workdir, program, meta, log)
        if int(state.step) >= config.training.steps:
            log(f"already at step {int(state.step)} of {config.training.steps}: {workdir}")
            return state
        (workdir / "config.json").write_text(json.dumps(meta["config"], indent=2) + "\n")
        return _run(config, workdir, program, source, text, state, meta, log)


def _run(
    config: Config,
    workdir: Path,
    program: build.Program,
    source: build.Source,
    text: build.Text,
    state: TrainState,
    meta: dict,
    log: Log,
) -> TrainState:
    """The loop. Metrics are fetched one step late, so the device never waits for the host."""
    start, steps = int(state.step), config.training.steps
    sharding = batch_sharding(program.mesh)
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(_Report(config, workdir, start, log))
        saved = checkpoint.Checkpoints(
            workdir / "checkpoints", config.checkpoint.keep_last, config.checkpoint.keep_every
        )
        stack.callback(saved.close)
        if start:
            saved.set_aside(start)
        signals = stack.enter_context(_Signals())
        plan = _plan(config, source, text)
        feed = stack.enter_context(contextlib.closing(pipeline.Feed(plan, start, steps)))
        log("compiling the training step")
        pending: tuple = ()
        for step in range(start + 1, steps + 1):
            then = time.monotonic()
            batch = next(feed)
            report.waited(time.monotonic() - then)
            batch = jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(sharding, x), batch
            )
            state, metrics = program.step(state, batch)
            if pending:
                report.step(*pending)
            pending = step, metrics
            stopping = signals.received is not None
            if step % config.checkpoint.every_steps == 0 or step == steps or stopping:
                saved.save(step, state, meta)
            if stopping:
                break
            if config.log.samples_every and step % config.log.samples_every == 0:
                report.samples(step, sample.grid(config, program, text, state.ema))
        report.step(*pending)
    if stopping and int(state.step) < steps:
        raise Preempted(f"preempted: saved step {step}, resume with the same command")
    log(f"done: step {steps}, checkpoint in {workdir / 'checkpoints' / str(steps)}")
    return state


def _start(
    config: Config, workdir: Path, program: build.Program, meta: dict, log: Log
) -> TrainState:
    """The newest verified checkpoint's state, or a fresh one where there is no checkpoint."""

    def wanted(found: dict) -> TrainState:
        _same_experiment(workdir, found, meta)
        return program.abstract_state

    restored = checkpoint.restore_newest(workdir / "checkpoints", wanted, log)
    log(parameter_table(program.abstract_state.params))
    if restored is None:
        log(f"starting at step 0 on {_devices(program)}")
        fresh = program.init()
        return _grafted(config, program, fresh, log) if config.training.start_from else fresh
    log(f"resuming at step {restored.step} on {_devices(program)}")
    return restored.state


def _grafted(config: Config, program: build.Program, fresh: TrainState, log: Log) -> TrainState:
    """`fresh` with the weights of the first stage's EMA, for parameters and EMA alike."""
    stage1 = sample.load(Path(config.training.start_from), log=log)
    networks: Any = stage1.denoiser.network, program.denoiser.network
    carry = jax.jit(
        lambda old, new: graft.graft(old, new, *networks),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, fresh.params),
    )
    log(f"weights from step {stage1.step} of {config.training.start_from}")
    params = carry(stage1.params, fresh.params)
    return dataclasses.replace(fresh, params=params, ema=jax.tree.map(jnp.copy, params))


def _devices(program: build.Program) -> str:
    axes = " ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items() if size > 1)
    return f"{program.mesh.size} {jax.devices()[0].platform} device(s) {axes}".rstrip()


def parameter_table(params) -> str:
    """Names, shapes, sizes and the total, as clu prints them."""
    from clu import parameter_overview

    return parameter_overview.get_parameter_overview(params, include_stats=False)


def _same_experiment(workdir: Path, found: dict, meta: dict) -> None:
    """ConfigError or DataError where the folder's run differs in more than the FREE fields."""
    old, new = _flat(found["config"]), _flat(meta["config"])
    differ = [
        f"{name}={old.get(name)!r} there, {new.get(name)!r} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not any(_within(name, free) for free in FREE)
    ]
    if differ:
        raise ConfigError(
            f"{workdir} holds another experiment ({'; '.join(differ[:5])}); choose another "
            "--workdir or set the fields back"
        )
    if (found["data"], found["text"]) != (meta["data"], meta["text"]):
        raise DataError(
            f"the data of {workdir} have changed since step {found['step']}; put them back or "
            "choose another --workdir"
        )


def _within(name: str, field: str) -> bool:
    return name == field or name.startswith(field + ".")


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat.update(_flat(value, f"{prefix}{key}.") if inner else {prefix + key: value})
    return flat


def _text(config: Config, workdir: Path, source: build.Source) -> build.Text:
    """How captions enter; makes the run's vocabulary from them where the config names none."""
    path = build.vocabulary_path(config, workdir)
    trained = config.model.text_encoder.source == "trained"
    if trained and not config.data.vocabulary and not path.exists() and jax.process_index() == 0:
        train_vocabulary(source.captions(), path)
    return build.text(config, path)


def _plan(config: Config, source: build.Source, text: build.Text) -> pipeline.Plan:
    data, B = config.data, config.training.batch_size
    return pipeline.Plan(
        example=source.example,
        encode=text.encode,
        shape=(data.num_frames, data.height, data.width),
        batch_size=B,
        images=order.image_rows(B, data.image_fraction),
        rows=pipeline.host_rows(B, jax.process_index(), jax.process_count()),
        workers=data.workers,
        prefetch=data.prefetch,
    )


def _ledger(workdir: Path, path: str, reason: str) -> None:
    """One line for each example that was replaced."""
    with (workdir / "bad_records.jsonl").open("a") as file:
        file.write(json.dumps({"path": path, "reason": reason}) + "\n")


@contextlib.contextmanager
def _claimed(workdir: Path) -> Iterator[None]:
    """Makes the folder, proves that it can be written, and keeps other runs out of it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("a+")
    except OSError as error:
        raise StorageError(f"cannot write to {workdir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise ConfigError(f"{workdir} is in use by {lock.read().strip()}") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


class _Signals:
    """Remembers the first SIGTERM or SIGINT; a second one ends the process at once."""

    def __enter__(self) -> "_Signals":
        self.received: int | None = None
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame) -> None:
        if self.received is not None:
            os._exit(130)
        self.received = number

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Report:
    """Metrics file, screen and TensorBoard of one run."""

    def __init__(self, config: Config, workdir: Path, start: int, log: Log):
        self._config, self._workdir = config, workdir
        self._schedule = build.schedule(config)
        self._skipped = 0
        self._file = telemetry.MetricsFile(workdir / "metrics.jsonl", start)
        self._board = telemetry.Board(workdir / "tensorboard")
        self._progress = telemetry.Progress(
            start,
            config.training.steps,
            config.training.batch_size,
            config.log.every_seconds,
            log,
        )

    def __enter__(self) -> "_Report":
        return self

    def __exit__(self, *error) -> None:
        self._file.close()
        self._board.close()

    def waited(self, seconds: float) -> None:
        self._progress.waited(seconds)

    def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Fetches one step's metrics, writes them, and gives up on a run that has diverged."""
        values = {name: np.asarray(value).item() for name, value in metrics.items()}
        values["learning_rate"] = np.asarray(self._schedule(step - 1)).item()
        rates = self._progress.step(step, values["loss"])
        if step % self._config.log.metrics_every == 0 or step == self._config.training.steps:
            self._file.write(step, values)
            self._board.scalars(step, values)
        if rates:
            self._board.scalars(step, rates)
        self._skipped = self._skipped + 1 if values["skipped"] else 0
        if self._skipped >= self._config.training.max_skipped:
            raise DivergedError(
                f"the loss is not finite since step {step - self._skipped + 1}; the parameters are "
                f"those before it, and checkpoints in {self._workdir / 'checkpoints'} are sound"
            )

    def samples(self, step: int, sheet: np.ndarray) -> None:
        self._board.image(step, "samples", sheet)
