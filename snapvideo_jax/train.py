"""train(config, workdir): a plain for loop, and the only place of effects in training.

A run is resumed by starting it again: state and position in the data come from the newest
checkpoint that verifies. What is in the folder of a run:

    checkpoints/STEP   state, config, digests     metrics.jsonl       loss and norms by step
    vocabulary.model   text -> tokens             tensorboard/        curves and sample grids
    config.json        the config of the last run samples/STEP.png    samples; STEP.gif: moving
    evaluations/       STEP.json: what was measured of the EMA (log.evaluate_every)
    goodput.json       where the time went        saved.json          the newest step
    parameters.txt     every parameter            bad_records.jsonl   files that cannot be used
    profile/           a trace, if --profile asks for one
    rows.I.jsonl       digests of the data that process I was fed, if --record_rows asks for them

All processes of a job call train alike. The first one writes these files, but for the arrays of
checkpoints and bad_records.I.jsonl, which process I > 0 writes.
"""

import contextlib
import dataclasses
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snapvideo_jax import build, numerics, storage, trees
from snapvideo_jax.build import Config
from snapvideo_jax.data import pipeline
from snapvideo_jax.data.bad_records import BadRecords
from snapvideo_jax.data.text import train_vocabulary
from snapvideo_jax.errors import ConfigError, DataError, Preempted, Stopped, StorageError
from snapvideo_jax.evaluation import evaluate, extractors, result, sets
from snapvideo_jax.evaluation.evaluate import Setting
from snapvideo_jax.files import video
from snapvideo_jax.parallel import batches, chips, hosts
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.planner import programs, residuals
from snapvideo_jax.sampling import trained
from snapvideo_jax.sampling.generate import generate, silent
from snapvideo_jax.sampling.stage import Stage
from snapvideo_jax.sampling.trained import Trained
from snapvideo_jax.training import (
    boards,
    checkpoint,
    fed_rows,
    goodput,
    graft,
    leaf_digests,
    optim,
    parameter_report,
    profiler,
    restore,
    resume,
    telemetry,
)
from snapvideo_jax.training.progress import Speed
from snapvideo_jax.training.state import TrainState
from snapvideo_jax.units import size_text

# What to do when memory runs out away from the step.
INIT_OUT_OF_MEMORY = (
    "the devices' memory does not hold the state of training; split it over more devices "
    "(mesh.fsdp): launch.plan --doctor says what each would hold"
)
SHEET_OUT_OF_MEMORY = (
    "the devices' memory does not hold the sample grid beside the state of training; the run goes "
    "on from its newest checkpoint with log.samples_every=0, and launch.sample draws samples"
)

EVALUATION_OUT_OF_MEMORY = (
    "the devices' memory does not hold an evaluation beside the state of training; the run goes on "
    "from its newest checkpoint with log.evaluate_every=0, and launch.evaluate measures checkpoints"
)
EVALUATION_BATCH = 64  # videos a process samples at a time, where a training batch is as large

Log = Callable[[str], None]


class Run(NamedTuple):
    """What a run is made of. meta: what its checkpoints are saved with.

    record_rows: whether digests of the rows of data are written down. tracker: of boards.TRACKERS.
    """

    config: Config
    workdir: Path
    source: build.Source
    text: build.Text
    program: build.TrainProgram
    meta: dict
    log: Log
    record_rows: bool
    tracker: str | None


def train(
    config: Config,
    workdir: Path,
    log: Log = print,
    profile: range = range(0),
    record_rows: bool = False,
    tracker: str | None = None,
) -> TrainState:
    """Runs `config` in `workdir` to its last step, from the newest checkpoint that is there.

    Args:
        config: locked; every field is in configs/base.py.
        workdir: folder of the run; made where there is none.
        log: called with each line for the screen.
        profile: steps that the first process traces.
        record_rows: writes a digest of every row of data, to compare two runs.
        tracker: one of boards.TRACKERS, which shows the run beside TensorBoard.

    Raises:
        UserError: one line that says what is wrong, where, and what to do.
    """
    began = time.monotonic()
    source = hosts.raise_on_all(lambda: _open(config, workdir, profile))
    fields = json.loads(config.to_json())
    if jax.process_count() > 1:
        hosts.check_same(resume.job_facts(fields), ConfigError)
        hosts.check_same({"the data": source.fingerprint}, DataError)
    with hosts.claim_folder(workdir):
        saved = restore.newest_meta(workdir / "checkpoints")
        text = _text(config, workdir, source, saved)
        program = build.train_program(config, text.vocabulary_size)
        hosts.raise_on_all(lambda: _check_memory(program))
        meta = {
            "config": fields,
            "data": source.fingerprint,
            "text": text.encoder,
            "numerics": numerics.check(),
        }
        run = Run(config, workdir, source, text, program, meta, log, record_rows, tracker)
        if saved:  # all checkpoints of a folder are of one experiment
            resume.check_same_experiment(workdir, saved, meta)
        state = _first_state(run)
        start, steps = int(state.step), config.training.steps
        profiler.check(profile, start, steps)
        if start >= steps:
            log(f"already at step {start} of {steps}: {workdir}")
            return state
        if hosts.is_first():
            content = json.dumps(fields, indent=2) + "\n"
            storage.write(workdir / "config.json", content.encode())
            table = parameter_report.table(program.abstract_state.params) + "\n"
            storage.write(workdir / "parameters.txt", table.encode())
        _note_unknown_words(run)
        trace = profiler.Trace(workdir / "profile", profile if hosts.is_first() else range(0), log)
        return _loop(run, state, trace, goodput.Ledger(workdir / "goodput.json", start, began))


def _loop(run: Run, state: TrainState, trace: profiler.Trace, ledger: goodput.Ledger) -> TrainState:
    """Trains to the last step. Metrics are fetched one step late: the device never waits for them.

    The order matters: a checkpoint is saved before the next batch is taken, so that its step is
    also the position in the data.
    """
    config, program, log = run.config, run.program, run.log
    start, steps, every = int(state.step), config.training.steps, config.checkpoint.every_steps
    samples_every, evaluate_every = config.log.samples_every, config.log.evaluate_every
    is_evaluated = lambda step: evaluate_every and step and step % evaluate_every == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(_explaining_memory(lambda: _step_refusal(program)))
        checkpoints = checkpoint.Checkpoints(
            run.workdir / "checkpoints",
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
            log=log,
        )
        report = stack.enter_context(_report(run, state, checkpoints.steps, ledger))
        signals = stack.enter_context(hosts.Signals())  # outlasts the last save
        stack.callback(ledger.write)
        stack.enter_context(_closing(checkpoints, ledger))
        if start:
            checkpoints.set_aside(start)
        feed = stack.enter_context(contextlib.closing(_feed(run, start)))
        stack.enter_context(trace)
        log("compiling the training step")
        with ledger.time("compile"):
            train_step = hosts.compile_on_all(
                program.step, program.abstract_state, program.abstract_batch
            )
        pending: tuple = ()
        if is_evaluated(start):  # it may have been stopped in there
            with ledger.time("pictures"):
                report.evaluation(start, _evaluate(run, state))
        for step in range(start + 1, steps + 1):
            trace.before(step, state)
            ledger.begin(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                with ledger.time("data"):
                    batch = next(feed)
                if run.record_rows:
                    fed_rows.record(run.workdir, step, batch)
                with ledger.time("compile" if step == start + 1 else "training"):
                    state, metrics = train_step(state, batches.join(program.abstract_batch, batch))
            trace.after(step, state)
            if pending:
                report.step(*pending)
            pending = step, metrics
            checkpoints.check()
            ending = signals.stop()
            if step % every == 0 or step == steps or ending or is_evaluated(step):
                report.step(*pending)
                pending = ()
                # What is skipped would push out what is sound. An evaluation may take long: what a
                # kill then loses is its last batch, not training.
                if ending or not report.skips:
                    with ledger.time("checkpoint"):
                        if broken := leaf_digests.not_finite(state):
                            raise report.diverged(broken)
                        checkpoints.save(step, state, run.meta, before=report.flush)
            if ending:
                break
            if samples_every and step % samples_every == 0:
                with ledger.time("pictures"), _explaining_memory(lambda: SHEET_OUT_OF_MEMORY):
                    if moving := _write_samples(run, state):
                        report.samples(step, moving)
            if is_evaluated(step):
                with ledger.time("pictures"):
                    report.evaluation(step, _evaluate(run, state))
        if pending:
            report.step(*pending)
        if report.skips and not ending:
            raise report.diverged()
    log(ledger.summary())
    if ending and int(state.step) < steps:
        error, word = (Stopped, "stopped") if ending == signal.SIGINT else (Preempted, "preempted")
        raise error(f"{word}: saved step {step}, resume with the same command")
    log(f"done: step {steps}, checkpoint in {run.workdir / 'checkpoints' / str(steps)}")
    return state


def _feed(run: Run, start: int) -> pipeline.Feed:
    """Returns the batches of this process from step `start` on, as far as its devices hold them."""
    part = batches.part(run.program.abstract_batch["video"])
    frames, height, width, _ = part.box
    box = frames, height, width
    spec = build.feed_spec(run.config, run.source, run.text, rows=part.rows, box=box)
    return pipeline.Feed(spec, start, run.config.training.steps)


@contextlib.contextmanager
def _closing(checkpoints: checkpoint.Checkpoints, ledger: goodput.Ledger) -> Iterator[None]:
    """Closes the checkpoints after the block, and counts the wait for the last one as saving."""
    try:
        yield
    finally:
        with ledger.time("checkpoint"):
            checkpoints.close()


def _speed(run: Run) -> Speed | None:
    """Returns the work of a step and what the devices could do; None where no chip is known.

    The work is that of the model: what a rematerialized block computes again does not count.
    """
    devices = list(run.program.mesh.devices.flat)
    chip = chips.of(devices[0].device_kind)
    if chip is None:
        return None
    flops = programs.model_flops(run.config, "train", devices)
    peak = chip.peak if run.config.model.dtype == "bfloat16" else 0.0  # that of the sheets
    return Speed(flops / len(devices), peak)


def _open(config: Config, workdir: Path, profile: range) -> build.Source:
    """Checks the config and what else decides results, and opens the data."""
    numerics.check()
    storage.refuse_remote(workdir)
    build.check(config, chips.memory(jax.local_devices()[0]) * jax.device_count())
    profiler.check(profile, 0, config.training.steps)
    build.training_mesh(config)
    name = "bad_records.jsonl" if hosts.is_first() else f"bad_records.{jax.process_index()}.jsonl"
    records = BadRecords(workdir / name, config.data.max_bad_fraction)
    return build.source(config, records.bad, records.good)


def _text(config: Config, workdir: Path, source: build.Source, saved: dict | None) -> build.Text:
    """Returns how captions enter; a run that starts makes its vocabulary if the config names none.

    saved: meta data of the newest checkpoint; the encoder must still be the one that it names.
    """
    path, settings = build.vocabulary_path(config, workdir), build.text_settings(config)

    def make() -> None:
        ours = settings.trained and not config.data.vocabulary
        if hosts.is_first() and ours and not (saved and path.exists()):
            train_vocabulary(source.captions(), path)

    hosts.raise_on_all(make)
    encoder = saved["text"] if saved else ""
    text = hosts.raise_on_all(lambda: build.text(config, path, encoder))
    if jax.process_count() > 1:
        hosts.check_same({"the text encoder or vocabulary": text.encoder}, DataError)
    return text


def _check_memory(program: build.TrainProgram) -> None:
    """Raises ConfigError where a device cannot even hold its part of the state."""
    needed, held = trees.device_bytes(program.abstract_state), chips.memory(jax.local_devices()[0])
    if needed > held:
        raise ConfigError(
            f"the state of training takes {size_text(needed)} of each device, which has "
            f"{size_text(held)}; split it over more devices (mesh.fsdp): launch.plan --doctor says "
            "what each would hold"
        )


def _note_unknown_words(run: Run) -> None:
    """Says which words of the prompts that the run draws no caption has: of them it learns nothing.

    So it is where one's own data are trained on with the prompts of another config.
    """
    prompts = run.config.log.sample_prompts if run.config.log.samples_every else ()
    if words := run.text.unknown(prompts):
        run.log(
            f"note: no caption has {', '.join(words)} of log.sample_prompts; to see what "
            """yours have: --config.log.sample_prompts='("CAPTION", "ANOTHER")'"""
        )


def _first_state(run: Run) -> TrainState:
    """Restores the newest verified checkpoint, or makes a fresh state where there is none."""
    program, log, folder = run.program, run.log, run.workdir / "checkpoints"
    restored = restore.newest(folder, program.abstract_state, log)
    log(parameter_report.summary(program.abstract_state.params))
    axes = " ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items() if size > 1)
    devices = f"{program.mesh.size} {jax.devices()[0].platform} device(s) {axes}".rstrip()
    if restored is not None:
        log(f"resuming at step {restored.step} on {devices}")
        return restored.state
    checkpoint.check_never_saved(folder)
    log(f"starting at step 0 on {devices}")
    with _explaining_memory(lambda: INIT_OUT_OF_MEMORY):
        state = jax.block_until_ready(hosts.compile_on_all(program.init)())
    return _graft(run, state) if run.config.training.start_from else state


def _graft(run: Run, state: TrainState) -> TrainState:
    """Gives `state` the weights of the first stage's EMA, for parameters and EMA alike."""
    folder = run.config.training.start_from
    stage1 = trained.load(Path(folder), log=run.log)
    networks: Any = stage1.denoiser.network, run.program.denoiser.network
    graft_params = jax.jit(
        lambda old, new: graft.graft(old, new, *networks),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state.params),
    )
    run.log(f"weights from step {stage1.step} of {folder}")
    params = graft_params(stage1.params, state.params)
    return dataclasses.replace(state, params=params, ema=jax.tree.map(jnp.copy, params))


def _report(
    run: Run,
    state: TrainState,
    saved_steps: Callable[[], list[int]],
    ledger: goodput.Ledger,
) -> telemetry.Report:
    """Opens what tells people about the run."""
    config, start = run.config, int(state.step)
    return telemetry.Report(
        workdir=run.workdir,
        start=start,
        skipped=start - int(optim.num_updates(state.opt_state)),
        steps=config.training.steps,
        batch_size=config.training.batch_size,
        # All at once: a computation between steps would wait for the one that is under way.
        learning_rates=np.asarray(build.schedule(config)(np.arange(config.training.steps))),
        max_skipped=config.training.max_skipped,
        metrics_every=config.log.metrics_every,
        every_seconds=config.log.every_seconds,
        saved_steps=saved_steps,
        log=run.log,
        boards=_boards(run) if hosts.is_first() else (),
        waited=lambda: ledger.seconds("data"),
        drawn=lambda: ledger.seconds("pictures"),
        speed=lambda: _speed(run),
    )


def _boards(run: Run) -> list[boards.Board]:
    """Opens where people look at the run."""
    return boards.open_all(run.workdir, run.meta["config"], run.tracker, run.log)


def _write_samples(run: Run, state: TrainState) -> Path | None:
    """Draws the config's `log.sample_prompts` with the EMA: samples/STEP.png, and STEP.gif.

    Returns the second, on the first process, unless it could not be written.
    """
    program, step = run.program, int(state.step)
    model = Trained(run.config, step, program.denoiser, program.mesh, run.text, state.ema)
    prompts, settings = list(run.config.log.sample_prompts), build.sampler_settings(run.config)
    videos = generate(model, settings, prompts, range(len(prompts)), len(prompts))
    if not hosts.is_first():
        return None
    path = run.workdir / "samples" / f"{step:06d}.png"
    moving = path.with_suffix(".gif")
    try:
        storage.make_folder(path.parent)
        video.write_png(path, video.contact_sheet(list(videos), prompts))
        sheet = video.moving_sheet(videos, prompts)
        video.write_gif(moving, sheet, settings.frame_rate, scale=1)
    except StorageError as error:
        run.log(f"{error}; training goes on")
        return None
    run.log(f"samples of step {step}: {path}")
    return moving


def _evaluate(run: Run, state: TrainState) -> dict[str, float]:
    """Measures the EMA as launch.evaluate does without weights, and writes evaluations/STEP.json.

    Returns name -> value, on the first process. An evaluation that is there is read, and one that
    was stopped goes on.
    """
    config, program, step = run.config, run.program, int(state.step)
    folder = run.workdir / "evaluations"
    path, parts = folder / f"{step:06d}.json", folder / f"{step:06d}.parts"
    if not hosts.broadcast(path.exists):
        run.log(f"evaluating step {step}")
        model = Trained(config, step, program.denoiser, program.mesh, run.text, state.ema)
        num, shape = config.log.evaluate_samples, program.denoiser.video_shape
        world, settings = None, build.sampler_settings(config)
        if config.data.source == "shapes":
            world = build.world(config)
            settings = dataclasses.replace(settings, frame_rate=world.frame_rates[0])
            chosen = sets.of_shapes(world, settings.frame_rate, num, seed=0)
        else:
            folder_of_real, aspect = config.log.evaluate_path, config.data.aspect
            chosen = sets.of_reference(
                folder_of_real, shape, settings.frame_rate, num, seed=0, aspect=aspect
            )
        networks = extractors.without_weights(world, settings.frame_interval)
        rows = config.training.batch_size // batches.shard(program.mesh).count
        setting = Setting(parts, folder / "real", min(rows, EVALUATION_BATCH), lambda _: silent)
        with _explaining_memory(lambda: EVALUATION_OUT_OF_MEMORY):
            evaluation = evaluate.evaluate(
                [Stage(str(run.workdir), model, settings, source_size=shape[1:])],
                chosen,
                extractors.usable(networks, chosen, shape[0], note=lambda line: None),
                setting,
                world,
            )
        if evaluation is not None:
            result.write(path, evaluation.result)
            shutil.rmtree(parts)
        run.log(f"evaluation of step {step}: {path}")
    values = result.read(path).values if hosts.is_first() else {}
    return {name: value.value for name, value in values.items()}


@contextlib.contextmanager
def _explaining_memory(refusal: Callable[[], str]) -> Iterator[None]:
    """Raises ConfigError with `refusal` if the devices' memory does not hold what runs inside."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not chips.exhausted(error):
            raise
        raise ConfigError(refusal()) from error


def _step_refusal(program: build.TrainProgram) -> str:
    """Says what fills the devices' memory in a step that it does not hold, and what to do."""
    arguments = program.abstract_state, program.abstract_batch
    split = meshes.ways(program.mesh, (*meshes.BATCH_AXES, "group"))
    return residuals.refusal(program.step, arguments, split)
