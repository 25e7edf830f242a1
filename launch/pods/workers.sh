# shellcheck shell=bash
# Sourced by tpu_vm.sh and queued.sh: a run on all workers of TPU VMs. They set name, setup, restarts
# and log before, and define on_workers COMMAND, copy_to_workers FILE, prepare and is_there.

CHECKOUT=snapvideo_jax # in the home of each worker
FOLDER=.pods/$name     # of the run, in CHECKOUT
LOST=255               # exit code of ssh, and so of gcloud, where there is no connection
POLL=30                # seconds between two looks

# Copies the commit at hand to every worker and installs it there, unless the run is under way.
install_on_workers() {
  local file=$CHECKOUT.tgz archive=${TMPDIR:-/tmp}/$CHECKOUT.tgz
  if [ -n "$setup" ]; then on_workers "$setup" || return; fi
  run git -C "$root" archive --format=tgz --output="$archive" HEAD &&
    copy_to_workers "$archive" &&
    on_workers "mkdir -p $CHECKOUT && cd $CHECKOUT || exit
      bash launch/pods/host.sh runs $FOLDER 2> /dev/null ||
      { tar -xzf ../$file && bash launch/pods/host.sh install; }"
}

# Runs an action of host.sh on every worker.
host() {
  on_workers "cd $CHECKOUT && $(quote bash launch/pods/host.sh "$1" "$FOLDER" "${@:2}")"
}

# Starts the run on every worker, or finds it there, and shows what it says until it ends, over as
# many connections as that takes. Returns its exit code, or LOST where the TPUs are no more.
train_on_workers() {
  local code
  host start env ${env[@]+"${env[@]}"} .venv/bin/python -m launch.train "${train[@]}" || return
  if [ -n "$dry_run" ]; then host follow && return; fi
  while true; do
    code=0
    host follow 2>&1 | tee -a "$log" || code=${PIPESTATUS[0]}
    if [ "$code" -ne "$LOST" ] || ! is_there; then return "$code"; fi
    echo "no connection; trying again in $POLL s" >&2
    sleep "$POLL"
  done
}

# Trains until the run ends, again after what is no fault of its own. Returns its exit code.
train_until_done() {
  local code failures=0
  while true; do
    prepare || exit # what is booked stays booked: the fault may lie at this end
    code=0
    train_on_workers || code=$?
    if [ "$code" -eq 0 ] || among "$code" "${FINAL_CODES[@]}"; then return "$code"; fi
    among "$code" 143 "$LOST" || failures=$((failures + 1)) # a preemption is not a failure
    if [ "$failures" -gt "$restarts" ]; then return "$code"; fi
    echo "exit code $code: starting again in $POLL s" >&2
    sleep "$POLL"
  done
}
