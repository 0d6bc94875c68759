"""Random erasing (arXiv 1708.04896): a box of some images becomes noise, with the numbers of MAE's fine-tuning.

B images, S side.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_hf.data.augment.crop_flip import NUM_BOX_DRAWS, random_boxes
from mae_hf.data.random import normal, uniform
from mae_hf.data.transfer import to_device

SCALE = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)


def erase(pixel_values: Tensor, rows: NDArray[np.int64], probability: float, seed: int, epoch: int) -> Tensor:
    """The images, some of them with one box of standard normal noise, another number for every pixel and channel.

    What happens to an image depends on (seed, epoch, row) alone.

    Args:
        pixel_values: float32 (B, 3, S, S), normalised; not changed.
        rows: int64 (B,), rows of the images in their `ImageSet`.
        probability: part of the images that are erased.
        seed: seed of the run.
        epoch: pass over the images.

    Returns:
        float32 (B, 3, S, S), on the device of `pixel_values`.

    Source: Zhong et al. 2017, as in timm's `RandomErasing(probability, mode="pixel")`.
    """
    boxes = erased_boxes(rows, pixel_values.shape[-1], probability, seed, epoch)
    noise = [
        normal(seed, epoch, [row], 3 * height * width, "erase noise")[0]
        for row, (_, _, height, width) in zip(rows, boxes.tolist(), strict=True)
        if height > 0
    ]
    if not noise:
        return pixel_values
    top, left, height, width = to_device(boxes.T.reshape(4, -1, 1, 1, 1), pixel_values.device)
    places = torch.arange(pixel_values.shape[-1], device=pixel_values.device)
    lines = (places.view(-1, 1) >= top) & (places.view(-1, 1) < top + height)
    columns = (places >= left) & (places < left + width)
    return pixel_values.masked_scatter(lines & columns, to_device(np.concatenate(noise), pixel_values.device))


def erased_boxes(rows: NDArray[np.int64], size: int, probability: float, seed: int, epoch: int) -> NDArray[np.int64]:
    """The box of each image: area uniform in 2 % to a third, aspect log-uniform in 0.3 to 1 / 0.3, place uniform.

    Args:
        rows: int64 (B,).
        size: side S of the square images.
        probability: part of the images that have a box.
        seed: seed of the run.
        epoch: pass over the images.

    Returns:
        int64 (B, 4): top, left, height, width; height and width are 0 where nothing is erased.
    """
    draws = uniform(seed, epoch, rows, 1 + NUM_BOX_DRAWS, "erase")
    boxes = random_boxes(draws[:, 1:], size, SCALE, ASPECT, longest=size - 1, otherwise=0)
    return np.where(draws[:, :1] < probability, boxes, 0)
