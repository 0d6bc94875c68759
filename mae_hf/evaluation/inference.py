"""Run a model on a whole set of images, each image once, on any number of processes; or on images in memory.

B batch, n images of the set, C classes, D features, N patches, S side of the image.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ViTForImageClassification

from mae_hf.config.data import DataConfig
from mae_hf.data.augment.crop_flip import normalize, to_pixels
from mae_hf.data.dataset import ImageSet, load_image_files
from mae_hf.data.random import Draws, to_device
from mae_hf.errors import require
from mae_hf.models.io import SavedModel, open_classifier, open_encoder, prepared_as
from mae_hf.models.mae import MaskedAutoencoder, export_encoder
from mae_hf.progress import Progress

POOLINGS = ("cls", "mean")  # features of an image: the CLS token, and the mean of the patch tokens
_BATCH_SIZE = 64  # of images in memory


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
    """Return the mean loss of a prepared `MaskedAutoencoder` in eval mode on images with fixed masks, not augmented.

    `batch_size` is per device.
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


def class_probabilities(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Return a classifier's probabilities of a batch, float32 (B, C)."""
    return model(pixel_values).logits.float().softmax(dim=-1)


def pooled_features(encoder: nn.Module, pixel_values: Tensor) -> Tensor:
    """Return an encoder's features of a batch by `POOLINGS`, without masking, float32 (B, 2, D)."""
    tokens = encoder(pixel_values).last_hidden_state.float()
    return torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)


@torch.no_grad()
def infer(
    accelerator: Accelerator, values_of: Callable[[nn.Module, Tensor], Tensor], network: nn.Module, images: ImageSet,
    data: DataConfig, batch_size: int, *, alone: bool = False
) -> NDArray[np.float32]:  # fmt: skip
    """Return `values_of(network, pixel_values)` of every image, (n, ...), in the order of `images`, on every process.

    The values are `class_probabilities` or `pooled_features`. The network is prepared and in eval mode. `batch_size` is
    per device. With `alone`, this process computes all of them, and the others do not take part.
    """
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

    Every process gets equally many batches, because all take part in each forward pass of sharded weights: one without
    images left repeats the first image.
    """
    rows = np.arange(num_images)[rank::num_processes]
    with Progress(desc="evaluating", total=len(rows), unit="image", leave=False, delay=2.0) as progress:
        for start in range(0, math.ceil(num_images / num_processes), batch_size):
            batch = rows[start : start + batch_size]
            yield (batch, len(batch)) if len(batch) else (np.zeros(1, np.int64), 0)
            progress.update(len(batch))


# ---- a model of any kind, opened to be called with images: `mae_hf.load` ----


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """An opened model, which is called with images."""

    model: Any  # a `MaskedAutoencoder`, a `ViTForImageClassification` or, of an encoder, a `ViTModel`; in eval mode
    data: DataConfig  # how its image processor prepares images: `image_mean`, `image_std` and `resize`

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of a classifier's classes, in the order of its probabilities; empty for other models."""
        is_classifier = isinstance(self.model, ViTForImageClassification)
        return tuple((self.model.config.id2label or {}).values()) if is_classifier else ()

    @property
    def network(self) -> Any:
        """The classifier or the encoder that takes whole images. A masked autoencoder gives its encoder."""
        return export_encoder(self.model) if isinstance(self.model, MaskedAutoencoder) else self.model

    @torch.no_grad()
    def __call__(self, images: Sequence[Any], pooling: str = "cls") -> np.ndarray:
        """Return a classifier's probabilities, float32 (n, C), or an encoder's features, float32 (n, D).

        Images are PIL images, arrays or image files, in any mode and size. Features are the CLS token, or with
        `pooling="mean"` the mean of the patch tokens. ConfigError if an image cannot be decoded.
        """
        require(pooling in POOLINGS, f"pooling is {pooling} but must be cls or mean")
        is_list = isinstance(images, Sequence | np.ndarray) and not isinstance(images, str) and len(images) > 0
        require(is_list, "a model is called with a list of one or more images: write model([image])")
        network, values_of = self.network, class_probabilities if self.class_names else pooled_features
        parts = (images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE))
        batches = (load_image_files(part, network.config.image_size, self.data) for part in parts)
        values = [values_of(network, normalized(batch, self.data, network.device)) for batch in batches]
        found = torch.cat(values).cpu().numpy()
        return found if self.class_names else found[:, POOLINGS.index(pooling)]


def open_any(name: str) -> LoadedModel:
    """Return the model of that name by its kind: with a decoder, with classes, or a plain encoder."""
    saved = SavedModel(name)
    is_classifier = "ViTForImageClassification" in (saved.config().architectures or [])
    model: Any
    if saved.has_decoder:
        model = MaskedAutoencoder.from_pretrained(name).eval()
    else:
        model = (open_classifier if is_classifier else open_encoder)(name, "sdpa")
    return LoadedModel(model, prepared_as(name, DataConfig()))
