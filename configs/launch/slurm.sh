#!/bin/bash
# Pre-training on the GPUs of several machines of a Slurm cluster: one launcher for each machine, one process for each GPU.
#   sbatch --nodes 2 --gpus-per-node 8 configs/launch/slurm.sh scripts/pretrain.py --config configs/pretrain/stl10_base.yaml
# Submit it in the repository and its environment (. .venv/bin/activate), which must be on a file system that all machines
# share, as must --output_dir (docs/devices.md). 90 s before its time is up it is told to save and end. Submitted again, the
# same command goes on from the last checkpoint. Not yet run on a cluster.
#SBATCH --job-name mae_hf
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-task 16
#SBATCH --time 24:00:00
#SBATCH --output slurm-%j.log
#SBATCH --signal TERM@90
set -euo pipefail

NODES=${SLURM_NNODES:?is set by sbatch: submit this file, do not run it}
GPUS=${SLURM_GPUS_ON_NODE:?is set by sbatch: ask for GPUs with --gpus-per-node}
mapfile -t MACHINES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${MACHINES[0]}
# another port for every job, since two may share a machine
PORT=$((29500 + SLURM_JOB_ID % 1000))

# SLURM_NODEID must be that of each machine, so it is left to the shell that srun starts there
export NODES GPUS HEAD PORT
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun has not taken it from sbatch since Slurm 22.05
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --multi_gpu --mixed_precision bf16 \
  --num_machines "$NODES" --num_processes "$((NODES * GPUS))" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$HEAD" --main_process_port "$PORT" "$@"' launch "$@"
