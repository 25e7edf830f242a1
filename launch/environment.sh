# shellcheck shell=bash
# Sourced by demo.sh and tests/run.sh: makes the virtual environment .venv at the root of the
# checkout, installs the requirement files given as arguments, and leaves $python and the root as
# the working folder. A file that is already installed is not installed again.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=.venv/bin/python

find_python() {
  for candidate in python3.11 python3.12 python3.13 python3; do
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
      2>/dev/null && { echo "$candidate"; return; }
  done
  echo "error: no Python 3.11, 3.12 or 3.13 found; install one of them" >&2
  return 2
}

if ! "$python" -c '' 2>/dev/null; then
  base=$(find_python) || exit 2
  echo "making the virtual environment .venv with $base"
  "$base" -m venv --clear .venv || { echo "error: could not make .venv" >&2; exit 2; }
fi

for file in "$@"; do
  stamp=.venv/installed-$(cksum < "$file" | tr -s ' ' '-')
  if [ ! -e "$stamp" ]; then
    echo "installing $file into .venv (the first time takes one to three minutes)"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$file" 2> .venv/pip.log ||
      { cat .venv/pip.log >&2; echo "error: could not install $file" >&2; exit 2; }
    touch "$stamp"
  fi
done
