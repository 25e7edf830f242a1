#!/usr/bin/env bash
# Keeps a run going on this host when the ssh connection that started it ends. FOLDER is the run's.
#   bash launch/pods/host.sh install                  makes .venv, with JAX for TPUs
#   bash launch/pods/host.sh start FOLDER COMMAND...  starts COMMAND, unless it runs already
#   bash launch/pods/host.sh runs FOLDER              whether it runs, as exit code
#   bash launch/pods/host.sh follow FOLDER            shows its output; ends with its exit code
#   bash launch/pods/host.sh stop FOLDER              ends it as Ctrl-C does: it saves first
set -eu
action=${1:-} folder=${2:-}

runs() { [ -s "$folder/watcher" ] && kill -0 "$(cat "$folder/watcher")" 2> /dev/null; }

start() {
  if runs; then return; fi
  mkdir -p "$folder"
  rm -f "$folder/watcher" "$folder/code"
  setsid --fork bash "$0" watch "$folder" "$@" > "$folder/log" 2>&1 < /dev/null
  until [ -s "$folder/watcher" ]; do sleep 0.1; done
}

# Waits for the command, in a session of its own, and writes its exit code down.
watch() {
  local code=0
  echo $$ > "$folder/watcher"
  bash -c 'echo $$ > "$0/process"; exec "$@"' "$folder" "$@" || code=$?
  echo "$code" > "$folder/code"
}

follow() {
  tail --lines=+1 --follow --sleep-interval=0.2 --pid="$(cat "$folder/watcher")" "$folder/log" |
    sed --unbuffered "s/^/[$(hostname)] /"
  exit "$(cat "$folder/code" 2> /dev/null || echo 137)"
}

case $action in
  -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;;
  install) source "$(dirname "$0")/../environment.sh" launch/pods/requirements-tpu.txt ;;
  start | watch) "$action" "${@:3}" ;;
  runs | follow) "$action" ;;
  stop) if runs; then kill -INT "$(cat "$folder/process")"; fi ;;
  *) echo "error: host.sh has no action '$action' (see --help)" >&2 && exit 2 ;;
esac
