"""The label sets of a protocol: ten folds, or budgets with several draws each."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.data import NUM_FOLDS, DataConfig
from mae_hf.data.splits import Split, describe_few_labels

BUDGETS = (0.01, 0.05, 0.1, 0.25, 1.0)


@dataclass(frozen=True)
class LabelSet:
    """One set of labels to learn from.

    Args:
        name: of its lines and run folders, such as `fold-3` or `budget-0.05-draw-1`.
        fraction: part of the labels, None for a fold.
        draw: number of the fold, or of the draw of this budget.
        data: the data section that restricts the labels to this set.
    """

    name: str
    fraction: float | None
    draw: int
    data: DataConfig


def label_sets(config: FewLabelsConfig, split: Split, method: str) -> list[LabelSet]:
    """The label sets that a method has to be measured on.

    All labels are one set, whatever the draw: a probe is measured on it once, fine-tuning with several seeds.

    Args:
        config: protocol, draws, and the data section that is restricted.
        split: the labelled train split, which may have official folds.
        method: `knn`, `linear` or `finetune`.
    """
    if config.protocol == "folds":
        num_folds = NUM_FOLDS if split.folds is None else len(split.folds)
        return [
            LabelSet(f"fold-{fold}", None, fold, dataclasses.replace(config.data, fold=fold))
            for fold in range(num_folds)
        ]
    return [
        LabelSet(
            f"budget-{fraction:g}-draw-{draw}",
            fraction,
            draw,
            dataclasses.replace(config.data, label_fraction=fraction, label_seed=draw if fraction < 1 else 0),
        )
        for fraction in BUDGETS
        for draw in range(config.draws if fraction < 1 or method == "finetune" else 1)
    ]


def describe_set(label_set: LabelSet, split: Split) -> dict[str, Any]:
    """What a line of results says of its label set."""
    names = {"label_set": label_set.name, "fraction": label_set.fraction, "draw": label_set.draw}
    return {**names, "labels": describe_few_labels(split, label_set.data)}


def describe_protocol(config: FewLabelsConfig, split: Split) -> str:
    """One line for every output: what the labels are, and whether the protocol is official."""
    if config.protocol == "budgets":
        parts = ", ".join(f"{100 * fraction:g}" for fraction in BUDGETS)
        return (
            f"UNOFFICIAL label budgets: {parts} % of the labels, drawn by class with fixed seeds, two a class at least"
        )
    if split.folds is None:
        return f"UNOFFICIAL folds: {NUM_FOLDS} of a fifth of the training images, drawn by class with a fixed seed"
    return f"official protocol: the {len(split.folds)} predefined folds of fold_indices.txt"


def is_official(config: FewLabelsConfig, split: Split) -> bool:
    """Whether the results follow the official protocol."""
    return config.protocol == "folds" and split.folds is not None
