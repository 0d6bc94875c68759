"""What a training step minimises, from the rows of a batch to the loss: here a batch's whole way is seen.

Shapes: B images of a micro-batch, N patches of an image, S side of the image.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mae_hf.config.commands import FinetuneConfig, PretrainConfig
from mae_hf.data.augment.crop_flip import augment, normalize
from mae_hf.data.augment.erase import erase
from mae_hf.data.augment.mix import mix
from mae_hf.data.dataset import DeviceImages
from mae_hf.data.random import uniform
from mae_hf.data.stream.reader import StreamedImages
from mae_hf.data.transfer import to_device
from mae_hf.models.classifier import DropPath, set_draws

LossOf = Callable[[NDArray[np.int64], int, int], Tensor]
"""Mean loss () of the images of these rows, int64 (B,), as they are augmented in this epoch and mixed in this batch: by
its number, which is that of the optimizer step where no batch was skipped."""


def pretraining_loss(model: nn.Module, images: DeviceImages | StreamedImages, config: PretrainConfig) -> LossOf:
    """Rows -> images -> crop, flip -> normalise -> mask -> loss over the hidden patches.

    Args:
        model: a `MaskedAutoencoder`, prepared.
        images: the training images, on the model's device.
        config: augmentation, normalisation, seed and number of patches.
    """
    seed = config.train.seed

    def loss_of(rows: NDArray[np.int64], epoch: int, batch_index: int) -> Tensor:
        pixels = augment(images.batch(rows), rows, config.augment, seed, epoch)
        pixel_values = normalize(pixels, config.data.image_mean, config.data.image_std)
        noise = uniform(seed, epoch, rows, config.model.num_patches, "mask").astype(np.float32)
        loss: Tensor = model(pixel_values, noise=to_device(noise, images.device), loss_only=True).loss
        return loss

    return loss_of


def finetuning_loss(model: nn.Module, images: DeviceImages, num_classes: int, config: FinetuneConfig) -> LossOf:
    """Rows -> images -> crop, flip, RandAugment -> normalise -> erase -> mixup or cutmix -> drop-path -> loss
    with soft targets.

    Args:
        model: a `ViTForImageClassification`, prepared.
        images: the training images, on the model's device.
        num_classes: classes of the labels.
        config: augmentation, normalisation and seed.
    """
    seed = config.train.seed
    drop_paths = [module for module in model.modules() if isinstance(module, DropPath)]

    def loss_of(rows: NDArray[np.int64], epoch: int, batch_index: int) -> Tensor:
        pixels = augment(images.batch(rows), rows, config.augment, seed, epoch)
        pixel_values = normalize(pixels, config.data.image_mean, config.data.image_std)
        pixel_values = erase(pixel_values, rows, config.augment.erase_probability, seed, epoch)
        labels = to_device(images.labels[rows], images.device)
        pixel_values, targets = mix(pixel_values, labels, num_classes, config.augment, seed, batch_index)
        draws = uniform(seed, epoch, rows, 2 * len(drop_paths), "drop path").astype(np.float32)
        set_draws(drop_paths, to_device(draws, images.device))
        # the loss is computed here: float labels passed to the model would turn its config into multi-label
        return F.cross_entropy(model(pixel_values).logits.float(), targets)

    return loss_of
