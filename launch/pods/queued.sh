#!/usr/bin/env bash
# Books TPU VMs through Cloud TPU's queued resources, trains on them, and gives them back.
#   bash launch/pods/queued.sh --name=NAME --zone=ZONE --accelerator=v5litepod-16 \
#     -- --config=CONFIG --workdir=FOLDER ...
#
# Creates the queued resource NAME unless there is one, waits until it is active, and trains as
# tpu_vm.sh does, on all slices. Where the TPUs are preempted it deletes the resource, books another
# and goes on from the last checkpoint. It deletes the resource when the run has ended.
#
#   --name=NAME, --zone=ZONE  of the queued resource, and of the TPU VMs in it
#   --accelerator=TYPE        of a slice, such as v5litepod-16, v5p-128 or v6e-64
#   --slices=N                how many of them, joined by the data center's network (1)
#   --spot                    TPUs that may be preempted, at a lower price
#   --runtime=VERSION         the image of the TPU VMs (by the accelerator)
#   --keep                    does not delete the resource
#   --stop                    saves and ends the run, as Ctrl-C does
#   --setup=COMMAND, --env=KEY=VALUE, --restarts=N, --log=FILE, --dry_run   as in tpu_vm.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" zone="" accelerator="" slices=1 spot="" runtime="" keep="" stop=""
setup="" restarts=10 log=""
parse "name zone accelerator" "slices runtime setup restarts log" "spot keep stop" "$@"
name_up_to 59 # a node's name has the number of its slice behind it
whole_from 0 restarts
whole_from 1 slices
log=${log:-$name.log}
source "$(dirname "${BASH_SOURCE[0]}")/workers.sh"
GCLOUD=(gcloud compute tpus queued-resources)
GONE=(SUSPENDING SUSPENDED DELETING FAILED)

on_workers() {
  run "${GCLOUD[@]}" ssh "$name" --zone="$zone" --node=all --worker=all --quiet --command="$1"
}

copy_to_workers() {
  run "${GCLOUD[@]}" scp "$1" "$name:" --zone="$zone" --node=all --worker=all --quiet
}

# Prints the state of the resource; NONE where there is none, or nothing can be heard of it.
state() {
  "${GCLOUD[@]}" describe "$name" --zone="$zone" --format="value(state.state)" 2> /dev/null ||
    echo NONE
}

is_there() { ! among "$(state)" "${GONE[@]}"; }

default_runtime() {
  case $accelerator in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  local nodes=(--node-id="$name")
  if [ "$slices" -gt 1 ]; then nodes=(--node-count="$slices" --node-prefix="$name"); fi
  run "${GCLOUD[@]}" create "$name" --zone="$zone" --accelerator-type="$accelerator" \
    --runtime-version="${runtime:-$(default_runtime)}" "${nodes[@]}" ${spot:+--spot}
}

release() { run "${GCLOUD[@]}" delete "$name" --zone="$zone" --force --quiet; }

wait_until_active() {
  local now
  if [ -n "$dry_run" ]; then
    echo "# until it says ACTIVE, every $POLL s:"
    run "${GCLOUD[@]}" describe "$name" --zone="$zone" --format="value(state.state)"
    return
  fi
  until now=$(state) && [ "$now" = ACTIVE ]; do
    if among "$now" FAILED SUSPENDED; then
      echo "error: $name is $now; see ${GCLOUD[*]} describe $name --zone=$zone" >&2
      return 1
    fi
    echo "$name: $now" >&2
    sleep "$POLL"
  done
}

# Books the TPUs, where there are none or they were preempted, and installs the code on them.
prepare() {
  local now=NONE
  if [ -z "$dry_run" ]; then now=$(state); fi
  if among "$now" "${GONE[@]}"; then release || return; fi
  if among "$now" NONE "${GONE[@]}"; then create || return; fi
  wait_until_active && install_on_workers
}

if [ -n "$stop" ]; then
  host stop
  exit
fi
need_workdir
code=0
train_until_done || code=$?
if [ -z "$keep" ]; then release; fi
exit "$code"
