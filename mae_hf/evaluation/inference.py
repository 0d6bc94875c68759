"""A model over a whole set of images, every image once, on any number of processes.

B batch, n images of the set, C classes, N patches, S side of the image.
"""

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from mae_hf.config import DataConfig
from mae_hf.data.augment import normalize, to_pixels
from mae_hf.data.draws import uniform
from mae_hf.data.images import ImageSet


def pixel_values_of(images: ImageSet, rows: NDArray[np.int64], data: DataConfig, device: torch.device) -> Tensor:
    """The images of these rows as the model takes them, without augmentation: float32 (B, 3, S, S)."""
    return normalize(to_pixels(images.batch(rows).to(device)), data.image_mean, data.image_std)


def fixed_noise(rows: NDArray[np.int64], num_patches: int, device: torch.device) -> Tensor:
    """The masks of held-out images, (B, N): the same in every run, so that losses can be compared."""
    return torch.from_numpy(uniform(0, 0, rows, num_patches, "held-out mask")).to(device)


@torch.no_grad()
def held_out_loss(
    accelerator: Accelerator, model: nn.Module, images: ImageSet, data: DataConfig, num_patches: int, batch_size: int
) -> float:
    """Mean reconstruction loss over `images`, with fixed masks and no augmentation.

    Args:
        model: a prepared `MaskedAutoencoder` in eval mode.
        batch_size: images at once per device.
    """
    total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for rows in _share(accelerator, len(images), batch_size):
        pixel_values = pixel_values_of(images, rows, data, accelerator.device)
        loss = model(pixel_values, noise=fixed_noise(rows, num_patches, accelerator.device)).loss
        total += torch.stack([loss.double() * len(rows), torch.tensor(len(rows), device=loss.device)])
    loss_sum, count = accelerator.reduce(total, reduction="sum").tolist()  # type: ignore[union-attr]
    assert count == len(images)
    return loss_sum / count


@torch.no_grad()
def predict_probabilities(
    accelerator: Accelerator, model: nn.Module, images: ImageSet, data: DataConfig, batch_size: int
) -> NDArray[np.float32]:
    """Class probabilities of every image, float32 (n, C), in the order of `images`, on every process.

    Args:
        model: a prepared `ViTForImageClassification` in eval mode.
        batch_size: images at once per device.
    """
    indices, probabilities = [], []
    for rows in _share(accelerator, len(images), batch_size):
        logits = model(pixel_values_of(images, rows, data, accelerator.device)).logits
        probabilities.append(logits.float().softmax(dim=-1))
        indices.append(torch.from_numpy(rows).to(accelerator.device))
    num_classes = len(images.class_names or ())
    local = torch.cat(probabilities) if probabilities else torch.zeros(0, num_classes, device=accelerator.device)
    index = torch.cat(indices) if indices else torch.zeros(0, dtype=torch.int64, device=accelerator.device)
    # shares differ by an image at most: pad, gather, and drop the padding by its index, so each image counts once
    index = accelerator.gather(accelerator.pad_across_processes(index, pad_index=-1))
    gathered = accelerator.gather(accelerator.pad_across_processes(local))
    order = index[index >= 0].argsort()
    result = gathered[index >= 0][order].cpu().numpy()
    assert len(result) == len(images)
    return result


def _share(accelerator: Accelerator, num_images: int, batch_size: int) -> list[NDArray[np.int64]]:
    """This process's rows, in batches."""
    rows = np.arange(num_images)[accelerator.process_index :: accelerator.num_processes]
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
