"""train(config, workdir): a plain for loop, and the only place of effects.

A run is resumed by starting it again: state and position in the data come from the newest
checkpoint that verifies. What is in the folder of a run:
    checkpoints/STEP   state, config, digests     metrics.jsonl       loss and norms by step
    vocabulary.model   text -> tokens             tensorboard/        curves and sample grids
    config.json        the config as last run     bad_records.jsonl   examples that were replaced
    profile/           a trace, where one was asked for
All processes of a job call train alike. The first one writes these files, but for the arrays of
checkpoints and bad_records.I.jsonl, which process I > 0 writes.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snapvideo_jax import build
from snapvideo_jax.build import Config
from snapvideo_jax.data import order, pipeline
from snapvideo_jax.data.text import train_vocabulary
from snapvideo_jax.errors import ConfigError, DataError, DivergedError, Preempted
from snapvideo_jax.parallel import batches, hosts
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.planner import compiler, residuals
from snapvideo_jax.sampling import generate
from snapvideo_jax.training import checkpoint, graft, optim, profiler, telemetry
from snapvideo_jax.training.state import TrainState

# Fields that may change between the runs of one folder; any other makes it another experiment.
FREE = ("mesh", "log", "checkpoint", "sampling", "training.steps", "training.max_skipped",
        "training.accumulate", "model.remat", "model.fit.unroll",
        "data.path", "data.vocabulary", "data.workers", "data.prefetch")  # fmt: skip

# Fields that may differ between the processes of one job.
LOCAL = ("data.path", "data.vocabulary", "data.workers", "data.prefetch")
VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

# What to do when memory runs out away from the step.
INIT = (
    "the devices' memory does not hold the state of training; split it over more devices "
    "(mesh.fsdp): launch.plan --doctor says what each would hold"
)
SAMPLES = (
    "the devices' memory does not hold the sample grid beside the state of training; the run goes "
    "on from its newest checkpoint with log.samples_every=0, and launch.sample draws samples"
)

Log = Callable[[str], None]


def train(config: Config, workdir: Path, log: Log = print, profile: range = range(0)) -> TrainState:
    """Runs `config` in `workdir` to its last step, resuming what is there. Raises UserError.

    profile: steps that the first process traces.
    """
    source = hosts.raise_on_all(lambda: _source(config, workdir, profile))
    if jax.process_count() > 1:
        hosts.check_same(_code(config), ConfigError)
        hosts.check_same({"the data": source.fingerprint}, DataError)
    with hosts.claim_folder(workdir):
        text = _text(config, workdir, source)
        program = build.program(config, text.vocabulary_size)
        meta = {
            "config": json.loads(config.to_json()),
            "data": source.fingerprint,
            "text": text.encoder,
        }
        state = _start(config, workdir, program, meta, log)
        profiler.check(profile, int(state.step), config.training.steps)
        if int(state.step) >= config.training.steps:
            log(f"already at step {int(state.step)} of {config.training.steps}: {workdir}")
            return state
        if hosts.is_first():
            (workdir / "config.json").write_text(json.dumps(meta["config"], indent=2) + "\n")
        traced = profile if hosts.is_first() else range(0)
        trace = profiler.Trace(workdir / "profile", traced, log)
        return _run(config, workdir, program, source, text, state, meta, trace, log)


def _source(config: Config, workdir: Path, profile: range) -> build.Source:
    """The data of a config that can work."""
    build.check(config)
    profiler.check(profile, 0, config.training.steps)
    build.mesh(config)
    return build.source(config, lambda path, why: _ledger(workdir, path, why))


def _code(config: Config) -> dict[str, Any]:
    """What must be the same in all processes: the fields but LOCAL, the code, the packages."""
    fields = _flat(json.loads(config.to_json()))
    facts = {name: value for name, value in fields.items() if name not in LOCAL}
    package = Path(__file__).parent.parent
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(f"{path.relative_to(package)} ".encode() + path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    return facts | versions | {"the code of snapvideo_jax": code.hexdigest()[:16]}


def _run(
    config: Config,
    workdir: Path,
    program: build.Program,
    source: build.Source,
    text: build.Text,
    state: TrainState,
    meta: dict,
    trace: profiler.Trace,
    log: Log,
) -> TrainState:
    """The loop. Metrics are fetched one step late, so the device never waits for the host."""
    start, steps = int(state.step), config.training.steps
    with contextlib.ExitStack() as stack:
        stack.enter_context(_fitting(lambda: _refusal(program)))
        lost = start - int(optim.updates(state.opt_state))
        report = stack.enter_context(_Report(config, workdir, start, lost, log))
        saved = checkpoint.Checkpoints(
            workdir / "checkpoints", config.checkpoint.keep_last, config.checkpoint.keep_every
        )
        stack.callback(saved.close)
        if start:
            saved.set_aside(start)
        signals = stack.enter_context(hosts.Signals())
        plan = _plan(config, source, text, program)
        feed = stack.enter_context(contextlib.closing(pipeline.Feed(plan, start, steps)))
        stack.enter_context(trace)
        log("compiling the training step")
        update = hosts.compile_on_all(program.step, program.abstract_state, program.abstract_batch)
        pending: tuple = ()
        for step in range(start + 1, steps + 1):
            trace.before(step, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                then = time.monotonic()
                batch = next(feed)
                report.waited(time.monotonic() - then)
                state, metrics = update(state, batches.join(program.abstract_batch, batch))
            trace.after(step, state)
            if pending:
                report.step(*pending)
            pending = step, metrics
            stopping = signals.stop()
            if step % config.checkpoint.every_steps == 0 or step == steps or stopping:
                saved.save(step, state, meta)
            if stopping:
                break
            if config.log.samples_every and step % config.log.samples_every == 0:
                with _fitting(lambda: SAMPLES):
                    report.samples(step, generate.grid(config, program, text, state.ema))
        report.step(*pending)
    if stopping and int(state.step) < steps:
        raise Preempted(f"preempted: saved step {step}, resume with the same command")
    log(f"done: step {steps}, checkpoint in {workdir / 'checkpoints' / str(steps)}")
    return state


@contextlib.contextmanager
def _fitting(refusal: Callable[[], str]) -> Iterator[None]:
    """ConfigError with `refusal`, if the devices' memory does not hold what is done inside."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not compiler.exhausted(error):
            raise
        raise ConfigError(refusal()) from error


def _refusal(program: build.Program) -> str:
    """What fills the devices' memory in a step that it does not hold, and what to do."""
    given = program.abstract_state, program.abstract_batch
    split = meshes.ways(program.mesh, (*meshes.BATCH_AXES, "group"))
    return residuals.refusal(program.step, given, split)


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
        with _fitting(lambda: INIT):
            fresh = jax.block_until_ready(hosts.compile_on_all(program.init)())
        return _grafted(config, program, fresh, log) if config.training.start_from else fresh
    log(f"resuming at step {restored.step} on {_devices(program)}")
    return restored.state


def _grafted(config: Config, program: build.Program, fresh: TrainState, log: Log) -> TrainState:
    """`fresh` with the weights of the first stage's EMA, for parameters and EMA alike."""
    stage1 = generate.load(Path(config.training.start_from), log=log)
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

    def make() -> None:
        if hosts.is_first() and trained and not config.data.vocabulary and not path.exists():
            train_vocabulary(source.captions(), path)

    hosts.raise_on_all(make)
    text = hosts.raise_on_all(lambda: build.text(config, path))
    if jax.process_count() > 1:
        words = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if trained else ""
        hosts.check_same({"the vocabulary": words, "the text encoder": text.encoder}, DataError)
    return text


def _plan(
    config: Config, source: build.Source, text: build.Text, program: build.Program
) -> pipeline.FeedSpec:
    data, B = config.data, config.training.batch_size
    mine = batches.part(program.abstract_batch["video"])
    frames, height, width, _ = mine.box
    return pipeline.FeedSpec(
        example=source.example,
        encode=text.encode,
        box=(frames, height, width),
        batch_size=B,
        images=order.image_rows(B, data.image_fraction),
        rows=mine.rows,
        workers=data.workers,
        prefetch=data.prefetch,
    )


def _ledger(workdir: Path, path: str, reason: str) -> None:
    """One line for each example that this process replaced."""
    name = "bad_records.jsonl" if hosts.is_first() else f"bad_records.{jax.process_index()}.jsonl"
    with (workdir / name).open("a") as file:
        file.write(json.dumps({"path": path, "reason": reason}) + "\n")


class _Report:
    """Metrics file, screen and TensorBoard of one run."""

    def __init__(self, config: Config, workdir: Path, start: int, lost: int, log: Log):
        """start: steps done; lost: those of them that were skipped."""
        self._config, self._workdir = config, workdir
        # All at once: a computation between steps would wait for the one that is under way.
        self._rates = np.asarray(build.schedule(config)(np.arange(config.training.steps)))
        self._lost, self._skipped = lost, 0  # of all steps; in a row
        self._file = self._board = telemetry.Nowhere()
        if hosts.is_first():
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
        values["learning_rate"] = self._rates[step - 1 - self._lost].item()
        rates = self._progress.step(step, values["loss"])
        if step % self._config.log.metrics_every == 0 or step == self._config.training.steps:
            self._file.write(step, values)
            self._board.scalars(step, values)
        if rates:
            self._board.scalars(step, rates)
        self._lost += int(values["skipped"])
        self._skipped = self._skipped + 1 if values["skipped"] else 0
        if self._skipped >= self._config.training.max_skipped:
            raise DivergedError(
                f"the loss is not finite since step {step - self._skipped + 1}; the parameters are "
                f"those before it, and checkpoints in {self._workdir / 'checkpoints'} are sound"
            )

    def samples(self, step: int, sheet: np.ndarray) -> None:
        self._board.image(step, "samples", sheet)
