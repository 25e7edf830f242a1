"""Entry points: flags in, one call, and every user's error as one line with its exit code."""

import os
import sys
from types import TracebackType

# What tensorflow and XLA read as they are loaded, so it is set before any of them is imported.
# tensorflow only moves data here, so oneDNN would change no result; it only announces itself.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def _print_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints a traceback, but for Ctrl-C while a command still imports: that is one word."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("stopped", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _print_uncaught
