#!/usr/bin/env bash
# Sets up .venv where that is needed, then lints, checks types and runs the tests.
#   bash tests/run.sh               everything
#   bash tests/run.sh tests/models  arguments go to pytest; no lint, no types
set -eu
source "$(dirname "$0")/../launch/environment.sh" requirements.txt requirements-test.txt

# The TPU's compiler, for the tests that compile for one; without it they are skipped.
if [ ! -e .venv/libtpu/libtpu ] && [ "$(uname -sm)" = "Linux x86_64" ]; then
  echo "installing libtpu into .venv/libtpu"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target=.venv/libtpu \
    libtpu==0.0.52 2> .venv/pip.log || { cat .venv/pip.log >&2; echo "warning: no libtpu" >&2; }
fi

if [ $# -eq 0 ]; then
  "$python" -m ruff check .
  "$python" -m ruff format --check .
  "$python" -m basedpyright --level error
  set -- -n 2 --dist loadfile  # compiling is most of the work, and each file compiles by itself
fi
exec "$python" -m pytest "$@"
