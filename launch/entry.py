"""What all entry points share: flags, joining the job, quiet logs, one-line errors, exit codes."""

import gc
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before tensorflow is first imported

import jax
from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from snapvideo_jax.errors import ConfigError, UserError
from snapvideo_jax.parallel import hosts
from snapvideo_jax.training.telemetry import duration

# How this process finds the others of its job, where no cluster says so (docs/pods.md).
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 in a job of many processes."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "In the job.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0.", lower_bound=0)
JOIN = 300  # seconds until the processes of a job must have found each other
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
LEAVE = 10  # seconds for the others to end with this one
SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")  # what JAX reads
LOST = re.compile("Connection (closed|reset)|Broken pipe|Socket closed")  # in JAX's errors

# What flags and the code of a config file may raise.
CONFIG_ERRORS = (
    flags.Error,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
)
SECTIONS = ("data", "model", "diffusion", "optimizer", "training", "sampling")  # of a config


def define_config() -> None:
    """The flag --config=FILE.py, whose fields are flags too: --config.training.steps=1000."""
    try:
        config_flags.DEFINE_config_file(
            "config",
            "configs/shapes.py",
            "Configuration file; its fields are flags.",
            lock_config=True,
        )
    except CONFIG_ERRORS as error:  # of fields given without a file
        _exit(ConfigError(f"flags: {_one_line(error)}"))
    _show_in_help("config")


def define_folder(name: str, text: str) -> flags.FlagHolder[str]:
    """A required flag that names a folder."""
    flag = flags.DEFINE_string(name, None, text, required=True)
    flags.register_validator(name, lambda path: path != "", "must name a folder; this one is '.'")
    _show_in_help(name)
    return flag


def _show_in_help(name: str) -> None:
    """A flag that is defined here is one of the command's own."""
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def load_config(path: str) -> Any:
    """The locked config of FILE.py or FILE.py:MESH, as --config reads it; ConfigError if not."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    try:
        values(["config", f"--config={path}"])
        _look(values.config)
    except CONFIG_ERRORS as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    return values.config


def _look(config: Any) -> None:
    """ValueError if it is none; one that could not be loaded says so only when it is read."""
    lacking = [section for section in SECTIONS if section not in config]
    if lacking:
        raise ValueError(f"no config: it lacks {', '.join(lacking)}; start from configs/base.py")


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main` and exits: 0, or the code of the UserError it raised.

    Compiled programs are kept in ~/.cache (or $JAX_COMPILATION_CACHE_DIR) for the next start.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache()))
    collect_seldom()
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def collect_seldom() -> None:
    """Tracing makes millions of objects, most of which stay: at Python's own thresholds, looking
    for garbage among them is a fifth of the time (docs/performance.md).
    """
    gc.set_threshold(100_000, 50, 100)


def cache() -> Path:
    """The folder of what can be made again: $XDG_CACHE_HOME/snapvideo_jax, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snapvideo_jax"


def join() -> None:
    """Joins the other processes of the job, where flags or the cluster say that there are any.

    Before anything uses a device. Raises ConfigError if that cannot work; ends the process with a
    line if the others are not found in JOIN seconds.
    """
    clustered = _clustered(os.environ, jax.config.values["jax_platforms"] or "")
    asked = _given(clustered)
    if asked is None and not clustered:
        return
    # Its handler swallows SIGTERM, and misses one that comes before a resumed run's first step:
    # the training loop agrees on a step by itself, and other commands just end.
    jax.config.update("jax_enable_preemption_service", False)
    late = threading.Timer(JOIN, _give_up)
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(**asked or {}, initialization_timeout=JOIN + 60)
        jax.devices()
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"cannot join the job: {_one_line(error)}") from error
    finally:
        late.cancel()


def _given(clustered: bool) -> dict[str, Any] | None:
    """The job as flags and JAX_COORDINATOR_ADDRESS have it; None where they leave it to others."""
    address = COORDINATOR.value or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, index = NUM_PROCESSES.value, PROCESS_ID.value
    if (COORDINATOR.value if clustered else address, count, index) == (None, None, None):
        return None
    if address is None or count is None or index is None:
        raise ConfigError(
            "a job of many processes needs all of --coordinator=HOST:PORT (of process 0; or "
            "$JAX_COORDINATOR_ADDRESS), --num_processes=N and --process_id=I"
        )
    if index >= count:
        raise ConfigError(f"--process_id={index} must be below --num_processes={count}")
    port = re.fullmatch(r".+:(\d{1,5})", address)
    if not port or not 0 < int(port[1]) < 2**16:
        raise ConfigError(f"--coordinator={address} must be HOST:PORT")
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    return given | {"cluster_detection_method": "deactivate"}


def _clustered(environment: Mapping[str, str], platforms: str) -> bool:
    """Whether a cluster that JAX knows started this process; asks no network.

    platforms: the setting jax_platforms, in which JAX writes "tpu" where it finds one.
    """
    if all(f"SLURM_{name}" in environment for name in SLURM):
        return int(environment["SLURM_NTASKS"]) > 1
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    if "tpu" not in platforms:
        return False
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    return "," in workers if workers else "TPU_SKIP_MDS_QUERY" not in environment


def _give_up() -> None:
    """Ends the process while JAX waits: its own way is an abort with a stack trace."""
    others = f"the {NUM_PROCESSES.value} processes" if NUM_PROCESSES.value else "all processes"
    _print_error(
        ConfigError(
            f"waited {JOIN} s for {others} of the job to meet at "
            f"{COORDINATOR.value or 'the coordinator'}; start them all, and let its port be "
            "reached from every host (JAX_PLATFORMS=cpu for a command on one host of a TPU pod)"
        )
    )
    os._exit(ConfigError.exit_code)


def speaks() -> bool:
    """Whether this process speaks for the job: the only one, or the first."""
    return not jax.distributed.is_initialized() or hosts.is_first()


def say(text: str) -> None:
    """One line to the screen, at once; of many processes, from the first."""
    if speaks():
        print(text, flush=True)


def progress(things: str) -> Callable[[int, int], None]:
    """(done, of) -> a line with the time left, at most one every few seconds and one at the end."""
    start = spoken = time.monotonic()

    def report(done: int, of: int) -> None:
        nonlocal spoken
        now = time.monotonic()
        if done < of and now - spoken < 3:
            return
        spoken = now
        left = (now - start) * (of - done) / done
        say(f"{done}/{of} {things} in {duration(now - start)}, {duration(left)} left")

    return report


def _parse(argv: Sequence[str]) -> list[str]:
    logging.set_verbosity(logging.ERROR)
    try:
        rest = flags.FLAGS(list(argv))
        if "config" in flags.FLAGS:
            _look(flags.FLAGS.config)
    except SystemExit:  # absl's, after --help
        sys.exit(0)
    except CONFIG_ERRORS as error:
        _exit(ConfigError(f"flags: {_one_line(error)}"))
    if len(rest) > 1:
        _exit(ConfigError(f"unexpected argument {rest[1]!r}; flags start with -- (see --help)"))
    return rest


def _guarded(main: Callable[[], None]) -> None:
    try:
        join()
        main()
    except UserError as error:
        _exit(error)
    except (Exception, KeyboardInterrupt) as error:
        if not jax.distributed.is_initialized():
            if not isinstance(error, KeyboardInterrupt):
                raise
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        if isinstance(error, jax.errors.JaxRuntimeError) and LOST.search(str(error)):
            _exit(UserError("another process of the job has ended; see what it said last"))
        traceback.print_exc()
        _leave(1)


def _exit(error: UserError) -> NoReturn:
    _print_error(error)
    _leave(error.exit_code)


def _print_error(error: UserError) -> None:
    sys.stdout.flush()
    print(f"{'' if error.exit_code == 143 else 'error: '}{_one_line(error)}", file=sys.stderr)
    sys.stderr.flush()


def _leave(code: int) -> NoReturn:
    """Exits; at once if this process of the job fails alone.

    At an orderly exit JAX waits for the other processes, and they wait for this one's next step.
    """
    if jax.distributed.is_initialized() and not hosts.all_leave(LEAVE):
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _one_line(error: BaseException) -> str:
    cause = error.args[0] if error.args else None
    if isinstance(cause, KeyError):  # a field of a config that is not there
        return _one_line(cause)
    text = str(cause if isinstance(error, KeyError) else error)
    head, traceback_, rest = text.partition("Traceback (most recent call last):")
    if traceback_:  # of a config file, as ml_collections passes it on
        text = head + rest.strip().splitlines()[-1]
    return " ".join(text.split())
