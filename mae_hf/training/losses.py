"""The loss of a training step in both stages, computed from the rows of a batch's images.

Shapes: B images of a micro-batch, N patches of an image, S side of the image, L layers with stochastic depth.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.data.augment.crop_flip import augment, normalize
from mae_hf.data.augment.erase import erase
from mae_hf.data.augment.mix import mix
from mae_hf.data.dataset import DeviceImages
from mae_hf.data.random import Draws, to_device
from mae_hf.data.stream.reader import StreamedImages
from mae_hf.models.classifier import DropPath, dropping_paths

LossOf = Callable[[Draws], Tensor]
"""The mean loss () of a micro-batch: of the images whose rows the draws name, augmented by these draws."""


def pretraining_loss(model: nn.Module, images: DeviceImages | StreamedImages, config: PretrainConfig) -> LossOf:
    """Rows -> images -> crop, flip -> normalise -> mask -> loss of a `MaskedAutoencoder` over the masked patches."""

    def loss_of(draws: Draws) -> Tensor:
        pixels = augment(images.batch(draws.rows), config.augment, draws)
        pixel_values = normalize(pixels, config.data.image_mean, config.data.image_std)
        noise = draws.uniform("mask", config.model.num_patches).astype(np.float32)
        loss: Tensor = model(pixel_values, noise=to_device(noise, images.device), loss_only=True).loss
        return loss

    return loss_of


def finetuning_loss(model: nn.Module, images: DeviceImages, num_classes: int, config: FinetuneConfig) -> LossOf:
    """Rows -> images -> crop, flip, RandAugment -> normalise -> erase -> mixup or cutmix -> drop path -> loss
    of a `ViTForImageClassification` with soft targets.
    """
    drop_paths = [module for module in model.modules() if isinstance(module, DropPath)]

    def loss_of(draws: Draws) -> Tensor:
        pixels = augment(images.batch(draws.rows), config.augment, draws)
        pixel_values = normalize(pixels, config.data.image_mean, config.data.image_std)
        pixel_values = erase(pixel_values, config.augment.erase_probability, draws)
        labels = to_device(images.labels[draws.rows], images.device)
        pixel_values, targets = mix(pixel_values, labels, num_classes, config.augment, draws)
        depth = draws.uniform("drop path", 2 * len(drop_paths)).astype(np.float32)
        with dropping_paths(drop_paths, to_device(depth, images.device)):
            logits = model(pixel_values).logits
        # The loss is computed here: float labels passed to the model would turn its config into multi-label.
        return F.cross_entropy(logits.float(), targets)

    return loss_of
