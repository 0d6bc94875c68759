"""The label sets of a protocol (ten folds, or budgets with several draws each) and the images that they come from."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.data import NUM_FOLDS, DataConfig
from mae_hf.data.dataset import ImageSet, load_labelled_images
from mae_hf.data.splits import Split, describe_few_labels, few_label_rows
from mae_hf.leakage.audit import seen_test_images
from mae_hf.leakage.record import Audit

BUDGETS = (0.01, 0.05, 0.1, 0.25, 1.0)


@dataclass(frozen=True)
class LabelSet:
    """One set of labels to learn from."""

    name: str  # of its lines and run folders, such as `fold-3` or `budget-0.05-draw-1`
    fraction: float | None  # part of the labels; None for a fold
    draw: int  # number of the fold, or of the draw of this budget
    data: DataConfig  # restricts the labels to this set


@dataclass(frozen=True, eq=False)
class ProtocolImages:
    """The images that label sets are taken from, and the test images that every method is scored on."""

    train: tuple[ImageSet, ...]  # all labelled train images that can be decoded, in parts
    test: ImageSet
    seen: NDArray[np.bool_] | None  # whether the encoder's pre-training has seen each test image; None if unknown

    @property
    def split(self) -> Split:
        """The labelled train split."""
        return self.train[0].parts[0][0].split

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of the train split that have an image and are not test images, ascending."""
        return np.sort(np.concatenate([part.split_rows for part in self.train]))

    @property
    def fingerprint(self) -> str:
        """Text that changes with any image or label."""
        return " ".join(part.fingerprint for part in (*self.train, self.test))

    def rows_of(self, label_set: LabelSet) -> NDArray[np.int64]:
        """Return the rows of the train split in a label set: the same images that fine-tuning on it gets."""
        return few_label_rows(self.split, self.rows, label_set.data)


def load_protocol_images(data: DataConfig, image_size: int, audit: Audit | None) -> ProtocolImages:
    """Open the labelled images of a source.

    Args:
        data: the source; its own validation split is not used.
        image_size: side of the images.
        audit: the audit of the encoder's pre-training; None if it has none.

    Raises:
        ConfigError: the source is wrong, or an image of it cannot be decoded.
    """
    images = load_labelled_images(dataclasses.replace(data, label_fraction=1.0), image_size)
    train = images["train"], images["validation"]
    return ProtocolImages(train, images["test"], seen_test_images(audit, images["test"]))


def label_sets(config: FewLabelsConfig, split: Split, method: str) -> list[LabelSet]:
    """Return the label sets to measure a method on.

    All labels are a single set, whatever the draw: a probe is measured on it once, fine-tuning with several seeds.

    Args:
        config: protocol, draws, and the data section that is restricted.
        split: the labelled train split, which may have official folds.
        method: `knn`, `linear` or `finetune`.
    """
    if config.protocol == "folds":
        num_folds = NUM_FOLDS if split.folds is None else len(split.folds)
        folds = {fold: dataclasses.replace(config.data, fold=fold) for fold in range(num_folds)}
        return [LabelSet(f"fold-{fold}", None, fold, data) for fold, data in folds.items()]
    sets = []
    for fraction in BUDGETS:
        for draw in range(config.draws if fraction < 1 or method == "finetune" else 1):
            seed = draw if fraction < 1 else 0
            data = dataclasses.replace(config.data, label_fraction=fraction, label_seed=seed)
            sets.append(LabelSet(f"budget-{fraction:g}-draw-{draw}", fraction, draw, data))
    return sets


def describe_set(label_set: LabelSet, split: Split) -> dict[str, Any]:
    """Return what a line of results says about its label set."""
    names = {"label_set": label_set.name, "fraction": label_set.fraction, "draw": label_set.draw}
    return {**names, "labels": describe_few_labels(split, label_set.data)}


def describe_protocol(config: FewLabelsConfig, split: Split) -> str:
    """Return a line for every output: what the labels are, and whether the protocol is official."""
    if config.protocol == "budgets":
        parts = ", ".join(f"{100 * part:g}" for part in BUDGETS)
        return (
            f"UNOFFICIAL label budgets: {parts} % of the labels, drawn by class with fixed seeds, two a class at least"
        )
    if split.folds is None:
        return f"UNOFFICIAL folds: {NUM_FOLDS} of a fifth of the training images, drawn by class with a fixed seed"
    return f"official protocol: the {len(split.folds)} predefined folds of fold_indices.txt"


def is_official(config: FewLabelsConfig, split: Split) -> bool:
    """Return whether the results follow the official protocol."""
    return config.protocol == "folds" and split.folds is not None
