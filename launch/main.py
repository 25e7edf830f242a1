"""What all entry points share: flags, quiet logs, one-line errors and exit codes."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before tensorflow is first imported

import jax
from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from snapvideo_jax.errors import ConfigError, UserError
from snapvideo_jax.training.telemetry import duration

CONFIG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)


def define_config() -> None:
    """The flag --config=FILE.py, whose fields are flags too: --config.training.steps=1000."""
    config_flags.DEFINE_config_file(
        "config",
        "configs/shapes.py",
        "Configuration file; its fields are flags.",
        lock_config=True,
    )


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main` and exits: 0, or the code of the UserError it raised.

    Compiled programs are kept in ~/.cache (or $JAX_COMPILATION_CACHE_DIR) for the next start.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "snapvideo_jax"))
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def say(text: str) -> None:
    """One line to the screen, at once."""
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
            list(flags.FLAGS.config)  # a file that could not be loaded says so only when it is read
    except CONFIG_ERRORS as error:
        _exit(ConfigError(f"flags: {_one_line(error)}"))
    if len(rest) > 1:
        _exit(ConfigError(f"unexpected argument {rest[1]!r}; flags start with -- (see --help)"))
    return rest


def _guarded(main: Callable[[], None]) -> None:
    try:
        main()
    except UserError as error:
        _exit(error)


def _exit(error: UserError) -> None:
    print(f"{'' if error.exit_code == 143 else 'error: '}{_one_line(error)}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(error.exit_code)


def _one_line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())
