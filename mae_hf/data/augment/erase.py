"""Random erasing (arXiv 1708.04896): noise replaces one box in some of the images, as in MAE's fine-tuning.

B images, S side.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_hf.data.augment.crop_flip import NUM_BOX_DRAWS, random_boxes
from mae_hf.data.random import Draws, to_device

ERASED_SCALE = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


def erase(pixel_values: Tensor, probability: float, draws: Draws) -> Tensor:
    """Fill one box of some images with standard normal noise, a number for every pixel and channel.

    Takes normalised float32 (B, 3, S, S), which stays unchanged, and returns the same shape on the same device.

    Source: Zhong et al. 2017, as in timm's `RandomErasing(probability, mode="pixel")`.
    """
    boxes = erased_boxes(pixel_values.shape[-1], probability, draws)
    noise = [
        draws[i : i + 1].normal("erase noise", 3 * height * width)[0]
        for i, (_, _, height, width) in enumerate(boxes.tolist())
        if height > 0
    ]
    if not noise:
        return pixel_values
    top, left, height, width = to_device(boxes.T.reshape(4, -1, 1, 1, 1), pixel_values.device)
    positions = torch.arange(pixel_values.shape[-1], device=pixel_values.device)
    lines = (positions.view(-1, 1) >= top) & (positions.view(-1, 1) < top + height)
    columns = (positions >= left) & (positions < left + width)
    return pixel_values.masked_scatter(lines & columns, to_device(np.concatenate(noise), pixel_values.device))


def erased_boxes(size: int, probability: float, draws: Draws) -> NDArray[np.int64]:
    """The box of each image: area uniform in 2 % to a third, aspect log-uniform in 0.3 to 1 / 0.3, position uniform.

    Returns int64 (B, 4): top, left, height, width; height and width are 0 for an image without a box.
    """
    numbers = draws.uniform("erase", 1 + NUM_BOX_DRAWS)
    boxes = random_boxes(numbers[:, 1:], size, ERASED_SCALE, ERASED_ASPECT, longest=size - 1, otherwise=0)
    return np.where(numbers[:, :1] < probability, boxes, 0)
