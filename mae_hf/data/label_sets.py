"""Which training images keep their labels: a fold of STL-10's protocol, or a part of each class.

Nothing here looks at images: labels and the config are enough.
"""

import numpy as np

from mae_hf.config.data import NUM_FOLDS, DataConfig
from mae_hf.data.sources import Split
from mae_hf.errors import require

FOLD_FRACTION = 0.2  # STL-10: 1,000 of 5,000
FOLD_SEED = 0
MIN_PER_CLASS = 2  # one to train on, one to validate on


def draw_labels(labels: np.ndarray, fraction: float, seed: int | list[int]) -> np.ndarray:
    """Draws a part of each class at random: at least two images of it, or all that there are.

    With the same seed a smaller part is within a greater one.

    Args:
        labels: integers (n,).
        fraction: part of each class, rounded to whole images.
        seed: seed of the draw.

    Returns:
        Row numbers np.int64, ascending.
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        drawn.append(rows[: max(MIN_PER_CLASS, round(fraction * len(rows)))])
    return np.sort(np.concatenate(drawn))


def few_label_rows(split: Split, rows: np.ndarray, config: DataConfig) -> np.ndarray:
    """Those of the rows of a train split that `config.fold` or `config.label_fraction` leaves.

    Args:
        split: the labelled train split.
        rows: np.int64 (n,), its rows that may be used: those of images that can be decoded, without a part that serves
            as test.
        config: where labels are few.

    Returns:
        Row numbers of the split, np.int64, ascending; all of them where the config names no set.

    Raises:
        ConfigError: the source's own folds are fewer, or overlap with the part that serves as test.
    """
    assert split.labels is not None
    if config.fold is None:
        if config.label_fraction is None:
            return rows
        return rows[draw_labels(split.labels[rows], config.label_fraction, [config.label_seed, 2])]
    if split.folds is None:
        return rows[draw_labels(split.labels[rows], FOLD_FRACTION, [FOLD_SEED, 3, config.fold])]
    require(
        config.fold < len(split.folds),
        f"fold {config.fold} is not there: the fold_indices.txt of {split.source} has {len(split.folds)} folds, choose "
        f"0 to {len(split.folds) - 1} (--data.fold)",
    )
    fold = np.sort(split.folds[config.fold])
    require(
        bool(np.isin(fold, rows).all()),
        f"fold {config.fold} of {split.source} has images of train that are set aside as test: give the source a test "
        "split of its own (--data.test_fraction 0)",
    )
    return fold


def describe_few_labels(split: Split, config: DataConfig) -> str:
    """What is to be said wherever a result on few labels is: which labels, and whether the draw is official.

    Returns:
        Empty where the config names no set.
    """
    if config.fold is not None:
        if split.folds is not None:
            return f"official fold {config.fold} of {len(split.folds)} (fold_indices.txt)"
        return f"unofficial fold {config.fold} of {NUM_FOLDS} (drawn by class with seed {FOLD_SEED})"
    if config.label_fraction == 1:
        return "all labels of train, those of validation among them"
    if config.label_fraction is not None:
        return (
            f"{100 * config.label_fraction:g} % of the labels (drawn by class with seed {config.label_seed}, at least "
            f"{MIN_PER_CLASS} a class)"
        )
    return ""
