#!/usr/bin/env bash
# The batch job that slurm.sh submits, in the root of the checkout: slurm_job.sh RESTARTS COMMAND...
#
# Runs COMMAND once a task. A task sees all GPUs of its machine, of which JAX takes that of the
# task's local number: --gpus-per-task would hide the others and make the numbers wrong. After an
# exit code that restarts the job goes back to the queue, and its next start resumes.
set -eu
# shellcheck source=SCRIPTDIR/common.sh
source launch/pods/common.sh
code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 "${@:2}" || code=$?
if among "$code" "${RESTART_CODES[@]}" && [ "${SLURM_RESTART_COUNT:-0}" -lt "$1" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
