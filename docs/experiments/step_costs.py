"""Experiment: the CPU seconds of a training step of some variants of a preset, which take turns in one process.

OMP_NUM_THREADS=1 taskset -c 0 python docs/experiments/step_costs.py PRESET.yaml ROUNDS VARIANT...

PRESET is of pre-training. A VARIANT is `STAGE PRECISION [FLAG...]`, such as "pretrain bf16 --model.patch_size=8". The
stage `finetune` trains a classifier with the encoder of the variant. CPU seconds hardly grow on a busy machine.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from mae_hf.config import parse
from mae_hf.config.model import ClassifierConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.models.classifier import build_classifier
from mae_hf.models.io import SHAPE_KEYS
from mae_hf.models.layers import CPU_ATTENTION
from mae_hf.models.mae import build_mae
from mae_hf.training.hardware import use_cpu_well


def step_of(config: PretrainConfig, stage: str, precision: str) -> Callable[[], float]:
    """Return a function that makes a training step on a batch of noise, and returns its CPU seconds."""
    attention = CPU_ATTENTION if precision == "bf16" else "sdpa"
    size, batch = config.model.image_size, config.train.batch_size
    shape = {key: getattr(config.model, key) for key in SHAPE_KEYS}
    classifier = ClassifierConfig(**shape, init="scratch", drop_path=0.0)
    names = tuple(map(str, range(10)))
    pretrained = stage == "pretrain"
    model: nn.Module = (
        build_mae(config.model, attention) if pretrained else build_classifier(classifier, names, attention, 0)
    )
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], fused=True)
    pixel_values, labels = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
    model.train()

    def step() -> float:
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if pretrained:
                loss = model(pixel_values, loss_only=True).loss
            else:
                loss = nn.functional.cross_entropy(model(pixel_values).logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - started

    return step


def main() -> None:
    """Print the median CPU seconds of each variant, without the first round, and its images per CPU second."""
    preset, rounds, *variants = sys.argv[1:]
    use_cpu_well(Accelerator(cpu=True))
    steps, sizes = {}, {}
    for variant in variants:
        stage, precision, *flags = variant.split()
        config = parse.read_command(PretrainConfig, ["--config", preset, *flags], prog="step_costs")
        steps[variant], sizes[variant] = step_of(config, stage, precision), config.train.batch_size
    seconds = [[step() for step in steps.values()] for _ in range(int(rounds) + 1)][1:]
    for variant, column in zip(variants, zip(*seconds, strict=True), strict=True):
        median = statistics.median(column)
        print(f"{median:8.3f} s {sizes[variant] / median:8.1f} images/s  {variant}")


if __name__ == "__main__":
    main()
