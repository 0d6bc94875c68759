"""Run a model on a whole set of images, each image once, on any number of processes.

B batch, n images of the set, C classes, N patches, S side of the image.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from mae_hf.config.data import DataConfig
from mae_hf.data.augment.crop_flip import normalize, to_pixels
from mae_hf.data.dataset import ImageSet
from mae_hf.data.random import Draws
from mae_hf.data.transfer import to_device
from mae_hf.progress import Progress


def normalized(images: Tensor, data: DataConfig, device: torch.device) -> Tensor:
    """Return images, uint8 (B, S, S, 3), as a network takes them: float32 (B, 3, S, S), not augmented."""
    return normalize(to_pixels(images.to(device)), data.image_mean, data.image_std)


def pixel_values_of(images: ImageSet, rows: NDArray[np.int64], data: DataConfig, device: torch.device) -> Tensor:
    """Return the images of these rows as a network takes them, float32 (B, 3, S, S)."""
    return normalized(images.batch_on(device, rows), data, device)


def fixed_noise(rows: NDArray[np.int64], num_patches: int, device: torch.device) -> Tensor:
    """Return the masking noise of held-out images, (B, N): the same in every run, so that losses can be compared."""
    return to_device(Draws(0, 0, rows, 0).uniform("held-out mask", num_patches).astype(np.float32), device)


@torch.no_grad()
def held_out_loss(
    accelerator: Accelerator, model: nn.Module, images: ImageSet, data: DataConfig, num_patches: int, batch_size: int
) -> float:
    """Return the mean reconstruction loss of `images`, with fixed masks and no augmentation.

    `model` is a prepared `MaskedAutoencoder` in eval mode; `batch_size` counts images at once per device.
    """
    total = torch.zeros((), device=accelerator.device)
    for rows, num_counted in _share(accelerator.process_index, accelerator.num_processes, len(images), batch_size):
        pixel_values = pixel_values_of(images, rows, data, accelerator.device)
        noise = fixed_noise(rows, num_patches, accelerator.device)
        # batches have other sizes than in training: do not compile again
        with torch.compiler.set_stance("force_eager"):
            loss = model(pixel_values, noise=noise, loss_only=True).loss
        total += loss * num_counted
    return accelerator.reduce(total, reduction="sum").item() / len(images)


def predict_probabilities(
    accelerator: Accelerator, model: nn.Module, images: ImageSet, data: DataConfig, batch_size: int
) -> NDArray[np.float32]:
    """Return class probabilities of every image, float32 (n, C), in the order of `images`, on every process.

    `model` is a prepared `ViTForImageClassification` in eval mode.
    """
    return _every_image(accelerator, class_probabilities, model, images, data, batch_size)


def extract_features(
    accelerator: Accelerator, encoder: nn.Module, images: ImageSet, data: DataConfig, batch_size: int, *,
    alone: bool = False
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Return the features of every image, without masking: the CLS token (`cls`) and the mean patch token (`mean`).

    `encoder` is a prepared `ViTModel` in eval mode. With `alone`, this process computes all features, and the others do
    not take part. The two arrays are float32 (n, D), in the order of `images`, on every process.
    """
    values = _every_image(accelerator, pooled_features, encoder, images, data, batch_size, alone)
    cls, mean = values.transpose(1, 0, 2)
    return {"cls": cls, "mean": mean}


def class_probabilities(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Return a classifier's probabilities of a batch, float32 (B, C)."""
    return model(pixel_values).logits.float().softmax(dim=-1)


def pooled_features(encoder: nn.Module, pixel_values: Tensor) -> Tensor:
    """Return the CLS token and the mean patch token of a batch, float32 (B, 2, D)."""
    tokens = encoder(pixel_values).last_hidden_state.float()
    return torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)


@torch.no_grad()
def _every_image(
    accelerator: Accelerator, values_of: Callable[[nn.Module, Tensor], Tensor], network: nn.Module, images: ImageSet,
    data: DataConfig, batch_size: int, alone: bool = False
) -> NDArray[np.float32]:  # fmt: skip
    """Return `values_of(network, pixel_values)` for all images, (n, ...), each once."""
    rank, num_processes = (0, 1) if alone else (accelerator.process_index, accelerator.num_processes)
    parts = []
    with torch.compiler.set_stance("force_eager"):
        for rows, num_counted in _share(rank, num_processes, len(images), batch_size):
            pixel_values = pixel_values_of(images, rows, data, accelerator.device)
            parts.append(values_of(network, pixel_values)[:num_counted])
    values = torch.cat(parts)
    if not alone:  # a process may have one image less than the others
        values = accelerator.gather(accelerator.pad_across_processes(values))
    # from rank after rank to row after row, where the padding comes last
    return values.unflatten(0, (num_processes, -1)).transpose(0, 1).flatten(0, 1)[: len(images)].cpu().numpy()


def _share(rank: int, num_processes: int, num_images: int, batch_size: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield a process's rows in batches, each with the number of its images that count: all or none.

    Every process gets the same number of batches, because all processes take part in a forward pass of sharded weights.
    A process without images left repeats the first image, which does not count.
    """
    rows = np.arange(num_images)[rank::num_processes]
    starts = range(0, math.ceil(num_images / num_processes), batch_size)
    with Progress(desc="evaluating", total=len(rows), unit="image", leave=False, delay=2.0) as progress:
        for start in starts:
            batch = rows[start : start + batch_size]
            yield (batch, len(batch)) if len(batch) else (np.zeros(1, np.int64), 0)
            progress.update(len(batch))
