"""A folder of image files becomes splits: names of folders give the split and the class of each image."""

import contextlib
import hashlib
import mimetypes
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mae_hf.data.decode import ENDINGS
from mae_hf.data.splits import NO_SPLIT, Split, names_by_role, role_of
from mae_hf.errors import ConfigError, require, warn

_HIDDEN = (".", "__", "@eadir", "thumbs.db", "desktop.ini")  # how names begin that systems and archives add


def read_image_folder(source: str, folder: Path) -> list[Split]:
    """The splits of a folder for training: its folders with names of splits, or else all of it as `train`.

    The class of an image is the folder that holds it, if all images of the split are at the same depth. ConfigError if
    the folder has no images, or images beside its split folders, or two folders for one split.
    """
    split_folders = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and role_of(entry.name))
    groups: dict[str, list[str]] = {name: [] for name in split_folders}
    beside: list[str] = []
    for file in find_images(source, folder):
        groups.get(file.split(os.sep)[0], beside).append(file)
    fix = "name the folder that does (--data.source)"
    require(bool(beside) or any(groups.values()), f"{source} holds no images, parquet files or STL-10 binaries: {fix}")
    if groups and beside:
        others = list(dict.fromkeys(file.split(os.sep)[0] for file in beside))
        images = f"{source} has images in {', '.join(others[:10])}{' ...' if others[10:] else ''}"
        example = f"{next(iter(groups))}/{others[0]}"
        fix = f"move them into a split folder, in their class ({example}), or out of the source (--data.source)"
        raise ConfigError(f"{images} beside the split folders {', '.join(groups)}: {fix}")
    names = names_by_role(source, groups) if groups else {"train": ""}
    return [_for_training(source, role, folder, groups.get(name, beside)) for role, name in names.items()]


def list_folder(source: str, folder: Path) -> list[Split]:
    """All images of a folder in any layout: the class of each is its folder, and split folders on top divide them."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for file in find_images(source, folder):
        *parents, _ = file.split(os.sep)
        role = (role_of(parents[0]) if parents else None) or NO_SPLIT
        label = parents[-1] if len(parents) > (role != NO_SPLIT) else ""
        groups.setdefault(role, []).append((file, label))
    path = os.path.abspath(folder)
    return [split_of_files(source, role, path, *zip(*pairs, strict=True)) for role, pairs in groups.items()]


def find_images(source: str, folder: Path) -> list[str]:
    """The image files below a folder, by their endings: ascending paths relative to it. Links are followed.

    What looks like an image, but is left out, is named in a warning.
    """
    found, others, empty = list[str](), list[str](), list[str]()

    def left_out(what: str) -> None:
        warn(f"{source}: left out {what}")

    for parent, folders, files in os.walk(folder, onerror=lambda error: left_out(str(error)), followlinks=True):
        here = "" if parent == str(folder) else os.path.relpath(parent, folder)
        folders[:] = [name for name in folders if not name.lower().startswith(_HIDDEN)]
        above = os.path.realpath(parent) + os.sep
        for name in list(folders):
            if above.startswith(os.path.realpath(os.path.join(parent, name)) + os.sep):
                left_out(f"{os.path.join(here, name)}, a link to a folder around it")
                folders.remove(name)
        names = [name for name in files if not name.lower().startswith(_HIDDEN)]
        images = [name for name in names if name.lower().endswith(ENDINGS)]
        others += [os.path.join(here, name) for name in names if name not in images and not _is_text(name)]
        found += [os.path.join(here, name) for name in images]
        empty += [here] if here and not folders and not images else []
    if others:
        endings = Counter(os.path.splitext(name)[1].lower() or "without ending" for name in others)
        which = ", ".join(f"{num} {ending}" for ending, num in endings.most_common(10))
        left_out(f"files in other formats ({which}), such as {min(others)}: convert images to JPEG or PNG")
    if empty:
        left_out(f"folders without images ({', '.join(sorted(empty)[:10])}{' ...' if empty[10:] else ''})")
    return sorted(found)


def split_of_files(source: str, role: str, folder: str, files: Sequence[str], classes: Sequence[str]) -> Split:
    """A split of image files in a folder, each with the name of its class; empty for an image without one."""
    names = sorted(set(classes) - {""})
    numbers = {name: number for number, name in enumerate(names)} | {"": -1}
    paths = np.array([os.path.join(folder, file) for file in files], object)
    digest = hashlib.sha256()
    for path, file, label in zip(paths, files, classes, strict=True):
        with contextlib.suppress(OSError):  # decoding reports a file that is missing
            status = os.stat(path)
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        digest.update(os.fsencode(f"{file}\0{label}\0"))
    labels = np.array([numbers[label] for label in classes], np.int64) if names else None
    return Split(source, role, paths, labels, tuple(names) or None, digest.hexdigest()[:16])


def _for_training(source: str, role: str, folder: Path, files: list[str]) -> Split:
    """A split for training; without labels, `train` is `unlabeled`."""
    classes = [os.path.basename(os.path.dirname(file)) for file in files]
    depths = [file.count(os.sep) for file in files]
    has_classes = role != "unlabeled" and len(set(classes)) > 1
    if has_classes and len(set(depths)) > 1:
        high, low = files[np.argmin(depths)], files[np.argmax(depths)]
        fix = "for labels, put each image into the folder of its class"
        warn(f"{role} of {source} has no labels, because its images are at different depths ({high}, {low}): {fix}")
        has_classes = False
    if not has_classes:
        role, classes = "unlabeled" if role == "train" else role, [""] * len(files)
    return split_of_files(source, role, os.path.abspath(folder), files, classes)


def _is_text(name: str) -> bool:
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith("text/") or kind == "application/json"
