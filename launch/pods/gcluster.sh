#!/usr/bin/env bash
# Trains on a GKE cluster through Cluster Toolkit, which makes a JobSet that Kueue admits.
#   bash launch/pods/gcluster.sh --name=NAME --image=IMAGE --compute_type=ct5lp-hightpu-4t \
#     --topology=4x4 --mount=filestore://INSTANCE/SHARE:/mnt/shared:rw \
#     -- --config=CONFIG --workdir=/mnt/shared/FOLDER ...
#
# Submits the job and returns. Project, cluster and location are those of `gcluster job config`.
#
#   --name=NAME          of the job; up to 28 characters
#   --image=IMAGE        built from launch/pods/Dockerfile and pushed
#   --compute_type=TYPE  machine type of the nodes
#   --topology=SHAPE     of a slice
#   --slices=N           how many of them, joined by the data center's network (1)
#   --mount=SRC:DEST:rw  the shared storage of data and workdir
#   --restarts=N         how often it starts again, preemptions included (100)
#   --env=KEY=VALUE      for the run; may be repeated
#   --dry_run            shows the command and does not run it
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" image="" compute_type="" topology="" slices=1 mount="" restarts=100
parse "name image compute_type topology" "slices mount restarts" "" "$@"
name_up_to 28
whole_from 0 restarts
whole_from 1 slices
need_workdir

# The job runs it by bash -c.
command=$(quote exec env ${env[@]+"${env[@]}"} python -m launch.train "${train[@]}")
run gcluster job submit --name="$name" --image="$image" --compute-type="$compute_type" \
  --topology="$topology" --num-slices="$slices" ${mount:+--mount="$mount"} \
  --restarts="$restarts" --restart-on-exit-codes="$(join , "${RESTART_CODES[@]}")" \
  --grace-period=300s --command="$(kubernetes "$command")"
