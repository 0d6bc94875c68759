"""Opening finished models to evaluate them: a classifier, the plain encoder of any of our models, its normalisation."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, ViTForImageClassification, ViTModel
from transformers.utils import cached_file

from mae_hf.config import ConfigError, Triple, require
from mae_hf.models.loading import check_loaded, find_model, opening
from mae_hf.models.mae import MaskedAutoencoder, export_encoder

FIX = "give a run folder, a model folder or a Hub id (--model)"


def open_classifier(name: str, attn_implementation: str) -> ViTForImageClassification:
    """The classifier in a run folder, model folder or Hub repository, in eval mode.

    Raises:
        ConfigError: there is none, it is of another kind, or it is not whole.
    """
    path = find_model(name, FIX)
    with opening(name, FIX):
        architectures = AutoConfig.from_pretrained(path).architectures or []
    require(
        "ViTForImageClassification" in architectures,
        f"{name} is a {', '.join(architectures) or 'model without a class'}, not a classifier: probe its features "
        "instead (--probe knn,linear), or name a fine-tuned model (--model)",
    )
    with opening(name, FIX):
        loaded: Any = ViTForImageClassification.from_pretrained(
            path, attn_implementation=attn_implementation, dtype=torch.float32, output_loading_info=True
        )
    model, info = loaded
    check_loaded(name, model, info, FIX)
    return model.eval()


def open_encoder(name: str, attn_implementation: str) -> ViTModel:
    """The plain encoder of a masked autoencoder, an exported encoder or a classifier, in eval mode.

    Raises:
        ConfigError: there is no such model, it is of another kind, or it is not whole.
    """
    path = find_model(name, FIX)
    with opening(name, FIX):
        model_type = AutoConfig.from_pretrained(path).model_type
    if model_type == "vit_mae":
        mae = MaskedAutoencoder.from_pretrained(path, attn_implementation=attn_implementation)
        return export_encoder(mae)
    require(model_type == "vit", f"{name} is a model of type {model_type!r}, not a ViT or a ViT MAE: {FIX}")
    with opening(name, FIX):
        loaded: Any = ViTModel.from_pretrained(
            path,
            add_pooling_layer=False,
            attn_implementation=attn_implementation,
            dtype=torch.float32,
            output_loading_info=True,
        )
    encoder, info = loaded
    check_loaded(name, encoder, info, FIX, spare=("classifier.", "pooler.", "vit.pooler."))
    return encoder.eval()


def image_size_of(model: ViTForImageClassification | ViTModel) -> int:
    """Side of the square images that the model takes."""
    return int((model.vit if isinstance(model, ViTForImageClassification) else model).embeddings.image_size[0])


def read_normalization(name: str) -> tuple[Triple, Triple]:
    """Channel means and standard deviations that the model's image processor divides by.

    Raises:
        ConfigError: the model has no `preprocessor_config.json`.
    """
    path = find_model(name, FIX)
    with opening(name, FIX):
        file = cached_file(path, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    if file is None:
        raise ConfigError(f"{name} has no preprocessor_config.json, which says how to normalise images: {FIX}")
    processor = json.loads(Path(file).read_text())
    mean, std = processor["image_mean"], processor["image_std"]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
