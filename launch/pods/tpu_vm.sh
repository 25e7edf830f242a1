#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM over ssh, with gcloud.
#   bash launch/pods/tpu_vm.sh --name=TPU --zone=ZONE -- --config=CONFIG --workdir=FOLDER ...
#
# Installs the commit at hand on every worker, starts launch.train with what follows -- on all of
# them, shows what they say, each line with its host, and ends with the exit code of the run. The
# run outlives the connection: the same command finds it again. After an exit code that restarts
# (docs/pods.md) it starts again, from the last checkpoint.
#
#   --name=TPU, --zone=ZONE  of the TPU VM, which exists
#   --setup=COMMAND          runs first on every worker, such as a mount of the shared storage
#   --env=KEY=VALUE          for the run; may be repeated
#   --restarts=N             how often at most after failures (10); preemptions do not count
#   --log=FILE               what the workers say is appended to it (TPU.log)
#   --stop                   saves and ends the run, as Ctrl-C does
#   --dry_run                shows the commands and runs none
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" zone="" setup="" restarts=10 log="" stop=""
parse "name zone" "setup restarts log" "stop" "$@"
name_up_to 62
whole_from 0 restarts
log=${log:-$name.log}
source "$(dirname "${BASH_SOURCE[0]}")/workers.sh"
GCLOUD=(gcloud compute tpus tpu-vm)

on_workers() { run "${GCLOUD[@]}" ssh "$name" --zone="$zone" --worker=all --quiet --command="$1"; }

copy_to_workers() { run "${GCLOUD[@]}" scp "$1" "$name:" --zone="$zone" --worker=all --quiet; }

prepare() { install_on_workers; }

is_there() { true; } # where it is not, gcloud says so, with another exit code than that of ssh

if [ -n "$stop" ]; then
  host stop
else
  need_workdir
  train_until_done
fi
