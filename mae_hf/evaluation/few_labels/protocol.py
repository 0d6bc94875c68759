"""The label sets of a protocol (ten folds, or budgets with several draws each) and the images that they come from."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.data import NUM_FOLDS, DataConfig
from mae_hf.data.dataset import ImageSet, load_labelled_images
from mae_hf.data.splits import Split, few_label_rows

BUDGETS = (0.01, 0.05, 0.1, 0.25, 1.0)


@dataclass(frozen=True, eq=False)
class LabelSet:
    """One set of labels to learn from."""

    name: str  # of its lines and run folders, such as `fold-3` or `budget-0.05-draw-1`
    draw: int  # number of the fold, or of the draw of this budget
    data: DataConfig  # restricts the labels to this set
    rows: NDArray[np.int64]  # its rows of the train split: the same images for every method


@dataclass(frozen=True, eq=False)
class Protocol:
    """What is measured: a method on each of its label sets."""

    config: FewLabelsConfig
    split: Split  # the labelled train split, which may have official folds
    rows: NDArray[np.int64]  # the rows of it that have an image and are not test images, ascending

    @property
    def is_official(self) -> bool:
        """Whether the results follow the official protocol of STL-10."""
        return self.config.protocol == "folds" and self.split.folds is not None

    @property
    def note(self) -> str:
        """A line for every output: what the labels are, and whether the protocol is official."""
        if self.config.protocol == "budgets":
            parts = ", ".join(f"{100 * part:g}" for part in BUDGETS)
            drawn = "drawn by class with fixed seeds, two a class at least"
            return f"UNOFFICIAL label budgets: {parts} % of the labels, {drawn}"
        if self.split.folds is None:
            return f"UNOFFICIAL folds: {NUM_FOLDS} of a fifth of the training images, drawn by class with a fixed seed"
        return f"official protocol: the {len(self.split.folds)} predefined folds of fold_indices.txt"

    def label_sets(self, method: str) -> list[LabelSet]:
        """Return the label sets to measure `knn`, `linear` or `finetune` on.

        All labels are a single set, whatever the draw: a probe is measured on it once, fine-tuning with several seeds.
        """
        if self.config.protocol == "folds":
            num_folds = NUM_FOLDS if self.split.folds is None else len(self.split.folds)
            return [self._label_set(f"fold-{fold}", fold, fold=fold) for fold in range(num_folds)]
        sets = []
        for fraction in BUDGETS:
            for draw in range(self.config.draws if fraction < 1 or method == "finetune" else 1):
                name, seed = f"budget-{fraction:g}-draw-{draw}", draw if fraction < 1 else 0
                sets.append(self._label_set(name, draw, label_fraction=fraction, label_seed=seed))
        return sets

    def _label_set(self, name: str, draw: int, **restriction: Any) -> LabelSet:
        data = replace(self.config.data, **restriction)
        return LabelSet(name, draw, data, few_label_rows(self.split, self.rows, data))


def load_protocol_images(data: DataConfig, image_size: int) -> tuple[ImageSet, ImageSet]:
    """Return all labelled train images that can be decoded and are not test images, and the test images.

    A validation split of the source is not used. A source without the images is a ConfigError.
    """
    images = load_labelled_images(replace(data, label_fraction=1.0), image_size)
    return ImageSet([*images["train"].parts, *images["validation"].parts]), images["test"]
