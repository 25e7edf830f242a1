"""What all commands share: flags, the config, and run(), which ends each with its exit code."""

import gc
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from launch import cluster, screen, signals
from snapvideo_jax.errors import ConfigError, UserError

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
ABSENT = re.compile(r"flag --(\w+)=None: Flag --\1 must have a value other than None\.")  # absl's
SECTIONS = ("data", "model", "diffusion", "optimizer", "training", "sampling")  # of a config


def define_config() -> None:
    """Defines --config=FILE.py, whose fields are flags too: --config.training.steps=1000."""
    try:
        config_flags.DEFINE_config_file(
            "config",
            "configs/shapes.py",
            "Configuration file; its fields are flags.",
            lock_config=True,
        )
    except CONFIG_ERRORS as error:  # of fields that stand without a file
        _exit(ConfigError(f"flags: {screen.one_line(error)}"))
    _show_in_help("config")


def define_folder(name: str, text: str) -> flags.FlagHolder[str]:
    """Defines a required flag that names a folder; `text` is its help."""
    flag = flags.DEFINE_string(name, None, text, required=True)
    flags.register_validator(name, lambda path: path != "", "must name a folder; this one is '.'")
    _show_in_help(name)
    return flag


def _show_in_help(name: str) -> None:
    """Lists a flag that is defined here among the command's own."""
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def load_config(path: str) -> Any:
    """Returns the locked config of FILE.py or FILE.py:MESH, as --config reads it.

    Raises ConfigError if there is none.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    try:
        values(["config", f"--config={path}"])
        _check_sections(values.config)
    except CONFIG_ERRORS as error:
        raise ConfigError(f"{path}: {screen.one_line(error)}") from error
    return values.config


def _check_sections(config: Any) -> None:
    """Raises ValueError if this is none of our configs.

    Raises what loading it raised, too: absl lets that wait until the config is first read.
    """
    lacking = [section for section in SECTIONS if section not in config]
    if lacking:
        raise ValueError(f"no config: it lacks {', '.join(lacking)}; start from configs/base.py")


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main` and exits: 0, or the code of the UserError it raised.

    Compiled programs stay in ~/.cache (or $JAX_COMPILATION_CACHE_DIR) for the next start.
    """
    signals.watch()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    collect_seldom()
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def collect_seldom() -> None:
    """Raises the thresholds of garbage collection.

    Tracing makes millions of objects, most of which stay: at Python's own thresholds, looking for
    garbage among them is a fifth of the time (docs/history).
    """
    gc.set_threshold(100_000, 50, 100)


def cache_folder() -> Path:
    """Returns $XDG_CACHE_HOME/snapvideo_jax or ~/.cache/snapvideo_jax: what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snapvideo_jax"


def _parse(argv: Sequence[str]) -> list[str]:
    logging.set_verbosity(logging.ERROR)
    try:
        rest = flags.FLAGS(list(argv))
        if "config" in flags.FLAGS:
            _check_sections(flags.FLAGS.config)
    except SystemExit:  # absl's, after --help
        sys.exit(0)
    except CONFIG_ERRORS as error:
        line = ABSENT.sub(r"--\1 is required", screen.one_line(error))
        _exit(ConfigError(f"flags: {line}"))
    if len(rest) > 1:
        _exit(ConfigError(f"unexpected argument {rest[1]!r}; flags start with -- (see --help)"))
    return rest


def _guarded(main: Callable[[], None]) -> None:
    """Joins the job and calls `main`; a UserError or a signal is one line and an exit code."""
    try:
        cluster.join()
        main()
    except UserError as error:
        _exit(error)
    except (Exception, KeyboardInterrupt) as error:
        if number := signals.ending(error):
            cluster.leave(signals.announce(number), immediately=True)
        if cluster.lost(error):
            _exit(UserError("another process of the job has ended; see what it said last"))
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        cluster.leave(1)


def _exit(error: UserError) -> NoReturn:
    screen.print_error(error)
    cluster.leave(error.exit_code)
