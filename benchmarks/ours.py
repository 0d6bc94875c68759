"""mae_hf as a contender: the training loop, losses, optimizer and features of the commands, on generated images."""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import ViTModel

from benchmarks.turns import Turns
from mae_hf.config.augment import AugmentConfig, CropConfig
from mae_hf.config.model import ClassifierConfig, EncoderConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.config.train import FinetuneTrainConfig, TrainConfig
from mae_hf.data.dataset import DeviceImages, ImageSet
from mae_hf.data.random import Draws
from mae_hf.data.sampler import BatchSampler
from mae_hf.evaluation import inference
from mae_hf.models.classifier import build_classifier
from mae_hf.models.mae import build_mae, encoder_config, mae_config
from mae_hf.training import loop
from mae_hf.training.checkpoint import Checkpoints, TrainState
from mae_hf.training.hardware import attention_for, compile_layers, use_cpu_well
from mae_hf.training.losses import LossOf, finetuning_loss, pretraining_loss
from mae_hf.training.optim import build_optimizer
from mae_hf.training.run_folder import RunLog

NEVER = 1e9  # epochs

OpenImages = Callable[[], ImageSet]


def pretrain(turns: Turns, config: PretrainConfig, precision: str, open_images: OpenImages) -> None:
    """A contender: pre-training as scripts/pretrain.py does it."""
    accelerator = _set_up(precision)
    images = DeviceImages(open_images(), accelerator.device, config.data.on_device)
    model = build_mae(config.model, attention_for(accelerator))
    _train(turns, accelerator, model, config, images, lambda model: pretraining_loss(model, images, config))


def step_alone(turns: Turns, config: PretrainConfig, precision: str, open_images: OpenImages) -> None:
    """A contender: pre-training with one prepared batch for every step."""
    accelerator = _set_up(precision)
    images = DeviceImages(open_images(), accelerator.device, config.data.on_device)
    kept = _Keep()
    num_rows = config.train.plan(len(images.labels), 1).micro_batch_size
    pretraining_loss(kept, images, config)(Draws(0, 0, np.arange(num_rows), 0))
    model = build_mae(config.model, attention_for(accelerator))
    _train(turns, accelerator, model, config, images, lambda model: lambda *_: model(**kept.batch).loss)


def preparation_alone(turns: Turns, config: PretrainConfig, open_images: OpenImages) -> None:
    """A contender: images, crops, flips, normalisation and masks without a model, on one core."""
    accelerator = _set_up("no")
    torch.set_num_threads(1)
    images = DeviceImages(open_images(), accelerator.device, config.data.on_device)
    sampler = BatchSampler(config.train.plan(len(images.labels), 1), config.train.seed)
    prepare = pretraining_loss(_Keep(), images, config)
    turns.begin()
    for step in itertools.count():
        for rows in sampler.micro_batches(step):
            prepare(Draws(config.train.seed, sampler.plan.epoch(step), rows, step))
            turns.done(len(rows))


class _Keep(nn.Module):
    """Takes the place of the model and keeps its input, so that the real loss only prepares a batch."""

    def forward(self, pixel_values: Tensor, **others: Any) -> SimpleNamespace:
        self.batch = {"pixel_values": pixel_values, **others}
        return SimpleNamespace(loss=None)


def finetune(turns: Turns, config: PretrainConfig, precision: str, open_images: OpenImages) -> None:
    """A contender: fine-tuning as scripts/finetune.py does it, with the augmentation of stock only."""
    accelerator = _set_up(precision)
    labelled, task = open_images(), finetuning_config(config)
    images = DeviceImages(labelled, accelerator.device, config.data.on_device)
    names = labelled.class_names
    model = build_classifier(task.model, names, attention_for(accelerator), task.train.seed)
    _train(turns, accelerator, model, task, images, lambda model: finetuning_loss(model, images, len(names), task))


def finetuning_config(config: PretrainConfig) -> FinetuneConfig:
    """Return the fine-tuning with a pre-training run's encoder, crops and batch, and no other augmentation."""
    encoder = {field.name: getattr(config.model, field.name) for field in dataclasses.fields(EncoderConfig)}
    crops = {field.name: getattr(config.augment, field.name) for field in dataclasses.fields(CropConfig)}
    off: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(AugmentConfig) if field.name not in crops}
    return FinetuneConfig(
        data=config.data,
        model=ClassifierConfig(**encoder, init="scratch", drop_path=0.0),
        augment=AugmentConfig(**crops, **off),
        train=FinetuneTrainConfig(
            batch_size=config.train.batch_size,
            per_device_batch_size=config.train.per_device_batch_size,
            compile=config.train.compile,
        ),
        output_dir=config.output_dir,
    )


def extract_features(
    turns: Turns, config: PretrainConfig, precision: str, open_images: OpenImages, batch_size: int
) -> None:
    """A contender: the features of whole images, as scripts/evaluate.py computes them."""
    accelerator, images = _set_up(precision), open_images()
    encoder: Any = ViTModel(encoder_config(mae_config(config.model)), add_pooling_layer=False).eval()
    encoder.set_attn_implementation(attention_for(accelerator))
    encoder = accelerator.prepare(encoder)
    encoder.register_forward_hook(lambda module, arguments, output: turns.done(len(arguments[0])))
    turns.begin()
    while True:
        inference.infer(accelerator, inference.pooled_features, encoder, images, config.data, batch_size)


def _set_up(precision: str) -> Accelerator:
    accelerator = Accelerator(mixed_precision=precision)
    use_cpu_well(accelerator)
    set_seed(0)
    return accelerator


def _train(
    turns: Turns,
    accelerator: Accelerator,
    model: nn.Module,
    config: PretrainConfig | FinetuneConfig,
    images: DeviceImages,
    loss_for: Callable[[nn.Module], LossOf],
) -> None:
    """Run the training loop without evaluations and checkpoints. A step ends where the next one begins."""
    train: TrainConfig = dataclasses.replace(
        config.train, epochs=NEVER, eval_every_epochs=NEVER, save_every_epochs=NEVER, trackers=()
    )
    folder = tempfile.mkdtemp(dir=config.output_dir)
    plan = train.plan(len(images.labels), accelerator.num_processes)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, train))
    loss_of = loss_for(model)
    compile_layers(accelerator, model, train.compile)
    before = 0

    def loss_in_turn(draws: Draws) -> Tensor:
        nonlocal before
        if before:
            turns.done(before)
        before = len(draws.rows)
        return loss_of(draws)

    turns.begin()
    sampler = BatchSampler(plan, train.seed, accelerator.process_index)
    log = RunLog(accelerator, dataclasses.replace(config, output_dir=folder), 0, {})
    checkpoints = Checkpoints(accelerator, Path(folder) / "checkpoints", train.keep_checkpoints)
    training = loop.Training(accelerator, model, optimizer, train, sampler, loss_in_turn)
    loop.train(training, plan, TrainState(), log, checkpoints)
