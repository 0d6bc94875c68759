"""All images that a command names, with their names and labels: image files, any folder of images, or a source."""

import contextlib
import os
from pathlib import Path

import pyarrow as pa

from mae_hf.config.data import DataConfig
from mae_hf.data.folders import NO_SPLIT, list_folder, split_of_files
from mae_hf.data.locations import are_files
from mae_hf.data.sources import is_image_folder, load_splits
from mae_hf.data.splits import Split, printable
from mae_hf.errors import ConfigError

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


def name_images(split: Split) -> pa.Table:
    """Return the table `NAMED` of all images of a split."""
    labels = [-1] * len(split) if split.labels is None else split.labels.tolist()
    classes = [None if label < 0 else printable((split.class_names or ())[label]) for label in labels]
    roles = [None if split.role == NO_SPLIT else split.role] * len(split)
    columns = [split.file_names(), roles, range(len(split)), classes]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, NAMED, strict=True)], NAMED)
