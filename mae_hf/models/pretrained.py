"""Opening finished models to evaluate them: a classifier, the plain encoder of any of our models, its normalisation."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import ViTForImageClassification, ViTModel
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from mae_hf.config.data import DataConfig, Triple
from mae_hf.errors import ConfigError, require
from mae_hf.models.loading import SAFE, check_loaded, opening, read_config
from mae_hf.models.locate import FIX_INIT, FIX_MODEL, SCRATCH, find_model
from mae_hf.models.mae import MaskedAutoencoder, export_encoder

PROCESSOR = "preprocessor_config.json"


def open_classifier(name: str, attn_implementation: str) -> ViTForImageClassification:
    """The classifier in a run folder, model folder or Hub repository, in eval mode.

    Raises:
        ConfigError: there is none, it is of another kind, or it is not whole.
    """
    path = find_model(name, FIX_MODEL)
    architectures = read_config(name, path, FIX_MODEL).architectures or []
    require(
        "ViTForImageClassification" in architectures,
        f"{name} is a {', '.join(architectures) or 'model without a class'}, not a classifier: probe its features "
        "instead (--probe knn,linear), or name a fine-tuned model (--model)",
    )
    with opening(name, FIX_MODEL):
        loaded: Any = ViTForImageClassification.from_pretrained(
            path, attn_implementation=attn_implementation, dtype=torch.float32, output_loading_info=True, **SAFE
        )
    model, info = loaded
    check_loaded(name, model, info, FIX_MODEL)
    return model.eval()


def open_encoder(name: str, attn_implementation: str) -> ViTModel:
    """The plain encoder of a masked autoencoder, an exported encoder or a classifier, in eval mode.

    Raises:
        ConfigError: there is no such model, it is of another kind, or it is not whole.
    """
    path = find_model(name, FIX_MODEL)
    model_type = read_config(name, path, FIX_MODEL).model_type
    if model_type == "vit_mae":
        mae = MaskedAutoencoder.from_pretrained(path, attn_implementation=attn_implementation)
        return export_encoder(mae)
    require(model_type == "vit", f"{name} is a model of type {model_type!r}, not a ViT or a ViT MAE: {FIX_MODEL}")
    with opening(name, FIX_MODEL):
        loaded: Any = ViTModel.from_pretrained(
            path,
            add_pooling_layer=False,
            attn_implementation=attn_implementation,
            dtype=torch.float32,
            output_loading_info=True,
            **SAFE,
        )
    encoder, info = loaded
    check_loaded(name, encoder, info, FIX_MODEL, spare=("classifier.", "pooler.", "vit.pooler."))
    return encoder.eval()


def image_size_of(model: ViTForImageClassification | ViTModel) -> int:
    """Side of the square images that the model takes."""
    return int((model.vit if isinstance(model, ViTForImageClassification) else model).embeddings.image_size[0])


def weights_digest(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that change whenever a weight of the model does; a pooler does not count."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("pooler."):  # an exported encoder has one that nothing here uses
            continue
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def hub_revision(name: str) -> str | None:
    """Return the commit of the Hub repository that this model was read from, or None for a local folder."""
    path = find_model(name, FIX_MODEL)
    with opening(name, FIX_MODEL):
        file = cached_file(path, CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    return extract_commit_hash(file, None)


def check_init(init: str, data: DataConfig) -> None:
    """Sees to it, before any image is decoded, that a pre-trained encoder is there and normalises as `data` does.

    Raises:
        ConfigError: there is no such encoder, or its image processor has another mean or standard deviation.
    """
    if init == SCRATCH:
        return
    if find_file(init, PROCESSOR, FIX_INIT) is None:
        return  # an encoder without an image processor makes no claim
    mean, std = read_normalization(init)
    require(
        np.allclose((mean, std), (data.image_mean, data.image_std), atol=1e-6),
        f"the encoder {init} was trained on images normalised with mean {list(mean)} and std {list(std)}: add "
        f"--data.image_mean '{list(mean)}' --data.image_std '{list(std)}'",
    )


def read_normalization(name: str) -> tuple[Triple, Triple]:
    """Channel means and standard deviations that the model's image processor divides by.

    Raises:
        ConfigError: the model has no `preprocessor_config.json`.
    """
    file = find_file(name, PROCESSOR, FIX_MODEL)
    if file is None:
        raise ConfigError(f"{name} has no {PROCESSOR}, which says how to normalise images: {FIX_MODEL}")
    processor = json.loads(file.read_text())
    mean, std = processor["image_mean"], processor["image_std"]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def find_file(name: str, file: str, fix: str) -> Path | None:
    """Return a file of a model, downloaded if the model is on the Hub; None if the model has no such file.

    Raises:
        ConfigError: the model does not exist.
    """
    path = find_model(name, fix)
    with opening(name, fix):
        found = cached_file(path, file, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
