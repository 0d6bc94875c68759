#!/bin/bash
# Pre-train on several machines without a scheduler: start the same command on each of them over ssh.
#   HOSTS="node0 node1" GPUS=8 configs/launch/ssh.sh scripts/pretrain.py --config configs/pretrain/stl10_base.yaml
# Type it in the repository. The repository must have the same path on all machines, with its environment in .venv. All
# machines must share --output_dir (docs/devices.md), and ssh must not ask for a password. If one machine fails, this
# script stops the others without saving. Ctrl-C stops all machines without saving. The same command resumes from the last
# checkpoint. The variable SSH replaces ssh with a different program.
set -euo pipefail

read -ra MACHINES <<<"${HOSTS:?names the machines: HOSTS=\"node0 node1\"}"
: "${GPUS:?is the number of GPUs of each machine: GPUS=8}"
PORT=${PORT:-29500}

started=()
trap 'kill "${started[@]}" 2>/dev/null || true' EXIT
for rank in "${!MACHINES[@]}"; do
  command=(accelerate launch --multi_gpu --mixed_precision bf16
    --num_machines "${#MACHINES[@]}" --num_processes "$((${#MACHINES[@]} * GPUS))" --machine_rank "$rank"
    --main_process_ip "${MACHINES[0]}" --main_process_port "$PORT" "$@")
  # -tt: the remote command ends with the connection; %q: quotes the words for the remote shell
  ${SSH:-ssh -tt} "${MACHINES[$rank]}" "cd $(printf %q "$PWD") && . .venv/bin/activate && exec $(printf '%q ' "${command[@]}")" &
  started+=($!)
done
for _ in "${started[@]}"; do
  wait -n # the first failure ends this script, and the trap stops the others
done
