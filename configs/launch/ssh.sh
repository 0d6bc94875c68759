#!/bin/bash
# Pre-training on several machines without a scheduler: starts the same command on each of them over ssh.
#   HOSTS="node0 node1" GPUS=8 configs/launch/ssh.sh scripts/pretrain.py --config configs/pretrain/stl10_base.yaml
# Type it in the repository, which must lie at the same path on all machines, with its environment in .venv; --output_dir
# must be one folder on all of them (docs/devices.md). ssh must ask for no password. Where one machine fails, the others are
# stopped, as all are by Ctrl-C, without saving; the same command goes on from the last checkpoint. SSH names another
# program to reach a machine with.
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
  # -tt: what runs there ends when the connection does; %q: the words arrive as they are typed here
  ${SSH:-ssh -tt} "${MACHINES[$rank]}" "cd $(printf %q "$PWD") && . .venv/bin/activate && exec $(printf '%q ' "${command[@]}")" &
  started+=($!)
done
for _ in "${started[@]}"; do
  wait -n # the first that fails ends this script, and the trap the others
done
