"""RandAugment (arXiv 1909.13719) for whole batches, on any device, with the operations and strengths of MAE's recipe.

The recipe is timm's `rand-m9-mstd0.5-inc1`. It draws `num_ops` of 15 operations per image, with replacement, and skips
each with probability 0.5. An operation's level is normal around the magnitude (std 0.5), clipped to 0..10. Differences
from timm: geometric operations are always bilinear, fill with mid grey and blend into it at the border. Levels are
rounded in float32. Posterize keeps at least 1 bit, where timm's strongest level makes the image black.

B images, S side. An operation takes pixels float32 (B, 3, S, S), whole numbers in 0..255, and amount float32
(B, 1, 1, 1), its own unit per image, and gives pixels that are rounded and clipped to 0..255 afterwards.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mae_hf.data.random import Draws, to_device

APPLY_PROBABILITY = 0.5
LEVEL_STD = 0.5
GREATEST_LEVEL = 10.0
FILL = 128.0
Levels = NDArray[np.float64]
Operation = Callable[[Tensor, Tensor], Tensor]
Rule = Callable[[Levels, Levels], Levels]
Matrix = tuple[Tensor | float, ...]


def rand_augment(pixels: Tensor, num_ops: int, magnitude: float, draws: Draws) -> Tensor:
    """Apply `num_ops` random operations of a mean strength of 0 to 10 to each image.

    Takes uint8 (B, 3, S, S), which stays unchanged, and returns the same shape.
    """
    pixels = pixels.clone()
    for chosen, levels, signs in zip(*draw_operations(num_ops, magnitude, draws), strict=True):
        for number, (operation, to_amount) in enumerate(OPERATIONS.values()):
            members = np.flatnonzero(chosen == number)
            if len(members) == 0:
                continue
            index = to_device(members, pixels.device)
            amounts = to_amount(levels[members], signs[members]).astype(np.float32)
            amount = to_device(amounts, pixels.device).view(-1, 1, 1, 1)
            changed = operation(pixels[index].float(), amount)
            pixels[index] = changed.round_().clamp_(0, 255).to(torch.uint8)
    return pixels


def draw_operations(num_ops: int, magnitude: float, draws: Draws) -> tuple[NDArray[np.int64], Levels, Levels]:
    """Draw the operations of each image and their strengths, three arrays (num_ops, B).

    They are the index into `OPERATIONS` or -1 for none, the level in 0..10, and the sign.
    """
    numbers = draws.uniform("rand_augment", 5 * num_ops).reshape(-1, num_ops, 5)
    choice, apply, radius, angle, sign = np.moveaxis(numbers, (2, 1), (0, 1))
    chosen = np.where(apply < APPLY_PROBABILITY, np.floor(choice * len(OPERATIONS)), -1).astype(np.int64)
    normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
    levels = np.clip(magnitude + LEVEL_STD * normal, 0, GREATEST_LEVEL)
    return chosen, levels, np.where(sign < 0.5, -1.0, 1.0)


def auto_contrast(pixels: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel to 0..255; `amount` is not used."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    stretched = ((pixels - low) * (255 / (high - low).clamp(min=1))).floor()
    return torch.where(high > low, stretched, pixels)


def equalize(pixels: Tensor, amount: Tensor) -> Tensor:
    """Equalize each channel's histogram with Pillow's integer arithmetic; `amount` is not used."""
    values = pixels.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=pixels.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    in_last_bin = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - in_last_bin) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    flat = table.gather(2, values).view_as(pixels).float()
    return torch.where(step.unsqueeze(3) > 0, flat, pixels)


def posterize(pixels: Tensor, amount: Tensor) -> Tensor:
    """Keep the upper `amount` bits of every value."""
    step = torch.exp2(8 - amount)
    return (pixels / step).floor() * step


def solarize(pixels: Tensor, amount: Tensor) -> Tensor:
    """Invert values from `amount` on."""
    return torch.where(pixels < amount, pixels, 255 - pixels)


def solarize_add(pixels: Tensor, amount: Tensor) -> Tensor:
    """Add `amount` to values below 128."""
    return torch.where(pixels < 128, (pixels + amount).clamp(max=255), pixels)


def _blend(start_of: Callable[[Tensor], Tensor]) -> Operation:
    """An operation that multiplies the distance from `start_of(pixels)` by `amount`."""

    def operation(pixels: Tensor, amount: Tensor) -> Tensor:
        start = start_of(pixels)
        # Pillow's Image.blend truncates instead of rounding.
        return (start + amount * (pixels - start)).clamp(0, 255).floor()

    return operation


def _grey(pixels: Tensor) -> Tensor:
    """Luma (B, 1, S, S), whole numbers, as Pillow's convert("L")."""
    red, green, blue = pixels[:, 0:1], pixels[:, 1:2], pixels[:, 2:3]
    luma: Tensor = (19595 * red + 38470 * green + 7471 * blue + 32768) / 65536
    return luma.floor()


def _smooth(pixels: Tensor) -> Tensor:
    """The smoothed image; the outermost pixels stay, as in Pillow."""
    kernel = torch.ones(3, 1, 3, 3, device=pixels.device)
    kernel[:, :, 1, 1] = 5
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(pixels, kernel, groups=3) / 13 + 0.5).floor()
    return smooth


def _affine(matrix_of: Callable[[Tensor], Matrix]) -> Operation:
    """An operation that samples the input at matrix . (x, y, 1) for each output (x, y) in -1..1.

    It is bilinear, with mid grey outside. The matrix has two rows, and `matrix_of` gets the amounts, (B,).
    """

    def operation(pixels: Tensor, amount: Tensor) -> Tensor:
        theta = torch.empty(len(pixels), 6, device=pixels.device)
        for i, entry in enumerate(matrix_of(amount.flatten())):
            theta[:, i] = entry
        grid = F.affine_grid(theta.view(-1, 2, 3), list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels - FILL, grid, padding_mode="zeros", align_corners=False) + FILL

    return operation


def _rotation(degrees: Tensor) -> Matrix:
    angle = degrees * (math.pi / 180)
    return (angle.cos(), -angle.sin(), 0, angle.sin(), angle.cos(), 0)


def _up_to(greatest: float, around: float = 0) -> Rule:
    return lambda levels, signs: around + signs * levels / GREATEST_LEVEL * greatest


# Each operation with the rule that turns level (0..10) and sign into its amount: timm's "increasing" set.
OPERATIONS: dict[str, tuple[Operation, Rule]] = {
    "auto_contrast": (auto_contrast, lambda levels, signs: levels),
    "equalize": (equalize, lambda levels, signs: levels),
    "invert": (lambda pixels, amount: 255 - pixels, lambda levels, signs: levels),
    "rotate": (_affine(_rotation), _up_to(30.0)),  # counter-clockwise about the centre
    "posterize": (posterize, lambda levels, signs: (4 - np.floor(levels / GREATEST_LEVEL * 4)).clip(min=1)),
    "solarize": (solarize, lambda levels, signs: 256 - np.floor(levels / GREATEST_LEVEL * 256)),
    "solarize_add": (solarize_add, lambda levels, signs: np.floor(levels / GREATEST_LEVEL * 110)),
    "color": (_blend(_grey), _up_to(0.9, 1)),
    "contrast": (_blend(lambda pixels: (_grey(pixels).mean((2, 3), keepdim=True) + 0.5).floor()), _up_to(0.9, 1)),
    "brightness": (_blend(torch.zeros_like), _up_to(0.9, 1)),
    "sharpness": (_blend(_smooth), _up_to(0.9, 1)),
    # move a line left by shear x its distance from the top, and a column up by shear x its distance from the left
    "shear_x": (_affine(lambda shear: (1, shear, shear, 0, 1, 0)), _up_to(0.3)),
    "shear_y": (_affine(lambda shear: (1, 0, 0, shear, 1, shear)), _up_to(0.3)),
    # move left by a part of the width, and up by a part of the height
    "translate_x": (_affine(lambda part: (1, 0, 2 * part, 0, 1, 0)), _up_to(0.45)),
    "translate_y": (_affine(lambda part: (1, 0, 0, 0, 1, 2 * part)), _up_to(0.45)),
}
