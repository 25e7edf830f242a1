#!/usr/bin/env bash
# Sets up .venv where that is needed, then lints, checks types and runs the tests.
#   bash tests/run.sh               everything
#   bash tests/run.sh tests/models  arguments go to pytest; no lint, no types
set -eu
source "$(dirname "$0")/../launch/environment.sh" requirements.txt requirements-test.txt

if [ $# -eq 0 ]; then
  "$python" -m ruff check .
  "$python" -m ruff format --check .
  "$python" -m basedpyright --level error
  set -- -n 2 --dist loadfile  # compiling is most of the work, and each file compiles by itself
fi
exec "$python" -m pytest "$@"
