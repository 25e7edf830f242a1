#!/usr/bin/env bash
# Trains as a managed job of SkyPilot, which finds TPUs or GPUs, and others when it loses them.
#   bash launch/pods/skypilot.sh --name=NAME --accelerators=tpu-v6e-16 \
#     -- --config=CONFIG --workdir=FOLDER ...
#
# Submits the job, with the files of this checkout, and returns.
#
#   --name=NAME          of the job
#   --accelerators=WHAT  of a node, as SkyPilot has them: tpu-v5litepod-16 (a slice), H100:8
#   --nodes=N            how many nodes with GPUs (1)
#   --spot               machines that may be preempted, at a lower price
#   --infra=WHERE        a cloud, region or zone, such as gcp/us-east5
#   --setup=COMMAND      runs first on every node, such as a mount of the shared storage
#   --env=KEY=VALUE      for the run; may be repeated
#   --dry_run            shows the task and the command, and submits nothing
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" accelerators="" nodes=1 spot="" infra="" setup=""
parse "name accelerators" "nodes infra setup" "spot" "$@"
name_up_to 40
whole_from 1 nodes
need_workdir

install="source launch/environment.sh requirements.txt && .venv/bin/pip install 'jax[cuda13]'"
# shellcheck disable=SC2016  # the shell of the node replaces these
join_job=' --coordinator="$(head -n1 <<< "$SKYPILOT_NODE_IPS"):8476" \
  --num_processes="$SKYPILOT_NUM_NODES" --process_id="$SKYPILOT_NODE_RANK"'
if [[ $accelerators == tpu-* ]]; then # JAX finds the hosts of a slice by itself
  install="bash launch/pods/host.sh install"
  join_job=""
fi

# Codes: SkyPilot ends the other hosts itself when one ends, and counts them as 137 then, so that
# 137 says nothing. A machine that is lost it replaces whatever the code.
task() {
  cat << YAML
name: $name
workdir: $(json "$root")
num_nodes: $nodes
resources:
  accelerators: $(json "$accelerators")
  use_spot: $([ -n "$spot" ] && echo true || echo false)
  job_recovery: {max_restarts_on_errors: 0, recover_on_exit_codes: [134, 143]}
setup: $(json "${setup:+$setup && }$install")
run: $(json "exec env $(quote ${env[@]+"${env[@]}"}) .venv/bin/python -m launch.train \
$(quote "${train[@]}")$join_job")
YAML
}

submit() { run sky jobs launch "$1" --detach-run --yes ${infra:+--infra="$infra"}; }

if [ -n "$dry_run" ]; then
  task
  submit task.yaml
else
  folder=$(mktemp -d)
  trap 'rm -r "$folder"' EXIT
  task > "$folder/task.yaml"
  submit "$folder/task.yaml"
fi
