"""How fast pre-training is here: its batches alone, its training step alone, and one after the other.

The images are drawn, so that nothing needs to be there; how fast they are prepared does not depend on what they show.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mae_hf.config import DataConfig, PretrainConfig
from mae_hf.data.augment import augment, normalize
from mae_hf.data.draws import uniform
from mae_hf.data.images import ImageSet
from mae_hf.data.sampler import BatchSampler
from mae_hf.data.sources import Split
from mae_hf.data.store import open_store
from mae_hf.machine import attention_for
from mae_hf.models.mae import build_mae
from mae_hf.optim import build_optimizer, set_learning_rate

LEAST_SECONDS = 0.5  # a measurement repeats its work at least this long
NUM_BATCHES = 4  # distinct batches in the store

Batch = list[tuple[Tensor, Tensor]]  # of one optimizer step: pixel_values and noise of each micro-batch
Work = Callable[[], object]


def draw_images(num: int, image_size: int, cache_dir: Path) -> ImageSet:
    """A set of `num` random images in a store of its own, memory-mapped from `cache_dir` like any other."""
    images = np.random.default_rng(0).integers(0, 256, (num, image_size, image_size, 3), np.uint8)
    split = Split("drawn", "unlabeled", images, labels=None, class_names=None, fingerprint="drawn")
    return ImageSet([(open_store(split, image_size, DataConfig(cache_dir=str(cache_dir))), np.arange(num))])


def pretraining_work(accelerator: Accelerator, config: PretrainConfig, cache_dir: Path) -> dict[str, Work]:
    """The work of one optimizer step: `preparation`, `training_step` and `end_to_end`, each to be called repeatedly.

    Preparation reads from the store, augments, normalises and draws masks, batch after batch. The training step takes
    the same prepared batch each time: forward, backward, clipping, AdamW.

    Args:
        accelerator: of one process.
        config: the pre-training run that is measured.
        cache_dir: folder for the drawn images.
    """
    train, model_config, device = config.train, config.model, accelerator.device
    images = draw_images(NUM_BATCHES * train.batch_size, model_config.image_size, cache_dir)
    plan = train.plan(len(images), accelerator.num_processes)
    sampler = BatchSampler(len(images), train.batch_size, train.seed, accumulation_steps=plan.accumulation_steps)
    model = build_mae(model_config, attention_for(accelerator)).train()
    optimizer = build_optimizer(model, train)
    set_learning_rate(optimizer, train.learning_rate)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    steps = itertools.count()

    def prepare() -> Batch:
        step = next(steps)
        batch = []
        for rows in sampler.micro_batches(step):
            epoch = sampler.epoch(step)
            pixels = augment(images.batch(rows).to(device), rows, config.augment, train.seed, epoch)
            noise = torch.from_numpy(uniform(train.seed, epoch, rows, model_config.num_patches, "mask")).to(device)
            batch.append((normalize(pixels, config.data.image_mean, config.data.image_std), noise))
        return batch

    def train_on(batch: Batch) -> float:
        total = torch.zeros((), device=device)
        for pixel_values, noise in batch:
            loss = prepared(pixel_values, noise=noise).loss / len(batch)
            accelerator.backward(loss)
            total += loss.detach()
        accelerator.clip_grad_norm_(prepared.parameters(), train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return total.item()  # read in every step, as the real loop does to stop where it is not finite

    batch = prepare()
    return {
        "preparation": prepare,
        "training_step": lambda: train_on(batch),
        "end_to_end": lambda: train_on(prepare()),
    }


def measure(works: Mapping[str, Work], num_images: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Images per second of each kind of work, one value a round.

    The kinds take turns in every round, so that a slow moment of the machine does not fall on one of them alone. Two
    calls of each, before the first round, are not counted: they warm up, and tell how many calls last long enough.

    Args:
        works: what to call, by name.
        num_images: images that a call works on.
        rounds: measurements of each.
        device: where the work runs.
    """
    calls = {}
    for name, work in works.items():
        _seconds(work, 1, device)
        calls[name] = math.ceil(LEAST_SECONDS / _seconds(work, 1, device))
    values: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            values[name].append(num_images * calls[name] / _seconds(work, calls[name], device))
    return values


def _seconds(work: Work, calls: int, device: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - started
