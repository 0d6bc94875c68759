"""Probes of frozen features on one label set after the other: features are computed once, and kept.

Shapes: n images, D features.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from mae_hf.config import DataConfig
from mae_hf.data.images import ImageSet
from mae_hf.evaluation.inference import extract_features
from mae_hf.evaluation.probes import Labelled, Probe, knn_probe, linear_probe
from mae_hf.evaluation.probing import POOLINGS, scores_of
from mae_hf.few_labels.measurements import Results

_PROBES: dict[str, Callable[..., Probe]] = {"knn": knn_probe, "linear": linear_probe}


@dataclass(frozen=True)
class FrozenFeatures:
    """The features of every labelled train image and of the test images, by pooling.

    Args:
        train: pooling -> float (n, D).
        rows: int (n,), the number of each train image in its split.
        train_labels: int (n,).
        test: pooling -> float (n_test, D).
        test_labels: int (n_test,).
    """

    train: dict[str, np.ndarray]
    rows: np.ndarray
    train_labels: np.ndarray
    test: dict[str, np.ndarray]
    test_labels: np.ndarray

    def labelled(self, rows: np.ndarray, pooling: str) -> Labelled:
        """The features and labels of these rows of the train split; an image that was left out is not there."""
        here = np.isin(self.rows, rows)
        return Labelled(self.train[pooling][here], self.train_labels[here])


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits that change when a weight does."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_features(
    path: Path,
    accelerator: Accelerator,
    encoder: nn.Module,
    train: Sequence[ImageSet],
    test: ImageSet,
    data: DataConfig,
    batch_size: int,
) -> FrozenFeatures:
    """The features of all images, read from a file or computed and kept in it.

    Args:
        path: the .npz file; one that was made by other weights or from other images is made anew.
        encoder: a `ViTModel` in eval mode.
        train: the labelled train images, one or more rows of the same split.
        batch_size: images at once.
    """
    key = " ".join([weights_digest(encoder), *(images.fingerprint for images in (*train, test))])
    names = [f"{part}-{pooling}" for part in ("train", "test") for pooling in POOLINGS]
    arrays: dict[str, Any] = {}
    if path.exists():
        with np.load(path) as file:
            arrays = {name: file[name] for name in names} if str(file["key"]) == key else {}
    if not arrays:
        prepared = accelerator.prepare(encoder)
        found = [extract_features(accelerator, prepared, images, data, batch_size) for images in (*train, test)]
        for pooling in POOLINGS:
            arrays[f"train-{pooling}"] = np.concatenate([of_part[pooling] for of_part in found[:-1]])
            arrays[f"test-{pooling}"] = found[-1][pooling]
        beside = path.with_suffix(".partial.npz")
        np.savez(beside, key=np.array(key), **arrays)
        os.replace(beside, path)
    return FrozenFeatures(
        train={pooling: arrays[f"train-{pooling}"] for pooling in POOLINGS},
        rows=np.concatenate([images.rows for images in train]),
        train_labels=np.concatenate([images.labels for images in train]),
        test={pooling: arrays[f"test-{pooling}"] for pooling in POOLINGS},
        test_labels=test.labels,
    )


def measure_probe(
    results: Results,
    line: dict[str, Any],
    features: FrozenFeatures,
    rows: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Adds a line for each pooling that `results` lacks: a probe that learns from these rows, on all test images.

    The strength of `linear` is chosen by cross-validation among the labels of the set, and nothing else.

    Args:
        line: what is known of the measurement: `label_set`, `fraction`, `arm` and `method` among it.
        rows: rows of the train split, the labels of this set.
        class_names: the name of each class.
    """
    for pooling in POOLINGS:
        if results.has(line["label_set"], line["arm"], line["method"], pooling):
            continue
        train = features.labelled(rows, pooling)
        probe = _PROBES[line["method"]](train, None, features.test[pooling], len(class_names))
        scores = scores_of(probe.probabilities, features.test_labels, class_names)
        measured = {"pooling": pooling, "num_labels": len(train.labels), "num_validation_labels": 0, **scores}
        results.add({**line, **measured, "validation_accuracy": probe.validation_accuracy, "settings": probe.settings})
