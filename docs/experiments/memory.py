"""Experiment: how far the memory estimate of a run is from the memory that it takes.

python docs/experiments/memory.py bf16 no   # precisions; on Linux, from the root of the repository, takes minutes

Each run is a process of its own: two steps of pre-training, or of fine-tuning from scratch, on digits at 96 px, with
an evaluation and a checkpoint. Measured is the peak of its anonymous memory (what the kernel cannot drop), minus what
the process held when it made the estimate: Python and the libraries.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

VIT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
SMALL_DECODER = {"decoder_hidden_size": 128, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 512}
# name: stage, batch size, micro-batch, shape
RUNS: dict[str, tuple[str, int, int, dict[str, int]]] = {
    "192 x 6, patch 12, batch 128": (
        "pretrain", 128, 128,
        TINY | SMALL_DECODER | {"num_hidden_layers": 6, "patch_size": 12, "decoder_num_hidden_layers": 2},
    ),
    "192 x 12, patch 8, batch 128": ("pretrain", 128, 128, TINY | SMALL_DECODER | {"num_hidden_layers": 12}),
    "192 x 12, patch 8, 4 x 32": ("pretrain", 128, 32, TINY | SMALL_DECODER | {"num_hidden_layers": 12}),
    "ViT-Base, patch 16, batch 64": ("pretrain", 64, 64, VIT_BASE | {"patch_size": 16}),
    "ViT-Base, patch 8, 2 x 8": ("pretrain", 16, 8, VIT_BASE),
    "ViT-Base, patch 8, 2 x 16": ("pretrain", 32, 16, VIT_BASE),
    "ViT-Base, patch 8, 2 x 32": ("pretrain", 64, 32, VIT_BASE),
    "192 x 6, patch 12, batch 128, finetune": ("finetune", 128, 128, TINY | {"num_hidden_layers": 6, "patch_size": 12}),
    "192 x 12, patch 8, batch 64, finetune": ("finetune", 64, 64, TINY | {"num_hidden_layers": 12}),
    "ViT-Base, patch 8, 2 x 8, finetune": ("finetune", 16, 8, VIT_BASE),
}  # fmt: skip


def anonymous() -> int:
    """Bytes of this process that are in memory and belong to no file."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, precision: str) -> None:
    """Make a short run in this process, and print its estimate and its peak."""
    os.environ |= {"ACCELERATE_MIXED_PRECISION": precision, "ACCELERATE_USE_CPU": "true"}
    import torch

    from mae_hf.commands import finetune, open_run, pretrain
    from mae_hf.config.parse import read_command
    from mae_hf.config.runs import FinetuneConfig, PretrainConfig
    from mae_hf.training.memory import run_bytes

    stage, batch_size, micro_batch, shape = RUNS[name]
    samples: list[int] = []
    held: list[int] = []

    def opened(config):
        run = open_run.open_run(config)
        held.append(anonymous())
        return run

    def watch() -> None:
        while True:
            samples.append(anonymous())
            time.sleep(0.005)

    recipe = {"pretrain": pretrain, "finetune": finetune}[stage]
    recipe.open_run = opened
    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        options = {"data.source": "digits", "data.test_fraction": 0.2, "output_dir": folder, "model.image_size": 96}
        options |= {f"model.{key}": value for key, value in shape.items()}
        options |= {"train.batch_size": batch_size, "train.per_device_batch_size": micro_batch, "train.warmup_ratio": 0}
        options |= {"model.init": "scratch"} if stage == "finetune" else {}
        config_class, num_images = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}[stage], 1293
        options |= {"train.epochs": 2 / (num_images // batch_size), "train.eval_every_epochs": 1000}
        config = read_command(config_class, [f"--{key}={value}" for key, value in options.items()], "memory")
        getattr(recipe, stage)(config)
    plan = config.train.plan(num_images, 1)
    estimate = run_bytes(
        config, plan, SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision, distributed_type="NO")
    )
    print(json.dumps([estimate, max(samples) - held[0]]))


def main() -> None:
    """Measure every run, and print a table."""
    if sys.argv[1] == "--one":
        return measure(*sys.argv[2:])
    print("| run | precision | estimate | measured | error |\n|---|---|---|---|---|")
    for precision in sys.argv[1:]:
        for name in RUNS:
            command = [sys.executable, __file__, "--one", name, precision]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(name, done.stderr[-2000:])
                continue
            estimate, measured = json.loads(done.stdout.splitlines()[-1])
            sizes = f"{estimate / 2**20:,.0f} MiB | {measured / 2**20:,.0f} MiB"
            print(f"| {name} | {precision} | {sizes} | {100 * (estimate / measured - 1):+.0f} % |", flush=True)


if __name__ == "__main__":
    main()
