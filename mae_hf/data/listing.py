"""All images that a command names, with their names and labels: image files, any folder of images, or a source."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from mae_hf.config.data import DataConfig
from mae_hf.data.locations import are_files
from mae_hf.data.sources import load_splits
from mae_hf.data.splits import Split, role_of
from mae_hf.errors import ConfigError, warn

_HIDDEN = (".", "__")
NO_SPLIT = "files"  # the role of images without a split
# How an image is named in tables: its file in the source, if it has one, its split with its row there, and its class.
NAMED = pa.schema({"file": pa.string(), "split": pa.string(), "row": pa.int64(), "label": pa.string()})


def list_images(config: DataConfig, *, like_training: bool) -> list[Split]:
    """Return the images of the config's sources, still encoded, by split.

    The sources are image files, one folder of images in any layout, or one source as `load_splits` takes it. In a
    folder of images, the label is the name of the folder that holds the image. With `like_training`, a folder in a
    layout of `load_splits` is read by it, so that its images share the cache of training.
    """
    source = config.sources[0]
    if are_files(config.sources):
        return [_split("the command line", NO_SPLIT, [(os.path.expanduser(file), "") for file in config.sources])]
    folder = Path(source).expanduser()
    if folder.is_dir() and not any(folder.rglob("*.parquet")) and not any(folder.glob("*_X.bin")):
        with contextlib.suppress(ConfigError):  # another layout, such as images beside split folders
            if like_training:
                return list(load_splits(config, source).values())
        if found := _walk(source, folder):
            return found
    return list(load_splits(config, source).values())


def name_images(split: Split) -> pa.Table:
    """Return the table `NAMED` of all images of a split."""
    labels = [-1] * len(split) if split.labels is None else split.labels.tolist()
    classes = [None if label < 0 else (split.class_names or ())[label] for label in labels]
    roles = [None if split.role == NO_SPLIT else split.role] * len(split)
    columns = [split.file_names(), roles, range(len(split)), classes]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, NAMED, strict=True)], NAMED)


def _walk(source: str, folder: Path) -> list[Split]:
    """Every image file below a folder, by its ending; names of top folders that are a split's divide them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for parent, folders, files in os.walk(folder, onerror=lambda error: warn(f"left out a folder: {error}")):
        folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN))
        names = [name for name in sorted(files) if os.path.splitext(name)[1].lower() in ImageFolder.EXTENSIONS]
        parts = Path(parent).relative_to(folder).parts
        role = (role_of(parts[0]) if parts else None) or NO_SPLIT
        label = os.fsencode(parts[-1]).decode(errors="replace") if len(parts) > (role != NO_SPLIT) else ""
        paths = [(os.path.abspath(os.path.join(parent, name)), label) for name in names]
        found.setdefault(role, []).extend(pair for pair in paths if not os.path.basename(pair[0]).startswith(_HIDDEN))
    return [_split(source, role, paths) for role, paths in found.items() if paths]


def _split(source: str, role: str, files: Sequence[tuple[str, str]]) -> Split:
    """A split of files, each with the name of its class, which may be empty."""
    names = sorted({label for _, label in files if label})
    numbers = {name: number for number, name in enumerate(names)} | {"": -1}
    labels = np.array([numbers[label] for _, label in files], np.int64)
    digest = hashlib.sha256()
    for path, label in files:
        with contextlib.suppress(OSError):  # decoding reports a file that is missing
            status = os.stat(path)
            digest.update(f"{status.st_size} {status.st_mtime_ns} {label} ".encode())
        digest.update(os.fsencode(path))
    paths = np.array([path for path, _ in files], object)
    return Split(source, role, paths, labels if names else None, tuple(names) or None, digest.hexdigest()[:16])
