"""The splits of a source: their names, the rows of each role, and which training images keep their labels.

The roles are `unlabeled`, `train`, `validation` and `test`. A run carves a missing validation or test split from train.
Nothing here decodes images: labels and the config are enough.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
from datasets.data_files import SPLIT_KEYWORDS

from mae_hf.config.data import NUM_FOLDS, DataConfig
from mae_hf.errors import require, warn

FOLD_FRACTION = 0.2  # STL-10: 1,000 of 5,000
FOLD_SEED = 0
MIN_PER_CLASS = 2  # one to train on, one to validate on

NO_SPLIT = "files"  # the role of images without a split
# How an image is named in tables: its file in the source, if it has one, its split with its row there, and its class.
NAMED = pa.schema({"file": pa.string(), "split": pa.string(), "row": pa.int64(), "label": pa.string()})

# The names that the datasets library takes for splits, and two of our own.
_ROLES = {word: str(role) for role, words in SPLIT_KEYWORDS.items() for word in words}
_ROLES |= {"unlabeled": "unlabeled", "unlabelled": "unlabeled"}


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a source, with n images."""

    source: str  # as the user named it
    role: str  # `unlabeled`, `train`, `validation` or `test`
    # with the column `image`, not decoded, or uint8 (n, H, W) or (n, H, W, 3), or paths of files, object (n,)
    images: datasets.Dataset | np.ndarray
    labels: np.ndarray | None  # np.int64 (n,), None if there are none; a train split always has some
    class_names: tuple[str, ...] | None  # None if there are no labels
    fingerprint: str  # changes with the rows or their files
    folds: tuple[np.ndarray, ...] | None = None  # the predefined folds of STL-10's train split, as row numbers

    def __len__(self) -> int:
        return len(self.images)

    def encoded(self, start: int, stop: int) -> list[bytes | str | np.ndarray]:
        """The images of rows `start` to `stop`: bytes of an image file, its path, or raw pixels."""
        if isinstance(self.images, np.ndarray):
            return list(self.images[start:stop])
        column = self.images[start:stop]["image"]
        return [b"" if image is None else image["bytes"] or image["path"] for image in column]

    def where(self, row: int) -> str:
        """The name of a row in a message: the file, or the row and the split."""
        name = f"row {row} of {self.role} in {self.source}"
        if isinstance(self.images, np.ndarray):
            return str(self.images[row]) if self.images.dtype == object else name
        image = self.images[row]["image"]
        if image is None or not image["path"]:
            return name
        return f"{name} ({image['path']})" if image["bytes"] else image["path"]

    def file_names(self) -> list[str | None]:
        """The file name of each row, relative to the folder of the source; None where pixels have no file."""
        if isinstance(self.images, np.ndarray):
            paths = list(self.images) if self.images.dtype == object else [None] * len(self)
        else:
            paths = self.images.flatten().select_columns("image.path")[:]["image.path"]
        folder = os.path.abspath(os.path.expanduser(self.source)) + os.sep
        return [printable(path.removeprefix(folder)) if path else None for path in paths]


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a split, np.int64 (n,)."""

    split: Split
    rows: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The labels of these rows, all 0 if the split has none."""
        return np.zeros(len(self.rows), np.int64) if self.split.labels is None else self.split.labels[self.rows]


def printable(name: str) -> str:
    """A name of a file or folder, with a replacement character for each byte that is not UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def name_images(split: Split) -> pa.Table:
    """Return the table `NAMED` of all images of a split."""
    labels = [-1] * len(split) if split.labels is None else split.labels.tolist()
    classes = [None if label < 0 else printable((split.class_names or ())[label]) for label in labels]
    roles = [None if split.role == NO_SPLIT else split.role] * len(split)
    return pa.table([split.file_names(), roles, range(len(split)), classes], NAMED)


def role_of(name: str) -> str | None:
    """The role that a folder, file or Hub split of this name has, in any case of letters; None if it names no split."""
    return _ROLES.get(name.lower())


def names_by_role(source: str, names: Collection[str]) -> dict[str, str]:
    """Match names of splits to roles; a name that is no split's is left out with a warning.

    ConfigError if no name is a split's, or two names mean the same role.
    """
    found: dict[str, str] = {}
    for name in names:
        if role := role_of(name):
            twice = f"{source} has both {found.get(role)} and {name}, and both mean the split {role}"
            require(role not in found, f"{twice}: rename or remove one (--data.source)")
            found[role] = name
    ignored = ", ".join(name for name in names if not role_of(name))
    fix = "none is called train, validation, test or unlabeled, rename one (--data.source)"
    require(bool(found), f"{source} has the splits {ignored}: {fix}")
    if ignored:
        warn(f"{source}: left out {ignored}, the splits used are {', '.join(found)}")
    return found


def stratified_draw(labels: np.ndarray, num: int, seed: int | list[int]) -> np.ndarray:
    """Draw `num` of the rows of `labels` (n,), each class by its share (to within one image); all if n is smaller.

    Returns np.int64 (num,), ascending.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    position = np.empty(len(labels))  # of each shuffled row within its class, from 0 to 1
    for label in np.unique(labels):
        rows = np.flatnonzero(labels[order] == label)
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.sort(order[np.argsort(position, kind="stable")[:num]])


def draw_labels(labels: np.ndarray, fraction: float, seed: int | list[int]) -> np.ndarray:
    """Draw a fraction of each class at random, but at least two images of it, or its only one.

    With the same seed, a smaller fraction is a subset of a larger one. Returns row numbers np.int64, ascending.
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        drawn.append(rows[: max(MIN_PER_CLASS, round(fraction * len(rows)))])
    return np.sort(np.concatenate(drawn))


def carve(splits: dict[str, Split], config: DataConfig, usable: Callable[[Split], np.ndarray]) -> dict[str, Part]:
    """The rows of each role of a source; missing ones of validation and test are carved from train.

    `usable` gives the rows of a split whose images can be decoded. It is called only for a label set, because the set
    and each class in it must have the size that the config says.
    """
    parts = {role: Part(split, np.arange(len(split))) for role, split in splits.items()}
    if "train" not in parts:
        return parts
    if "test" not in parts and config.test_fraction:
        parts["train"], parts["test"] = set_aside(parts["train"], "test", config)
    if config.has_label_set:
        split = parts["train"].split
        rows = np.intersect1d(parts["train"].rows, usable(split))
        parts["train"] = Part(split, few_label_rows(split, rows, config))
        parts.pop("validation", None)  # the label set does not contain its labels
    if "validation" not in parts:
        parts["train"], parts["validation"] = set_aside(parts["train"], "validation", config)
    return parts


def set_aside(part: Part, role: str, config: DataConfig) -> tuple[Part, Part]:
    """Divide a part into the rows that stay and those drawn, by class, for validation or test."""
    split, rows = part.split, part.rows
    fraction = config.test_fraction if role == "test" else config.validation_fraction
    num = max(1, round(fraction * len(rows)))
    if role == "validation" and config.has_label_set and split.labels is not None:
        num = max(num, len(np.unique(part.labels)))  # so that each class can have one
    images = f"{len(rows)} images of {split.role} in {split.source}"
    fix = f"choose a smaller fraction or a larger source (--data.{role}_fraction)"
    require(num < len(rows), f"{role}_fraction {fraction} leaves none of the {images}: {fix}")
    drawn = rows[stratified_draw(part.labels, num, [config.split_seed, 0 if role == "test" else 1])]
    return Part(split, np.setdiff1d(rows, drawn)), Part(split, drawn)


def few_label_rows(split: Split, rows: np.ndarray, config: DataConfig) -> np.ndarray:
    """The rows of a labelled train split that `config.fold` or `config.label_fraction` keeps, np.int64, ascending.

    `rows`, np.int64 (n,), are those whose image can be decoded and is not set aside as test. ConfigError if the source
    has no such fold, or the fold overlaps with the rows set aside as test.
    """
    assert split.labels is not None
    if config.fold is None:
        assert config.label_fraction is not None
        return rows[draw_labels(split.labels[rows], config.label_fraction, [config.label_seed, 2])]
    if split.folds is None:
        return rows[draw_labels(split.labels[rows], FOLD_FRACTION, [FOLD_SEED, 3, config.fold])]
    num = len(split.folds)
    fix = f"the fold_indices.txt of {split.source} has {num} folds, choose 0 to {num - 1} (--data.fold)"
    require(config.fold < num, f"fold {config.fold} does not exist: {fix}")
    fold = np.sort(split.folds[config.fold])
    overlap = f"fold {config.fold} of {split.source} has images of train that are set aside as test"
    require(bool(np.isin(fold, rows).all()), f"{overlap}: give the source a test split (--data.test_fraction 0)")
    return fold


def describe_few_labels(split: Split, config: DataConfig) -> str:
    """Say which labels a result is based on, and whether the draw is official; empty if all labels are used."""
    if config.fold is not None and split.folds is not None:
        return f"official fold {config.fold} of {len(split.folds)} (fold_indices.txt)"
    if config.fold is not None:
        return f"unofficial fold {config.fold} of {NUM_FOLDS} (drawn by class with seed {FOLD_SEED})"
    if config.label_fraction is None:
        return ""
    if config.label_fraction == 1:
        return "all labels of train, including the validation labels"
    draw = f"drawn by class with seed {config.label_seed}, at least {MIN_PER_CLASS} a class"
    return f"{100 * config.label_fraction:g} % of the labels ({draw})"
