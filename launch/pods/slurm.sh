#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster: one process a GPU.
#   bash launch/pods/slurm.sh --name=NAME --nodes=4 --gpus=8 -- --config=CONFIG --workdir=FOLDER ...
#
# Submits the job and returns. Partition, account and time limit are sbatch's own variables, such as
# SBATCH_PARTITION and SBATCH_TIMELIMIT. Five minutes before the limit the run gets SIGTERM and saves;
# then, and after a preemption, the job is queued again (slurm_job.sh).
#
#   --name=NAME      of the job; its output is appended to NAME.log
#   --nodes=N        how many machines (1)
#   --gpus=N         of each of them (8)
#   --cpus=N         cores of each process (8)
#   --restarts=N     how often the job starts again at most (100)
#   --env=KEY=VALUE  for the run; may be repeated
#   --dry_run        shows the command and does not run it
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" nodes=1 gpus=8 cpus=8 restarts=100
parse "name" "nodes gpus cpus restarts" "" "$@"
name_up_to 60
whole_from 0 restarts
whole_from 1 nodes gpus cpus
need_workdir

run sbatch --job-name="$name" --output="$name.log" --open-mode=append --chdir="$root" \
  --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --cpus-per-task="$cpus" \
  --signal=TERM@300 --requeue "$root/launch/pods/slurm_job.sh" "$restarts" \
  env ${env[@]+"${env[@]}"} .venv/bin/python -m launch.train "${train[@]}"
