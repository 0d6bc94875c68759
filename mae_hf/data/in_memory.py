"""Images in memory become a source: a folder of parquet files in the cache, named after their fingerprint.

A config can name this folder, so that a run can be resumed, repeated and compared like a run on any other source.
"""

import hashlib
import io
import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mae_hf.data.decode import to_rgb
from mae_hf.data.sources import from_dataset
from mae_hf.data.splits import Split, names_by_role
from mae_hf.errors import ConfigError, require
from mae_hf.files import write_folder

_ROWS = 100  # written at a time
_KINDS = "a folder or other source, a datasets.Dataset, a list of PIL images or of image files, or splits of these"


def store_images(data: Any, labels: Any, cache: Path) -> Path:
    """Write images into a folder of `cache`, unless it exists, and return the folder.

    `data` is a `datasets.Dataset`, or a sequence of PIL images, arrays (uint8 (H, W) or (H, W, 3)) and image files; or
    a mapping, such as a `DatasetDict`, from the names of splits to these. A single one is `train`. `labels` have a
    class name or number for each image of a sequence, or None. They are a mapping if `data` is one, and None if there
    are none or they are a column of the dataset. `cache` is the folder of decoded images.

    ConfigError if data has other types, an image file does not exist, or labels do not fit.
    """
    data, labels = (data, labels) if isinstance(data, Mapping) else ({"train": data}, {"train": labels})
    require(labels is None or isinstance(labels, Mapping), "labels are a list, but the images are splits: give a dict")
    names, labels = names_by_role("data", data), labels or {}
    require(set(labels) <= set(data), f"labels are of {', '.join(labels)}, but the splits are {', '.join(data)}")
    given = [label for each in labels.values() if each is not None for label in each]
    known = sorted({label for label in given if isinstance(label, str)})
    found: list[Split] = []
    for role, name in names.items():
        for part, dataset in _datasets(role, data[name], labels.get(name), known).items():
            require(len(dataset) > 0, f"{name} of the data has no images: leave it out, or add some")
            found.append(from_dataset("data", part, dataset))
    splits = {split.role: split for split in found}
    require(len(splits) == len(found), "data has two unlabeled splits, because a train split without labels is one")

    digest = hashlib.sha256()
    for split in found:
        digest.update(f"{split.role} {split.class_names}\n".encode())
        for row in _rows(split):
            content = row["image"]["bytes"]
            digest.update(f"{len(content)} {row['image']['path']} {row['label']}\n".encode() + content)
    folder = cache.absolute() / f"memory-{digest.hexdigest()[:20]}"
    if not folder.exists():
        write_folder(folder, lambda beside: _write(found, beside))
    return folder


def _datasets(role: str, images: Any, labels: Any, known: list[str]) -> dict[str, datasets.Dataset]:
    """Return a dataset with its role; two if some of the images have no labels."""
    if isinstance(images, datasets.Dataset):
        require(labels is None, "labels of a datasets.Dataset are its column `label`: add it with add_column")
        return {role: images.with_format(None)}
    is_list = isinstance(images, Sequence | np.ndarray) and not isinstance(images, str)
    require(is_list, f"data is a {type(images).__name__}: give {_KINDS}")
    num_labels = len(images) if labels is None else len(labels)
    require(num_labels == len(images), f"{role} has {len(images)} images, but {num_labels} labels")
    features = datasets.Features(image=datasets.Image(decode=False))
    dataset = datasets.Dataset.from_dict({"image": [_encode(image) for image in images]}, features)
    if labels is None:
        return {role: dataset}
    number_of = known.index if known else operator.index
    try:
        numbers = [None if label is None else number_of(label) for label in labels]
    except (ValueError, TypeError):
        raise ConfigError("labels are neither all class names nor all whole numbers: choose one") from None
    kind = datasets.ClassLabel(names=known) if known else datasets.Value("int64")
    dataset = dataset.add_column("label", numbers, feature=kind)
    is_missing = np.array([label is None for label in labels], bool)
    found = {role: dataset.select(np.flatnonzero(~is_missing))}
    return found | ({"unlabeled": dataset.select(np.flatnonzero(is_missing))} if is_missing.any() else {})


def _encode(image: Any) -> dict[str, Any]:
    """Return an image as the datasets library stores it: an image file, or the bytes of a PNG and its name if known."""
    if isinstance(image, str | Path):
        require(Path(image).is_file(), f"{image} is not an image file that exists: correct its name, or leave it out")
        return {"bytes": None, "path": str(image)}
    if isinstance(image, np.ndarray):
        problem = f"data holds an array of {image.dtype} {image.shape}: give uint8 (H, W) or (H, W, 3)"
        require(image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2:] in ((3,), (4,))), problem)
        image = Image.fromarray(image)
    require(isinstance(image, Image.Image), f"data holds a {type(image).__name__}: give {_KINDS}")
    file = io.BytesIO()
    to_rgb(image).save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": getattr(image, "filename", None) or None}


def _rows(split: Split) -> Iterator[dict[str, Any]]:
    """Yield each row with the bytes of its image; they are empty if the image is missing."""
    labels = itertools.repeat(None) if split.labels is None else split.labels.tolist()
    for row, label in zip(split.images, labels, strict=False):
        image = row["image"] or {"bytes": None, "path": None}
        file = Path(image["path"] or "")
        content = image["bytes"] or (file.read_bytes() if file.is_file() else b"")
        yield {"image": {"bytes": content, "path": image["path"]}, "label": label}


def _write(splits: list[Split], folder: Path) -> None:
    for split in splits:
        features: dict[str, Any] = {"image": datasets.Image()}
        if split.labels is not None:
            names = split.class_names
            features["label"] = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
        schema, rows = datasets.Features(features).arrow_schema, _rows(split)
        with pq.ParquetWriter(folder / f"{split.role}.parquet", schema) as writer:
            while batch := list(itertools.islice(rows, _ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, schema))
