"""Commands inside the test's own process, where nothing has to be imported again."""

import importlib
import sys

from absl import flags

import launch.entry  # noqa: F401  its flags are every command's, and stay


def launch(name, *argv):
    """What `python -m launch.NAME ARGV` does, with its errors as exceptions."""
    before = set(flags.FLAGS)
    module = importlib.import_module(f"launch.{name}")
    try:
        flags.FLAGS([name, *map(str, argv)])
        module.run()
    finally:  # commands share names of flags, so only one at a time can have them
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()
        del sys.modules[f"launch.{name}"]
