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
from snapvideo_jax import fields, kinds, numerics, storage
from snapvideo_jax.errors import (
    REMOUNT,
    ConfigError,
    DataError,
    Stalled,
    StorageError,
    UserError,
    reason,
    storage_is_lost,
)

# What absl, Python and ml_collections say, in plainer words.
PLAINER = (
    (re.compile(r"flag --(\w+)=None: Flag --\1 must have a value other than None\."),
     r"--\1 is required"),
    (re.compile(r"flag --config=(\S+): Error whilst parsing config file: \w+: "), r"--config=\1: "),
    (re.compile(r"flag (--\w+=.*): must be "), r"\1 must be "),
)  # fmt: skip
CONFIG_FLAG = re.compile(r"--?(?:no)?config(?:\.([^=]*))?=(.*)", re.DOTALL)
DEFAULT_CONFIG = "configs/shapes.py"
LONGEST = 400  # characters of a message about flags
OUTPUTS: dict[str, Callable[[str], Path]] = {}  # flag of what is written -> its folder


def define_config() -> None:
    """Defines --config=FILE.py, whose fields are flags too: --config.training.steps=1000."""
    try:
        config_flags.DEFINE_config_file(
            "config",
            DEFAULT_CONFIG,
            "Configuration file; its fields are flags.",
            lock_config=True,
        )
    except Exception as error:  # of fields, which are looked up here, or of the file's own code
        _refuse(error, _config_mistake(sys.argv))
    _show_in_help("config")


def define_folder(
    name: str, text: str, default: str | None = None, required: bool = True
) -> flags.FlagHolder[Any]:
    """Defines a flag that names a folder to write, with a default or required; `text` is its help.

    required: False where a command may do without.
    """
    flag = flags.DEFINE_string(name, default, text, required=required and default is None)
    flags.register_validator(name, lambda path: path != "", "must name a folder; this one is '.'")
    _show_in_help(name)
    OUTPUTS[name] = Path
    return flag


def define_file(name: str, text: str, required: bool = False) -> flags.FlagHolder:
    """Defines a flag that names a file to write; `text` is its help."""
    flag = flags.DEFINE_string(name, None, text, required=required)
    flags.register_validator(name, lambda path: path != "", "must name a file; this one is '.'")
    _show_in_help(name)
    OUTPUTS[name] = lambda path: Path(path).parent
    return flag


def probe_outputs() -> None:
    """Raises StorageError where a flag names a folder or file that cannot be written.

    So it shows at once, and not when hours of work are to be written down.
    """
    for name, folder in OUTPUTS.items():
        if (path := flags.FLAGS[name].value) is not None:
            storage.refuse_remote(path)
            storage.probe(folder(path))


def refuse_unread(needs: str, *holders: flags.FlagHolder) -> None:
    """Raises ConfigError where one of `holders` was given, since nothing would read it.

    needs: what a flag needs to be read, for the message.
    """
    for holder in holders:
        if flags.FLAGS[holder.name].present:
            raise ConfigError(f"--{holder.name} does nothing here: it needs {needs}")


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
        fields.check(values.config)  # absl lets what loading raised wait until here
    except Exception as error:
        raise ConfigError(f"{path}: {screen.one_line(error)}") from error
    return values.config


def run(main: Callable[[], None], joins: Callable[[], bool] = lambda: True) -> None:
    """Parses the flags, calls `main` and exits: 0, or the code of the UserError it raised.

    joins: whether, as its flags stand, this process is one of the job that they or its cluster
    speak of.

    Compiled programs stay in ~/.cache (or $JAX_COMPILATION_CACHE_DIR) for the next start.
    """
    signals.watch()
    screen.ignore_closed_loops()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    collect_seldom()
    # The loop that feeds the devices stands in line with the threads that make its data: at
    # Python's own 5 ms that took 1.1 to 1.5 % of the demo's step, so it takes 0.8 (docs/history).
    sys.setswitchinterval(0.0005)
    app.run(lambda _: _guarded(main, joins), flags_parser=_parse)


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
    logging.set_verbosity(logging.FATAL)  # Orbax logs the stack of each error that it also raises
    try:
        rest = flags.FLAGS(list(argv))
        if "config" in flags.FLAGS:
            fields.check(flags.FLAGS.config)
    except SystemExit:  # absl's, after --help
        if "config" in flags.FLAGS and {"--helpfull", "-helpfull"} & set(argv):
            print("\n".join(_fields_help()))
        sys.exit(0)
    except Exception as error:
        _refuse(error, _config_mistake(argv) if "config" in flags.FLAGS else None)
    if len(rest) > 1:
        _exit(ConfigError(f"unexpected argument {rest[1]!r}; flags start with -- (see --help)"))
    return rest


def _fields_help() -> list[str]:
    """Returns a line for each field of a config: its value in DEFAULT_CONFIG, and its kind."""
    values = fields.flatten(load_config(DEFAULT_CONFIG))
    heading = f"fields of the config, as in {DEFAULT_CONFIG}; configs/base.py explains them:"
    shown = lambda name: f"  --config.{name}={kinds.shown(values[name])}: {fields.FIELDS[name]}"
    return ["", heading, *map(shown, values)]


def _refuse(error: Exception, mistake: str | None) -> NoReturn:
    """Ends the command with one line about its flags: `mistake`, or what `error` says."""
    line = screen.one_line(error)
    line = line if isinstance(error, ConfigError) else f"flags: {line}"
    for pattern, words in PLAINER:
        line = pattern.sub(words, line)
    line = mistake or line
    _exit(ConfigError(line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."))


def _config_mistake(argv: Sequence[str]) -> str | None:
    """Says which file or field of a config there is not, or what a field may be.

    Returns None if all files and fields are there, and take their values as far as that shows
    from the text.
    """
    apart = lambda word: re.fullmatch(r"--?config[^=]*", word)  # its value is the next word
    words = zip(argv, [*argv[1:], ""], strict=True)
    matches = [CONFIG_FLAG.fullmatch(f"{w}={value}" if apart(w) else w) for w, value in words]
    values = {match[1]: match[2] for match in matches if match}
    path = values.pop(None, DEFAULT_CONFIG)
    file = path.partition(":")[0]
    if not Path(file).is_file():
        return f"--config={path}: there is no file {file!r}; start from configs/base.py"
    for field, text in values.items():
        if field in fields.SECTIONS:
            return f"--config.{field} is a section; its fields can be set: --config.{field}.NAME="
        if field not in fields.FIELDS:
            return f"--config: {fields.unknown(field)}"
        kind = fields.FIELDS[field]
        if isinstance(kind, kinds.Number) and not kind.holds(value := kind.read(text)):
            return f"--config.{fields.must_be(field, value)}"
    return None


def _guarded(main: Callable[[], None], joins: Callable[[], bool]) -> None:
    """Joins the job and calls `main`; a UserError or a signal is one line and an exit code.

    So is what the system says of a file, where nothing nearer to it has made a line of that.
    """
    try:
        numerics.pin()
        probe_outputs()
        if joins():
            cluster.join()
        main()
    except UserError as error:
        is_storage = isinstance(error, DataError) and storage_is_lost(error)
        _exit(StorageError(f"{error}; {REMOUNT}") if is_storage else error)
    except (Exception, KeyboardInterrupt) as error:
        if number := signals.ending(error):
            cluster.leave(signals.announce(number), immediately=True)
        if cluster.lost(error):
            _exit(UserError("another process of the job has ended; see what it said last"))
        if isinstance(error, OSError) and error.errno:
            _exit(_storage_error(error))
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        cluster.leave(1)


def _storage_error(error: OSError) -> StorageError:
    """Returns the line for what the system says of a file; one that is open has no name there."""
    *_, last = traceback.extract_tb(error.__traceback__)
    what = error.filename or f"a file ({Path(last.filename).name}:{last.lineno})"
    advice = f"; {REMOUNT}" if storage_is_lost(error) else ""
    return StorageError(f"cannot read or write {what}: {reason(error)}{advice}")


def _exit(error: UserError) -> NoReturn:
    screen.print_error(error)
    cluster.leave(error.exit_code, isinstance(error, Stalled), why=screen.one_line(error))
