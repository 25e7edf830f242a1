#!/usr/bin/env bash
# Sets up .venv where that is needed, then lints, checks types and runs the tests.
#   bash tests/run.sh               everything
#   bash tests/run.sh --faults      the tests that kill runs, fill disks and mutate files for minutes
#   bash tests/run.sh tests/models  arguments go to pytest; no lint, no types
set -eu
case "$#:${1:-}" in
  1:-h | 1:--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
esac
seconds=""  # of each part
part() {
  local start=$SECONDS code=0
  "${@:2}" || code=$?
  seconds="$seconds${seconds:+, }$1 $((SECONDS - start)) s"
  [ $code -eq 0 ] || { echo "$seconds: $1 failed"; exit $code; }
}

install() {
  source "$(dirname "$0")/../launch/environment.sh" \
    requirements.txt requirements-test.txt requirements-docs.txt
  # The TPU's compiler, for the tests that compile for one; without it they are skipped.
  if [ ! -e .venv/libtpu/libtpu ] && [ "$(uname -sm)" = "Linux x86_64" ]; then
    echo "installing libtpu into .venv/libtpu"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target=.venv/libtpu \
      libtpu==0.0.52 2> .venv/pip.log || { cat .venv/pip.log >&2; echo "warning: no libtpu" >&2; }
  fi
}

lint() {
  "$python" -m ruff check . && "$python" -m ruff format --check .
}

part install install
# Compiling is most of the work, and each file compiles by itself; tests/conftest.py orders them.
both=(-n 2 --dist loadfile --no-loadscope-reorder)
if [ $# -eq 0 ]; then
  part lint lint
  part types "$python" -m basedpyright --level error
  set -- "${both[@]}"
fi
[ "$1" != --faults ] || set -- -m faults "${both[@]}" "${@:2}"
part tests "$python" -m pytest "$@"
echo "$seconds"
