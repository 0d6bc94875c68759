#!/bin/bash
# Pre-train on several machines of a Slurm cluster: one launcher per machine, one process per GPU.
#   sbatch --nodes 2 --gpus-per-node 8 configs/launch/slurm.sh scripts/pretrain.py --config configs/pretrain/stl10_base.yaml
# Submit it in the repository, with its environment activated (. .venv/bin/activate). All machines must share the repository,
# the environment and --output_dir (docs/devices.md). Slurm signals the run 90 s before its time limit, and the run saves
# and ends. To resume, submit the same command again. Not yet run on a cluster.
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
# a different port for every job, because two jobs may share a machine
PORT=$((29500 + SLURM_JOB_ID % 1000))

# the shell that srun starts on each machine expands SLURM_NODEID, which differs between machines
export NODES GPUS HEAD PORT
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # since Slurm 22.05, srun does not inherit it from sbatch
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --multi_gpu --mixed_precision bf16 \
  --num_machines "$NODES" --num_processes "$((NODES * GPUS))" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$HEAD" --main_process_port "$PORT" "$@"' launch "$@"
