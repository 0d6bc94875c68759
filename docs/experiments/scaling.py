"""Experiment: how far `benchmarks/speed.py --plan` is from measurements with 1 and 2 processes.

python docs/experiments/scaling.py 3   # rounds; on a CPU with 2 free cores, from the root of the repository

Each process has one core. The plan uses the rate of matrix products of one thread on this machine, the efficiency that
docs/benchmarks.md reports for this preset, and the rate at which gloo sends from one process to the other.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.config import ScalingConfig
from benchmarks.flops import peak_tflops
from benchmarks.plan import estimate
from mae_hf.config import parse
from mae_hf.config.runs import PretrainConfig
from mae_hf.training.memory import num_parameters

PRESETS = {"tiny8": 0.60, "base16": 0.75}  # efficiency
STEPS = 7


def send(rank: int, num_bytes: int, file: str) -> None:
    """Sum the gradients of two processes, and write how many GB/s each of them sent."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    gradients = torch.ones(num_bytes // 4)
    dist.all_reduce(gradients)
    dist.barrier()
    started = time.perf_counter()
    for _ in range(5):
        dist.all_reduce(gradients)
    if rank == 0:
        Path(f"{file}.rate").write_text(str(5 * num_bytes / (time.perf_counter() - started) / 1e9))
    dist.barrier()
    dist.destroy_process_group()


def link_gb_per_second(num_bytes: int) -> float:
    """The rate between two processes of this machine: a ring of two sends the gradients 2 (n - 1) / n = 1 time."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(send, (num_bytes, f"{folder}/link"), nprocs=2)
        return float(Path(f"{folder}/link.rate").read_text())


def train(preset: str, num_processes: int) -> float:
    """Return the images per second of a short run."""
    config = parse.read_file(PretrainConfig, preset)
    epochs = STEPS * config.train.batch_size / (1300 // config.train.batch_size * config.train.batch_size)
    launch = ["accelerate", "launch", "--mixed_precision", "bf16", "--multi_gpu", "--num_processes", "2"]
    command = ["taskset", "-c", "0", sys.executable] if num_processes == 1 else launch
    with tempfile.TemporaryDirectory() as folder:
        options = {"data.source": "digits", "data.test_fraction": 0.2, "output_dir": folder, "train.epochs": epochs}
        options |= {"train.warmup_ratio": 0, "train.log_every_steps": 1, "train.eval_every_epochs": 1000}
        options |= {"train.save_every_epochs": 1000, "train.probe_every_epochs": 0, "train.figure_every_epochs": 1000}
        command += ["scripts/pretrain.py", "--config", preset, *(f"--{key}={value}" for key, value in options.items())]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "bf16"}
        environment |= {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    rates = [line["train/images_per_second"] for line in lines if "train/images_per_second" in line]
    return statistics.median(rates[2:])


def main() -> None:
    """Measure in turns, and print plan and measurement side by side."""
    torch.set_num_threads(1)
    measured: dict[tuple[str, int], list[float]] = {}
    peaks, links = [], {name: [] for name in PRESETS}
    for _ in range(int(sys.argv[1])):
        peaks.append(peak_tflops(torch.bfloat16))
        for name in PRESETS:
            preset = f"configs/benchmark/{name}.yaml"
            trained, _ = num_parameters(parse.read_file(PretrainConfig, preset).model)
            links[name].append(link_gb_per_second(4 * trained))
            for num in (1, 2):
                measured.setdefault((name, num), []).append(train(preset, num))
                print(name, num, measured[name, num][-1], flush=True)
    tflops = statistics.median(peaks)
    print(f"one thread {tflops:.3f} TFLOP/s (bf16)")
    for name, efficiency in PRESETS.items():
        link = statistics.median(links[name])
        scaling = ScalingConfig(devices=2, efficiency=efficiency, link_gb_per_second=link)
        for row in estimate(parse.read_file(PretrainConfig, f"configs/benchmark/{name}.yaml"), "bf16", scaling, tflops):
            found = statistics.median(measured[name, row.num_devices])
            error = 100 * (row.images_per_second / found - 1)
            numbers = f"{row.images_per_second:.1f} | {found:.1f} | {error:+.0f} % | {link:.2f}"
            print(f"| `{name}`, {row.num_devices} | {numbers} |")


if __name__ == "__main__":
    main()
