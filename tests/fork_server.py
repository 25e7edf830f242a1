"""Runs commands in forks of one process that has imported the libraries: two seconds less for each.

A fork is a process of its own: its flags, its exit code and what it says are as in a shell. It is
forked before JAX has a backend, and so before there are threads.
"""

import atexit
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Modules in which no deprecated use may be, as in pytest.ini; a command's own is __main__.
CURRENT = r"(__main__|snapvideo_jax|launch|configs|tests|jax|jaxlib|flax|optax|orbax)(\.|$)"


class ForkServer:
    """Launches commands, one at a time; a context to be closed.

    environment: of all of them. modules: what they need beside what all import.
    """

    def __init__(self, environment: Mapping[str, str], *modules: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", *modules],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def launch(self, name: str | Path, *flags: object) -> subprocess.CompletedProcess:
        """Does what `python -m launch.NAME FLAGS` does, or `python FILE.py FLAGS`."""
        self.start(name, *flags)
        return self.wait()

    def start(self, name: str | Path, *flags: object) -> int:
        """Begins with what `launch` does; returns the id of its process."""
        module = name if str(name).endswith(".py") else f"launch.{name}"
        self._command = [*map(str, (module, *flags))]
        print(json.dumps(self._command), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def wait(self) -> subprocess.CompletedProcess:
        """Waits for the end of what was started."""
        code, stdout, stderr = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(self._command, code, stdout, stderr)


def serve() -> None:
    """Answers each line of stdin, a command, with its process, then exit code, stdout, stderr."""
    warnings.filterwarnings("error", category=DeprecationWarning, module=CURRENT)
    import snapvideo_jax.benchmark.measure
    import snapvideo_jax.export.export_folder
    import snapvideo_jax.train  # noqa: F401  what commands import, but the commands themselves

    for name in sys.argv[1:]:
        importlib.import_module(name)

    for line in sys.stdin:
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            if not (pid := os.fork()):
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                os._exit(run(json.loads(line)))
            print(pid, flush=True)
            _, status = os.waitpid(pid, 0)
            said = []
            for file in (stdout, stderr):
                file.seek(0)
                said.append(file.read().decode())
        print(json.dumps([os.waitstatus_to_exitcode(status), *said]), flush=True)


def run(command: list[str]) -> int:
    """Runs a module of launch/, or a file, as Python does; returns the exit code."""
    sys.argv = command
    try:
        if command[0].endswith(".py"):
            runpy.run_path(command[0], run_name="__main__")
        else:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve()
