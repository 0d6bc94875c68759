"""From decoded images to the input of the model: random resized crop, flip, RandAugment and normalisation of a batch.

Training: `normalize(augment(images, config, draws), mean, std)`.
Evaluation, without augmentation: `normalize(to_pixels(images), mean, std)`.

B images, S side of the square images. Images are uint8 (B, S, S, 3), pixels uint8 (B, 3, S, S).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mae_hf.config.augment import AugmentConfig, CropConfig
from mae_hf.data.augment.rand_augment import rand_augment
from mae_hf.data.random import Draws, to_device

BOX_TRIES = 10
NUM_BOX_DRAWS = 2 * BOX_TRIES + 2  # area and aspect ratio of each try, then the position
ASPECT = (3 / 4, 4 / 3)
Bounds = tuple[float, float]


def augment(images: Tensor, config: CropConfig | AugmentConfig, draws: Draws) -> Tensor:
    """Crop, flip and, with an `AugmentConfig`, RandAugment images: uint8 (B, S, S, 3) -> (B, 3, S, S), any device."""
    boxes = crop_boxes(images.shape[1], config.crop_scale, draws)
    flip = draws.uniform("flip", 1)[:, 0] < (0.5 if config.flip else 0.0)
    resize = crop_resize_each if images.device.type == "cpu" else crop_resize_batched
    pixels = resize(images, boxes, flip)
    if isinstance(config, AugmentConfig) and config.rand_augment_ops > 0:
        pixels = rand_augment(pixels, config.rand_augment_ops, config.rand_augment_magnitude, draws)
    return pixels


def to_pixels(images: Tensor) -> Tensor:
    """Move the channels to the front, uint8 (B, S, S, 3) -> (B, 3, S, S): the preparation of evaluation."""
    return images.permute(0, 3, 1, 2)


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return the input of the model, (pixels / 255 - mean) / std: float32 (B, 3, S, S), new and contiguous.

    Pixels are uint8 or float (B, 3, S, S) in 0..255. `mean` and `std` are saved in the model's image
    processor: one per channel, for pixels in [0, 1].
    """
    factors = np.array([1 / (255 * np.asarray(std)), np.asarray(mean) / std], np.float32)
    scale, shift = to_device(factors, pixels.device).view(2, 3, 1, 1)
    values = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    # contiguous() comes first, because it is faster for bytes than for floats
    return values.copy_(pixels.contiguous()).mul_(scale).sub_(shift)


def crop_boxes(size: int, scale: Bounds, draws: Draws) -> NDArray[np.int64]:
    """The random crop of each image: area uniform in `scale`, aspect log-uniform in 3/4..4/3, position uniform.

    The rule of torchvision's `RandomResizedCrop`: up to ten tries for a box that fits, then the whole image. Returns
    int64 (B, 4): top, left, height, width.
    """
    numbers = draws.uniform("crop", NUM_BOX_DRAWS)
    return random_boxes(numbers, size, scale, ASPECT, longest=size, otherwise=size)


def random_boxes(
    numbers: NDArray[np.float64], size: int, scale: Bounds, aspect: Bounds, longest: int, otherwise: int
) -> NDArray[np.int64]:
    """Boxes of random area, aspect ratio (width / height) and position, int64 (B, 4): top, left, height, width.

    The uniform `numbers`, (B, NUM_BOX_DRAWS), give ten tries for each box. The first one with sides of up to `longest`
    pixels is taken. If none fits, both sides have `otherwise` pixels.
    """
    area = size**2 * (scale[0] + (scale[1] - scale[0]) * numbers[:, :BOX_TRIES])
    log_aspect = np.log(aspect[0]) + np.log(aspect[1] / aspect[0]) * numbers[:, BOX_TRIES:-2]
    width = np.rint(np.sqrt(area * np.exp(log_aspect)))
    height = np.rint(np.sqrt(area / np.exp(log_aspect)))
    fits = (width >= 1) & (width <= longest) & (height >= 1) & (height <= longest)
    first = np.arange(len(numbers)), fits.argmax(axis=1)
    found = fits.any(axis=1)
    width = np.where(found, width[first], otherwise)
    height = np.where(found, height[first], otherwise)
    top = np.floor(numbers[:, -2] * (size - height + 1))
    left = np.floor(numbers[:, -1] * (size - width + 1))
    return np.stack([top, left, height, width], axis=1).astype(np.int64)


def crop_resize_each(images: Tensor, boxes: NDArray[np.int64], flip: NDArray[np.bool_]) -> Tensor:
    """Crop to boxes (B, 4), mirror where `flip` (B,) is set, and resize back to S x S; the fastest way on a CPU.

    Images uint8 (B, S, S, 3) become uint8 (B, 3, S, S), contiguous. The result is within 2 grey levels of Pillow's
    `crop(box).resize((S, S), BICUBIC)`.
    """
    batch, size = images.shape[:2]
    pixels = torch.empty(batch, 3, size, size, dtype=torch.uint8)
    # Channels stay innermost in memory: interpolate has a fast uint8 kernel for such views.
    each = zip(images.permute(0, 3, 1, 2).split(1), pixels.split(1), boxes.tolist(), flip.tolist(), strict=True)
    for image, resized, (top, left, height, width), mirrored in each:
        crop = image[:, :, top : top + height, left : left + width]
        crop = crop.flip(-1) if mirrored else crop
        resized.copy_(F.interpolate(crop, size=(size, size), mode="bicubic", antialias=True))
    return pixels


def crop_resize_batched(images: Tensor, boxes: NDArray[np.int64], flip: NDArray[np.bool_]) -> Tensor:
    """The same as `crop_resize_each` in two matrix products for the whole batch, for GPUs.

    Also within 2 grey levels of Pillow: lines are resized first, and rounded to whole levels in between, as there.
    """
    size = images.shape[1]
    top, left, height, width = to_device(boxes.T.astype(np.float32), images.device)
    horizontal = _bicubic_weights(left, width, size)
    mirrored = to_device(flip, images.device).view(-1, 1, 1)
    horizontal = torch.where(mirrored, horizontal.flip(1), horizontal)
    vertical = _bicubic_weights(top, height, size)

    lines = images.permute(0, 3, 1, 2).reshape(-1, 3 * size, size).float()
    lines = torch.bmm(lines, horizontal.transpose(1, 2)).round_().clamp_(0, 255).view(-1, 3, size, size)
    pixels = torch.matmul(vertical.unsqueeze(1), lines).round_().clamp_(0, 255)
    return pixels.to(torch.uint8)


def _bicubic_weights(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Weights (B, S, S) with which `size` outputs see the inputs start..start+length; antialiased, as in Pillow."""
    inputs = torch.arange(size, device=start.device, dtype=torch.float32)
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / size
    center = start + (inputs.view(1, -1, 1) + 0.5) * scale
    x = ((inputs + 0.5 - center) / scale.clamp(min=1)).abs()
    # Keys's cubic with a = -0.5, the kernel of Pillow and of interpolate(antialias=True).
    weights = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights = weights * ((x < 2) & (inputs >= start) & (inputs < start + length))
    return weights / weights.sum(dim=2, keepdim=True)
