"""Stock transformers as a contender: the real `Trainer`, configured as in transformers' `run_mae`.

Loader processes decode, crop, flip and normalise PNG images one by one. torchvision is not needed: its transforms of
Pillow images use Pillow and a few lines of numpy and torch, which are written out here.

Shapes: B images of a batch, S side of the image.
"""

import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTModel,
)

from benchmarks import drawn
from benchmarks.turns import Turns
from mae_hf.config.data import DataConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.models.mae import encoder_config, mae_config

NUM_WORKERS = 2
FEATURES_BATCH = 64

Transform = Callable[[Image.Image], Tensor]


def pretrain(turns: Turns, config: PretrainConfig, folder: Path, bf16: bool) -> None:
    """A contender: pre-training as `run_mae` does it."""
    model = ViTMAEForPreTraining(mae_config(config.model))
    _train(turns, model, collate, config, folder, bf16)


def finetune(turns: Turns, config: PretrainConfig, folder: Path) -> None:
    """A contender: fine-tuning as `run_image_classification` does it, with the crops of pre-training."""
    names = dict(enumerate(drawn.CLASS_NAMES))
    model = ViTForImageClassification(encoder_config(mae_config(config.model), id2label=names))
    _train(turns, model, collate_labelled, config, folder, bf16=False)


@torch.no_grad()
def extract_features(turns: Turns, config: PretrainConfig, folder: Path) -> None:
    """A contender: the features of whole images by `ViTModel`, with a `DataLoader`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = ViTModel(encoder_config(mae_config(config.model)), add_pooling_layer=False)
    model.to(device).eval()
    images = with_transform(folder, partial(whole, config=config))
    loader: Any = DataLoader(
        images,
        FEATURES_BATCH,
        num_workers=NUM_WORKERS,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    turns.begin()
    while True:
        for batch in loader:
            model(batch["pixel_values"].to(device, non_blocking=True)).last_hidden_state[:, 0].cpu()
            turns.done(len(batch["pixel_values"]))


def _train(
    turns: Turns, model: nn.Module, collate: Callable[..., Any], config: PretrainConfig, folder: Path, bf16: bool
) -> None:
    train, images = config.train, with_transform(folder, partial(augmented, config=config))
    plan = train.plan(len(images), num_processes=1)
    arguments = TrainingArguments(
        output_dir=config.output_dir,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation_steps,
        max_steps=10**9,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        adam_beta2=train.adam_beta2,
        max_grad_norm=train.max_grad_norm,
        lr_scheduler_type="cosine",
        warmup_steps=1000,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),  # otherwise Trainer refuses bf16 on a CPU
        dataloader_num_workers=NUM_WORKERS,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    taking_turns = TakingTurns(turns, train.batch_size)
    Trainer(model, arguments, collate, train_dataset=images, callbacks=[taking_turns]).train()


class TakingTurns(TrainerCallback):
    """Waits for the first turn when training begins, and for the next turn after the last step of a turn."""

    def __init__(self, turns: Turns, batch_size: int) -> None:
        self._turns, self._batch_size = turns, batch_size

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """Wait for the first turn; the loader processes start in it."""
        self._turns.begin()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """Count the step."""
        self._turns.done(self._batch_size)


def with_transform(folder: Path, transform: Transform) -> datasets.Dataset:
    """Return the generated images, transformed on access: rows of `pixel_values` (3, S, S) and `label`."""

    def transform_batch(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pixel_values = [transform(image.convert("RGB")) for image in examples["image"]]
        return {"pixel_values": pixel_values, "label": examples["label"]}

    images = drawn.dataset(folder)
    images.set_transform(transform_batch)
    return images


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return rows as a batch: `pixel_values` (B, 3, S, S)."""
    return {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}


def collate_labelled(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return rows as a batch: `pixel_values` (B, 3, S, S) and `labels` (B,)."""
    return collate(examples) | {"labels": torch.tensor([example["label"] for example in examples])}


def augmented(image: Image.Image, config: PretrainConfig) -> Tensor:
    """`RandomResizedCrop` (bicubic), `RandomHorizontalFlip`, `ToTensor` and `Normalize`: float32 (3, S, S)."""
    left, top, width, height = crop_box(*image.size, config.augment.crop_scale)
    size = config.model.image_size
    crop = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
    if config.augment.flip and random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return normalised(crop, config.data)


def whole(image: Image.Image, config: PretrainConfig) -> Tensor:
    """`Resize` (bicubic), `ToTensor` and `Normalize`: float32 (3, S, S)."""
    size = config.model.image_size
    return normalised(image.resize((size, size), Image.Resampling.BICUBIC), config.data)


def normalised(image: Image.Image, data: DataConfig) -> Tensor:
    """`ToTensor` and `Normalize`: float32 (3, S, S)."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
    mean, std = (torch.tensor(channel).view(3, 1, 1) for channel in (data.image_mean, data.image_std))
    return values.sub_(mean).div_(std)


def crop_box(width: int, height: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """Return left, top, width and height of a random box, as `RandomResizedCrop.get_params` with aspects of 3/4 to 4/3.

    After ten tries it takes the centre of the image, with the nearest aspect in that range.
    """
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h
