"""A model of any kind, opened to be called with images: `mae_hf.load`.

Shapes: n images, C classes, D features.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import ViTForImageClassification

from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import load_image_files
from mae_hf.errors import require
from mae_hf.evaluation.inference import class_probabilities, normalized, pooled_features
from mae_hf.evaluation.probing import POOLINGS
from mae_hf.models.io import SavedModel, open_classifier, open_encoder, prepared_as
from mae_hf.models.mae import MaskedAutoencoder, export_encoder

_BATCH_SIZE = 64


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
        network = self.network
        values_of, values = class_probabilities if self.class_names else pooled_features, []
        for start in range(0, len(images), _BATCH_SIZE):
            batch = load_image_files(images[start : start + _BATCH_SIZE], network.config.image_size, self.data)
            values.append(values_of(network, normalized(batch, self.data, network.device)))
        found = torch.cat(values).cpu().numpy()
        return found if self.class_names else found[:, POOLINGS.index(pooling)]


def open_any(name: str) -> LoadedModel:
    """Return the model of that name by its kind: with a decoder, with classes, or a plain encoder."""
    saved = SavedModel(name)
    config = saved.config()
    model: Any
    if saved.has_decoder:
        model = MaskedAutoencoder.from_pretrained(name).eval()
    elif "ViTForImageClassification" in (config.architectures or []):
        model = open_classifier(name, "sdpa")
    else:
        model = open_encoder(name, "sdpa")
    return LoadedModel(model, prepared_as(name, DataConfig()))
