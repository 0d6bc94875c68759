"""Mixup and CutMix: blend each image with a partner, and their labels into soft targets.

B images, C classes, S side.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mae_hf.config.augment import AugmentConfig
from mae_hf.config.train import Plan
from mae_hf.data.random import Draws
from mae_hf.errors import ConfigError


def mix(
    pixel_values: Tensor, labels: Tensor, num_classes: int, config: AugmentConfig, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Mix the images of a batch; return them with their soft targets, label smoothing included.

    The batch has one weight, and its first image is paired with its last, the second with the last but one. If both
    methods are on, each batch draws one of them. `BatchSampler` keeps pairs together, and the weight belongs to the
    whole batch. So the result does not depend on how the batch is split.

    Takes float32 (B, 3, S, S), which stay unchanged, and labels int64 (B,) on the same device. Returns new images and
    targets, float32 (B, C); each target sums to 1.

    Source: mixup arXiv 1710.09412, CutMix arXiv 1905.04899, paired per batch as in timm and MAE's fine-tuning.
    """
    off = config.label_smoothing / num_classes
    targets = F.one_hot(labels, num_classes).float() * (1 - config.label_smoothing) + off
    if config.mixup == 0 and config.cutmix == 0:
        return pixel_values, targets

    choice, beta_seed, center_y, center_x = draws.uniform_of_batch("mix", 4)
    use_cutmix = config.mixup == 0 or (config.cutmix > 0 and choice < 0.5)
    alpha = config.cutmix if use_cutmix else config.mixup
    weight = float(np.random.default_rng(int(beta_seed * 2**53)).beta(alpha, alpha))
    partners = pixel_values.flip(0)
    if use_cutmix:
        top, bottom, left, right = cut_box(pixel_values.shape[-1], weight, center_y, center_x)
        mixed = pixel_values.clone()
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        # The labels follow the area of the actual box, which is clipped at the border and has whole pixels.
        weight = 1 - (bottom - top) * (right - left) / pixel_values.shape[-1] ** 2
    else:
        mixed = torch.lerp(partners, pixel_values, weight)
    return mixed, torch.lerp(targets.flip(0), targets, weight)


def check_pairs(config: AugmentConfig, plan: Plan) -> None:
    """Raise `ConfigError` if micro-batches would separate the pairs of mixup and cutmix."""
    is_split = plan.num_processes * plan.accumulation_steps > 1
    if is_split and plan.micro_batch_size % 2 and (config.mixup or config.cutmix):
        raise ConfigError(
            f"mixup and cutmix need an even number of images per device, not {plan.micro_batch_size}: choose another "
            "--train.per_device_batch_size or --train.batch_size, or --augment.mixup 0 --augment.cutmix 0"
        )


def cut_box(size: int, weight: float, center_y: float, center_x: float) -> tuple[int, int, int, int]:
    """The box that CutMix takes from the partner: 1 - weight of the area around the centre, clipped to the image.

    The centre is in [0, 1). Returns top, bottom, left, right in pixels; bottom and right are the first ones outside.
    """
    half = int(size * (1 - weight) ** 0.5) // 2
    y, x = int(center_y * size), int(center_x * size)
    return max(y - half, 0), min(y + half, size), max(x - half, 0), min(x + half, size)
