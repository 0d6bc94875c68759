"""What a source contains: its splits by role, checked, with the images still encoded.

A source is `digits`, a folder with the official STL-10 binaries, parquet files, a folder of images, or a Hub dataset.
Its files decide which of these it is.
"""

import contextlib
import hashlib
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np

from mae_hf.config.data import STL10_CLASSES, DataConfig, check_class_names
from mae_hf.data.folders import list_folder, read_image_folder, split_of_files
from mae_hf.data.locations import are_files, check_source
from mae_hf.data.readers import read_datasets
from mae_hf.data.splits import NO_SPLIT, Split, stratified_draw
from mae_hf.errors import ConfigError, require

OFFICIAL_COUNTS = {"jxie/stl10": {"train": 5_000, "test": 8_000, "unlabeled": 100_000}}
OFFICIAL_CLASSES = {"jxie/stl10": STL10_CLASSES}
MAX_CLASSES = 2**17  # that labels without names can make
STL10_BYTES = 3 * 96 * 96


def load_splits(config: DataConfig, source: str) -> dict[str, Split]:
    """The splits of a source by role: some of `unlabeled`, `train`, `validation`, `test`.

    ConfigError if the source does not exist or cannot be read, a column is missing, a split is empty, or counts, class
    names or labels are wrong.
    """
    found = read_source(config, source)
    splits = {split.role: split for split in found}
    twice = f"{source} has two unlabeled splits, because a train split without labels counts as unlabeled"
    require(len(splits) == len(found), f"{twice}: name them as two sources (--data.source)")
    for role, split in splits.items():
        require(len(split) > 0, f"{role} of {source} is empty: remove it or add images (--data.source)")
        expected = OFFICIAL_COUNTS.get(source, {}).get(role, len(split))
        differs = f"{role} of {source} has {len(split)} images, not the official {expected}"
        fix = "the download is incomplete or the dataset has changed, pin a revision (--data.revision)"
        require(len(split) == expected, f"{differs}: {fix}")
    return _name_classes(source, splits, config.class_names)


def read_source(config: DataConfig, source: str) -> list[Split]:
    """Return the splits of a source without the checks of `load_splits`: class names and labels may be wrong."""
    check_source(source)
    path = Path(source).expanduser()
    if source == "digits":
        return _digits()
    if _has_binaries(path):
        return _stl10_binaries(source, path)
    if is_image_folder(path) and not any(path.rglob("metadata.csv")) and not any(path.rglob("metadata.jsonl")):
        return read_image_folder(source, path)
    return [from_dataset(source, *item) for item in read_datasets(source, config.revision).items()]


def list_images(config: DataConfig, *, like_training: bool) -> list[Split]:
    """Return the images of the config's sources, still encoded, by split.

    The sources are image files, one folder of images in any layout, or one source as `load_splits` takes it. In a
    folder of images, the label is the name of the folder that holds the image. With `like_training`, a folder in a
    layout of `load_splits` is read by it, so that its images share the cache of training.
    """
    source = config.sources[0]
    if are_files(config.sources):
        files = [os.path.expanduser(file) for file in config.sources]
        return [split_of_files("the command line", NO_SPLIT, "", files, [""] * len(files))]
    folder = Path(source).expanduser()
    if is_image_folder(folder):
        with contextlib.suppress(ConfigError):  # another layout, such as images beside split folders
            if like_training:
                return list(load_splits(config, source).values())
        if found := list_folder(source, folder):
            return found
    return list(load_splits(config, source).values())


def is_image_folder(path: Path) -> bool:
    """Whether a folder can only be one of image files."""
    return path.is_dir() and not _has_binaries(path) and not any(path.rglob("*.parquet"))


def _has_binaries(path: Path) -> bool:
    return any((path / f"{name}_X.bin").is_file() for name in ("unlabeled", "train", "test"))


def _digits() -> list[Split]:
    """scikit-learn's 1,797 real 8x8 digits: 1,000 unlabeled, 30 per class to train on, 497 to test on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    test = stratified_draw(labels, 497, seed=0)
    rest = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(labels)), test))
    train = np.sort(np.concatenate([rest[labels[rest] == label][:30] for label in range(10)]))
    unlabeled = np.setdiff1d(rest, train)
    names = tuple(map(str, range(10)))
    return [
        Split("digits", "unlabeled", pixels[unlabeled], None, None, "digits-1-unlabeled"),
        Split("digits", "train", pixels[train], labels[train], names, "digits-1-train"),
        Split("digits", "test", pixels[test], labels[test], names, "digits-1-test"),
    ]


def _stl10_binaries(source: str, folder: Path) -> list[Split]:
    """The official binary files: images uint8, channel first and column-major, labels from 1 to 10."""
    names_file = folder / "class_names.txt"
    names = tuple(names_file.read_text(errors="replace").split()) if names_file.is_file() else STL10_CLASSES
    splits = []
    for role in ("unlabeled", "train", "test"):
        images_file, labels_file = folder / f"{role}_X.bin", folder / f"{role}_y.bin"
        if not images_file.is_file():
            continue
        status = images_file.stat()
        differs = f"{images_file} has {status.st_size} bytes, not a multiple of {STL10_BYTES} (3x96x96)"
        require(status.st_size % STL10_BYTES == 0, f"{differs}: the file is cut short or not STL-10's, unpack it again")
        num = status.st_size // STL10_BYTES
        columns = np.memmap(images_file, np.uint8, "r", shape=(num, 3, 96, 96)) if num else np.empty((0, 3, 96, 96))
        labels = None
        if role != "unlabeled":
            require(labels_file.is_file(), f"{labels_file} is missing: put it beside {images_file.name}")
            labels = np.fromfile(labels_file, np.uint8).astype(np.int64) - 1
            differs = f"{labels_file} has {len(labels)} labels for the {num} images of {images_file.name}"
            require(len(labels) == num, f"{differs}: the files do not belong together, unpack both again")
        folds = _read_folds(folder / "fold_indices.txt", num) if role == "train" else None
        state = f"{images_file.resolve()} {status.st_size} {status.st_mtime_ns}"
        images, fingerprint = columns.transpose(0, 3, 2, 1), hashlib.sha256(state.encode()).hexdigest()[:16]
        splits.append(Split(source, role, images, labels, None if labels is None else names, fingerprint, folds))
    return splits


def _read_folds(file: Path, num: int) -> tuple[np.ndarray, ...] | None:
    if not file.is_file():
        return None
    try:
        folds = tuple(np.array(line.split(), np.int64) for line in file.read_text().splitlines() if line.strip())
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{file} is not a list of row numbers, a fold per line ({error}): unpack it again") from error
    fits = all(fold.min() >= 0 and fold.max() < num for fold in folds)
    require(fits, f"{file} names rows outside the {num} training images: it belongs to other files, remove it")
    return folds


def from_dataset(source: str, role: str, dataset: datasets.Dataset) -> Split:
    """A split from the columns `image` and `label` of a dataset; a train split without labels is unlabeled."""
    fingerprint = dataset._fingerprint  # of the files, before any change of columns
    column = next((name for name in ("image", "img") if name in dataset.column_names), None)
    if column is None:
        others = ", ".join(dataset.column_names) or "no columns"
        raise ConfigError(f"{role} of {source} has no column `image`, only {others}: rename one (--data.source)")
    try:
        images = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # pyarrow's, or a type that Image cannot hold
        differs = f"column `{column}` of {role} in {source} holds {dataset.features[column]}, not encoded images"
        raise ConfigError(f"{differs}: save it as datasets.Image() (--data.source)") from error
    images = images.rename_column(column, "image") if column != "image" else images
    column = next((name for name in ("label", "labels") if name in dataset.column_names), None)
    if role == "unlabeled" or column is None:
        return Split(source, "unlabeled" if role == "train" else role, images, None, None, fingerprint)
    feature = dataset.features[column]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    values = dataset.select_columns([column])[:][column]
    if not all(value is None or (isinstance(value, int) and abs(value) < 2**63) for value in values):
        differs = f"column `{column}` of {role} in {source} holds {feature}, not class numbers"
        raise ConfigError(f"{differs}: save it as ClassLabel with Dataset.class_encode_column (--data.source)")
    labels = np.array([-1 if value is None else value for value in values], np.int64)
    return Split(source, role, images, labels, names, fingerprint)


def _name_classes(source: str, splits: dict[str, Split], configured: tuple[str, ...] | None) -> dict[str, Split]:
    """Check class names and labels; plain numbers take the expected names, or their digits."""
    labels = {role: split.labels for role, split in splits.items() if split.labels is not None}
    if not labels:
        return splits
    named = {role: names for role in labels if (names := splits[role].class_names)}
    first, names = next(iter(named.items()), ("", ()))
    for role, others in named.items():
        differ = f"{', '.join(names)} in {first}, {', '.join(others)} in {role}"
        fix = "give both splits the same classes (--data.source)"
        require(others == names, f"class names of {source} differ: {differ}: {fix}")
    expected: tuple[str, ...] = tuple(configured or OFFICIAL_CLASSES.get(source) or ())
    if names and expected and names != expected:
        fix = "use the source's names (--data.class_names null)" if configured else "pin a revision (--data.revision)"
        accept = f"accept them (--data.class_names {shlex.quote(json.dumps(names, ensure_ascii=False))})"
        raise ConfigError(f"{source} has the classes {', '.join(names)}, not {', '.join(expected)}: {fix} or {accept}")
    names = names or expected
    if not names:
        highest = max(int(values.max()) for values in labels.values())
        too_many = f"{source} has the label {highest}, which makes more than {MAX_CLASSES} classes"
        require(highest < MAX_CLASSES, f"{too_many}: number them from 0, or name them in order (--data.class_names)")
        names = tuple(map(str, range(highest + 1)))
    check_class_names(names, source)
    for role, values in labels.items():
        wrong = np.flatnonzero((values < 0) | (values >= len(names)))
        if len(wrong):
            row, allowed = int(wrong[0]), f"0 to {len(names) - 1} ({len(wrong)} rows are wrong)"
            fix = "correct them, call a split without labels unlabeled, or name all classes (--data.class_names)"
            raise ConfigError(f"{splits[role].where(row)} has label {values[row]}, allowed are {allowed}: {fix}")
    return splits | {role: replace(splits[role], class_names=names) for role in labels}
