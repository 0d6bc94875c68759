"""Probes of frozen features on each label set. Features are computed once and stored.

Shapes: n images, D features.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn
from transformers import ViTModel

from mae_hf.config.data import DataConfig
from mae_hf.config.model import ClassifierConfig
from mae_hf.evaluation.few_labels.measurements import Measurements
from mae_hf.evaluation.few_labels.protocol import ProtocolImages
from mae_hf.evaluation.inference import extract_features
from mae_hf.evaluation.probes import Labelled
from mae_hf.evaluation.probing import CLASSIFIERS, POOLINGS
from mae_hf.models.classifier import build_classifier
from mae_hf.models.io import SHAPE_KEYS, weights_digest
from mae_hf.models.locate import SCRATCH


@dataclass(frozen=True)
class FrozenFeatures:
    """The features of every labelled train image and of all test images, by pooling."""

    train: dict[str, np.ndarray]  # pooling -> float (n, D)
    rows: np.ndarray  # int (n,), the number of each train image in its split
    train_labels: np.ndarray  # int (n,)
    test: dict[str, np.ndarray]  # pooling -> float (n_test, D)


def shape_of(encoder: ViTModel) -> dict[str, Any]:
    """Return the architecture of an encoder, by the fields of `EncoderConfig`."""
    return {key: getattr(encoder.config, key) for key in SHAPE_KEYS}


def random_encoder(encoder: ViTModel, class_names: Sequence[str], attn_implementation: str) -> ViTModel:
    """Return the same network, in eval mode, with the weights that fine-tuning from scratch with seed 0 starts from."""
    config = ClassifierConfig(init=SCRATCH, **shape_of(encoder))
    return build_classifier(config, class_names, attn_implementation, seed=0).vit.eval()


def load_features(
    path: Path,
    accelerator: Accelerator,
    encoder: nn.Module,
    images: ProtocolImages,
    data: DataConfig,
    batch_size: int,
) -> FrozenFeatures:
    """Return the features of all images, read from a file, or computed and stored in it.

    Args:
        path: the .npz file; it is written again if weights, images or precision differ.
        encoder: a `ViTModel` in eval mode.
        images: the labelled train images and test.
        batch_size: images at once.
    """
    key = " ".join([weights_digest(encoder), images.fingerprint, accelerator.mixed_precision])
    arrays: dict[str, Any] = {}
    if path.exists():
        with np.load(path) as file:
            arrays = dict(file) if str(file["key"]) == key else {}
    if not arrays:
        prepared = accelerator.prepare(encoder)
        parts = (*images.train, images.test)
        *train, test = (extract_features(accelerator, prepared, part, data, batch_size) for part in parts)
        arrays["key"] = np.array(key)
        for pooling in POOLINGS:
            arrays[f"train-{pooling}"] = np.concatenate([part[pooling] for part in train])
            arrays[f"test-{pooling}"] = test[pooling]
        beside = path.with_suffix(".partial.npz")
        np.savez(beside, **arrays)
        os.replace(beside, path)
    return FrozenFeatures(
        train={pooling: arrays[f"train-{pooling}"] for pooling in POOLINGS},
        rows=np.concatenate([part.split_rows for part in images.train]),
        train_labels=np.concatenate([part.labels for part in images.train]),
        test={pooling: arrays[f"test-{pooling}"] for pooling in POOLINGS},
    )


def measure_probe(measurements: Measurements, line: dict[str, Any], features: FrozenFeatures, rows: np.ndarray) -> None:
    """Add a line for each pooling that `measurements` lacks: a probe of these rows, scored on all test images.

    The strength of `linear` is chosen by cross-validation on the labels of the set.

    Args:
        line: what is known about the measurement: `label_set`, `fraction`, `arm` and `method` among it.
        rows: rows of the train split, the labels of this set. Images that were left out do not count.
    """
    here, num_classes = np.isin(features.rows, rows), len(measurements.class_names)  # a set may lack some classes
    for pooling in POOLINGS:
        if measurements.has(line["label_set"], line["arm"], line["method"], pooling):
            continue
        train = Labelled(features.train[pooling][here], features.train_labels[here])
        probe = CLASSIFIERS[line["method"]](train, None, features.test[pooling], num_classes)
        measured = {"pooling": pooling, "num_labels": len(train.labels), "num_validation_labels": 0}
        measured |= {"validation_accuracy": probe.validation_accuracy, "settings": probe.settings}
        measurements.add({**line, **measured}, probe.probabilities)
