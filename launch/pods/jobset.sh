#!/usr/bin/env bash
# Trains on a GKE cluster by a plain JobSet: one child Job a slice, one pod a host.
#   bash launch/pods/jobset.sh --name=NAME --image=IMAGE --tpu=v5e:4x4 --claim=CLAIM \
#     -- --config=CONFIG --workdir=/mnt/shared/FOLDER ...
#
# Creates the JobSet and returns. It needs the JobSet controller 0.10 or newer. GKE tells the pods of
# each other and, with several slices, of the coordinator between them (MEGASCALE_*).
#
#   --name=NAME      of the JobSet; up to 40 characters
#   --image=IMAGE    built from launch/pods/Dockerfile and pushed
#   --tpu=SLICE      v4, v5e, v5p or v6e with its shape, as launch.plan takes it
#   --claim=CLAIM    the PersistentVolumeClaim of data and workdir, which all pods mount
#   --mount=FOLDER   where they mount it (/mnt/shared)
#   --slices=N       how many slices, joined by the data center's network (1)
#   --spot           on nodes that may be preempted
#   --queue=QUEUE    Kueue's LocalQueue, where the cluster has one
#   --restarts=N     how often it starts again after failures (10); preemptions do not count
#   --env=KEY=VALUE  for the run; may be repeated
#   --dry_run        shows the JobSet and does not create it
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" image="" tpu="" claim="" mount=/mnt/shared slices=1 spot="" queue="" restarts=10
parse "name image tpu claim" "mount slices queue restarts" "spot" "$@"
name_up_to 40
whole_from 0 restarts
whole_from 1 slices
need_workdir

case $tpu in
  v4:*) accelerator="tpu-v4-podslice" ;;
  v5e:*) accelerator="tpu-v5-lite-podslice" ;;
  v5p:*) accelerator="tpu-v5p-slice" ;;
  v6e:*) accelerator="tpu-v6e-slice" ;;
esac
topology=${tpu#*:}
[[ -n ${accelerator:-} && $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
  fail "--tpu=$tpu must be v4, v5e, v5p or v6e with a shape, such as v5e:4x4 or v5p:4x4x4"
chips=$((${topology//x/*}))
hosts=$((chips < 4 ? 1 : chips / 4)) # a host has four chips, or all of a smaller slice

# Prints a list of strings for YAML, each as Kubernetes reads it back.
strings() {
  local word list=()
  for word; do list+=("$(kubernetes "$(json "$word")")"); done
  join , ${list[@]+"${list[@]}"}
}

variables() {
  local pair
  for pair in ${env[@]+"${env[@]}"}; do
    echo "                - {name: ${pair%%=*}, value: $(strings "${pair#*=}")}"
  done
}

manifest() {
  cat << YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  labels: {${queue:+kueue.x-k8s.io/queue-name: $(json "$queue")}}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:  # the first that fits; where none does, a restart that counts
    - name: preempted
      action: RestartJobSetAndIgnoreMaxRestarts
      onJobFailureReasons: [PodFailurePolicy]
      onJobFailureMessagePatterns: ["exit code 143 ", "condition DisruptionTarget "]
    - name: final
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onPodConditions: [{type: DisruptionTarget, status: "True"}]
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [143]}
          - action: FailJob
            onExitCodes:
              {containerName: train, operator: In, values: [$(join , "${FINAL_CODES[@]}")]}
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology
${spot:+              cloud.google.com/gke-spot: \"true\"
}            containers:
            - name: train
              image: $(json "$image")
              command: [python, -m, launch.train]
              args: [$(strings "${train[@]}")]
              env:
                - {name: PYTHONUNBUFFERED, value: "1"}
$(variables)
              resources: {limits: {google.com/tpu: $((chips < 4 ? chips : 4))}}
              securityContext: {privileged: true, runAsUser: 0}  # the chips' devices are root's
              volumeMounts: [{name: shared, mountPath: $(json "$mount")}]
            volumes:
            - {name: shared, persistentVolumeClaim: {claimName: $(json "$claim")}}
YAML
}

if [ -n "$dry_run" ]; then
  manifest
else
  manifest | kubectl create -f -
fi
