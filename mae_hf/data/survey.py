"""What a source of images contains, and what is wrong with it: splits, classes, sizes, channels, files."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import ExifTags

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import Store, describe_bad, read_or_decode
from mae_hf.data.dataset import ImageSet
from mae_hf.data.decode import FIX_BAD_IMAGE, IMAGES_PER_TASK, open_image
from mae_hf.data.folders import list_folder
from mae_hf.data.sources import MAX_CLASSES, is_image_folder, load_splits, read_source
from mae_hf.data.splits import MIN_PER_CLASS, NO_SPLIT, Split
from mae_hf.errors import ConfigError, Finding, PlainWarning, shorten
from mae_hf.progress import Progress

MAX_IMBALANCE = 10  # the largest class by the smallest
MAX_ASPECT = 2  # the longer side by the shorter one
FEW_IMAGES = 1000


def find_splits(data: DataConfig) -> tuple[list[Split], list[Finding]]:
    """Return the splits of the only source, as far as they can be read, and what is wrong with its layout or labels.

    ConfigError if the source does not exist.
    """
    source, splits, findings = data.sources[0], list[Split](), list[Finding]()
    folder = Path(source).expanduser()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PlainWarning)
        try:
            splits = list(load_splits(data, source).values())
        except ConfigError as error:
            findings.append(Finding("fault", str(error)))
            try:
                splits = list_folder(source, folder) if is_image_folder(folder) else read_source(data, source)
            except ConfigError:  # the same one
                if not folder.exists():
                    raise
    notes = dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, PlainWarning))
    return splits, [*findings, *(Finding("note", text) for text in notes)]


def describe_classes(splits: Sequence[Split]) -> Iterator[Finding]:
    """Yield the numbers of images and classes, and what is wrong with the classes and labels."""
    for split in splits:
        if split.labels is None or not len(split):
            yield Finding("ok", f"{split.role}: {len(split):,} images without labels")
            continue
        labels = split.labels[(split.labels >= 0) & (split.labels < MAX_CLASSES)]
        names = split.class_names or tuple(map(str, range(labels.max(initial=0) + 1)))
        counts = pd.Series(np.bincount(labels, minlength=len(names))[: len(names)], list(names)).sort_values()
        extremes = " to ".join(f"{count:,} ({name})" for name, count in counts.iloc[[0, -1]].items())
        yield Finding("ok", f"{split.role}: {len(split):,} images, classes: {len(names)}, images per class: {extremes}")
        if split.role != "train":
            continue
        if len(counts) == 1:
            yield Finding("fault", "train has a single class, and a classifier needs two", "add a class")
        if len(few := counts.index[counts < MIN_PER_CLASS]):
            fix = f"add images or leave the class out: each needs {MIN_PER_CLASS}, one to train on and one to validate"
            yield Finding("fault", f"classes with fewer than {MIN_PER_CLASS} images in train: {shorten(few)}", fix)
        if len(alike := counts.index[counts.index.str.strip().str.casefold().duplicated(keep=False)]):
            yield Finding("fault", f"classes that differ only in capitals or spaces: {shorten(alike)}", "join them")
        if counts.iloc[-1] > MAX_IMBALANCE * counts.iloc[0]:
            yield Finding("note", "the classes of train are unbalanced: judge by F1 rather than accuracy")
    if splits:
        yield from _check_labels(splits)


def _check_labels(splits: Sequence[Split]) -> Iterator[Finding]:
    """Yield what the splits lack for pre-training, fine-tuning and a test."""
    labelled = {split.role: split.labels is not None for split in splits if split.role not in ("unlabeled", NO_SPLIT)}
    if not any(labelled.values()) and not labelled.keys() & {"validation", "test"}:
        yield Finding("note", "no image has a label. Pre-training needs none. For fine-tuning, add a train split")
    elif not (labelled.get("train") and all(labelled.values())):
        without = ", ".join(role for role in {"train": True} | labelled if not labelled.get(role))
        fix = "put all images of train and test into the folders of two or more classes, or add a column `label`"
        yield Finding("fault", f"labels are missing in {without}, so no classifier can be trained and tested", fix)
    elif "test" not in labelled:
        yield Finding("note", "the test split is missing: --data.test_fraction 0.2 sets a part of train aside")
    num = sum(len(split) for split in splits if split.role not in ("validation", "test"))
    if num < FEW_IMAGES:
        fix = "start from published weights (--config published_224)"
        yield Finding("note", f"images for pre-training: {num:,}. These are few for a start from scratch", fix)


def describe_files(splits: Sequence[Split], image_size: int) -> Iterator[Finding]:
    """Yield sizes and channels, as the files say, and which preset fits."""
    rows = [row for split in splits for row in _headers(split)]
    if not rows:
        return
    found = pd.DataFrame(rows, columns=["width", "height", "mode", "is_animated", "is_turned"])
    short, long = found[["width", "height"]].min(axis=1), found[["width", "height"]].max(axis=1)
    side = int(short.median())
    preset = "digits" if side < 64 else "stl10_tiny" if side < 160 else "published_224"
    ratio = f"longer sides: up to {(long / short).max():.1f} times the shorter"
    yield Finding("ok", f"shorter sides: {short.min()} to {short.max()} px, median {side} (--config {preset}); {ratio}")
    modes = found["mode"].value_counts()
    channels = "channels, by the modes of Pillow: " + ", ".join(f"{count:,} {mode}" for mode, count in modes.items())
    is_rgb = set(modes.index) == {"RGB"}
    yield Finding("ok", channels) if is_rgb else Finding("note", f"{channels}. All become RGB")
    cut = f"have a side over {MAX_ASPECT} times the other: only the centre is kept (--data.resize pad keeps all)"
    for chosen, problem in (
        (short < image_size, f"are smaller than {image_size} px, so they are enlarged (--image_size)"),
        (long > MAX_ASPECT * short, cut),
        (found["is_animated"], "are animated, and only the first frame is used"),
        (found["is_turned"], "are turned upright, as the camera says (EXIF)"),
    ):
        if chosen.any():
            yield Finding("note", f"{chosen.sum():,} of {len(found):,} images {problem}")


def _headers(split: Split) -> Iterator[tuple[int, int, str, bool, bool]]:
    """Yield width, height, mode, is animated, is turned of each image whose file can be opened, without decoding it."""
    with Progress(total=len(split), desc=f"reading sizes of {split.role}", unit="image") as progress:
        for start in range(0, len(split), IMAGES_PER_TASK):
            for encoded in split.encoded(start, start + IMAGES_PER_TASK):
                progress.update()
                if isinstance(encoded, np.ndarray):  # which may be mapped from a file, and needs not be read
                    yield encoded.shape[1], encoded.shape[0], "L" if encoded.ndim == 2 else "RGB", False, False
                    continue
                with contextlib.suppress(Exception), open_image(encoded) as image:  # decoding reports a bad image
                    tag = image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info else 1
                    yield (*image.size, image.mode, bool(getattr(image, "is_animated", False)), tag != 1)


def decode_splits(splits: Sequence[Split], image_size: int, data: DataConfig) -> tuple[list[Store], list[Finding]]:
    """Return the decoded images of each split, from the cache, and what cannot be decoded."""
    stores, findings = list[Store](), list[Finding]()
    for split in filter(len, splits):
        try:
            stores.append(read_or_decode(split, image_size, data))
        except ConfigError as error:
            findings.append(Finding("fault", str(error)))
    findings += [Finding("fault", describe_bad([store]), FIX_BAD_IMAGE) for store in stores if store.bad]
    return stores, findings


def channel_flags(images: ImageSet) -> str:
    """Return the mean and the standard deviation of the channels as the flags that normalise by them."""
    sums = squares = np.zeros(3, np.uint64)
    for start in range(0, len(images), 512):
        batch = images.batch(np.arange(start, min(start + 512, len(images)))).numpy()
        pixels = batch.reshape(-1, 3 * images.shape[1])  # long rows add up three times as fast as triples do
        sums = sums + pixels.sum(0, np.uint64).reshape(-1, 3).sum(0)
        squares = squares + np.square(pixels, dtype=np.uint16).sum(0, np.uint64).reshape(-1, 3).sum(0)
    num_pixels = len(images) * images.shape[0] * images.shape[1]
    mean = sums / num_pixels / 255
    flags = {"image_mean": mean, "image_std": np.sqrt(squares / num_pixels / 255**2 - mean**2)}
    return " ".join(f"--data.{flag} [{','.join(f'{value:.4f}' for value in values)}]" for flag, values in flags.items())
