"""The images a run sees: which rows of which splits, as batches of uint8.

No decision is taken on test: pre-training opens it only to leave copies of it out, validation is carved from train.

Shapes: B images in a batch, H = W the side of the square images.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from mae_hf.config.data import DataConfig
from mae_hf.config.fields import Choice
from mae_hf.data.cache import Store, decode, open_store
from mae_hf.data.label_sets import describe_few_labels, few_label_rows
from mae_hf.data.sources import Split, load_splits, stratified_draw
from mae_hf.data.transfer import to_device
from mae_hf.errors import ConfigError, require

NO_LABEL = -1
CHUNK = 1024  # images on their way to a GPU at a time


class ImageSet:
    """Rows of several stores, joined and numbered from 0.

    `labels` is np.int64 (n,), -1 and `class_names` empty where images have no class; `parts` is what it was made of.

    `rows` is np.int64 (n,), the number of each image in its split.

    Args:
        parts: stores of images of one size, each with the indices np.int64 into it that belong to the set.
        note: what has to be said about the choice of these images, such as that a fold is unofficial.
    """

    def __init__(self, parts: Sequence[tuple[Store, np.ndarray]], note: str = "") -> None:
        self.note = note
        self.rows: np.ndarray = np.concatenate([store.rows[indices] for store, indices in parts])
        self.parts = tuple(parts)
        self._images = [store.images for store, _ in parts]
        self._indices = np.concatenate([indices for _, indices in parts])
        self._part = np.repeat(np.arange(len(parts)), [len(indices) for _, indices in parts])
        names = {store.split.class_names for store, _ in parts}
        # labels of several sources are only one classification if the sources agree on the classes
        self.class_names: tuple[str, ...] = (names.pop() if len(names) == 1 else None) or ()
        self.labels: np.ndarray = np.full(len(self._indices), NO_LABEL)
        if self.class_names:
            self.labels = np.concatenate([_labels(store)[indices] for store, indices in parts])
        digest = hashlib.sha256(" ".join(store.digest for store, _ in parts).encode())
        for array in (self._part, self._indices, self.labels):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
        self.fingerprint: str = digest.hexdigest()[:16]  # of the pixels, the rows and the labels, not of any path

    def __len__(self) -> int:
        return len(self._indices)

    def without(self, rows: np.ndarray) -> "ImageSet":
        """The set less some of its rows, np.int64 (k,); at least one must be left."""
        kept = np.delete(np.arange(len(self)), rows)
        parts = [(store, self._indices[kept[self._part[kept] == part]]) for part, (store, _) in enumerate(self.parts)]
        return ImageSet([(store, indices) for store, indices in parts if len(indices)])

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, 3) of an image."""
        return self._images[0].shape[1:]

    @property
    def num_bytes(self) -> int:
        """Size of all images as uint8."""
        return len(self) * math.prod(self.shape)

    def batch(self, rows: np.ndarray | Sequence[int], pin_memory: bool = False) -> torch.Tensor:
        """The images of `rows`, np.int64 (B,), as a new torch.uint8 (B, H, W, 3), in pinned memory if asked for."""
        rows = np.asarray(rows, np.int64)
        parts, indices = self._part[rows], self._indices[rows]
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8, pin_memory=pin_memory)
        batch = images.numpy()
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            if len(here) == len(rows):
                np.take(self._images[part], indices, axis=0, out=batch, mode="clip")  # clip: no buffering, rows exist
            else:
                batch[here] = self._images[part][indices[here]]
        return images

    def batch_on(self, device: torch.device, rows: np.ndarray) -> torch.Tensor:
        """The same on a device; a GPU copies them from pinned memory when it gets there, and is not waited for."""
        return self.batch(rows, pin_memory=device.type == "cuda").to(device, non_blocking=True)


class DeviceImages:
    """An image set as batches on the device that trains on them; a GPU holds all of them if there is room.

    Otherwise batches are read into pinned memory and copied when the GPU gets there. In bf16 and fp32 nothing in a step
    waits for the GPU: the host reads the next batch while the GPU still works on this one.

    Args:
        images: the set.
        device: where the batches are needed.
        on_device: whether a GPU holds the whole set; `auto` where it takes at most a quarter of the GPU's free memory.
    """

    def __init__(self, images: ImageSet, device: torch.device, on_device: Choice) -> None:
        self.device = device
        self.labels = images.labels
        self._images = images
        self._resident: torch.Tensor | None = None
        if device.type == "cuda" and holds_all(images.num_bytes, torch.cuda.mem_get_info(device)[0], on_device):
            self._resident = _copy_whole(images, device)

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """The images of `rows`, np.int64 (B,), as torch.uint8 (B, H, W, 3) on the device."""
        if self._resident is not None:
            return self._resident[to_device(rows, self.device)]
        return self._images.batch_on(self.device, rows)


def holds_all(num_bytes: int, free_bytes: int, on_device: Choice) -> bool:
    """Whether a GPU with so much free memory is to hold images of so many bytes; the model needs room, too."""
    return on_device == "always" or (on_device == "auto" and num_bytes <= free_bytes / 4)


def _copy_whole(images: ImageSet, device: torch.device) -> torch.Tensor:
    """All images in the order of their rows, uint8 (n, H, W, 3) on the device; read a chunk at a time."""
    resident = torch.empty((len(images), *images.shape), dtype=torch.uint8, device=device)
    for start in range(0, len(images), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(images)))
        resident[start : start + len(rows)] = images.batch(rows)
    return resident


def _labels(store: Store) -> np.ndarray:
    assert store.split.labels is not None
    return store.split.labels[store.rows]


def load_pretraining_images(config: DataConfig, image_size: int) -> tuple[ImageSet, ImageSet]:
    """The images to pre-train on, and those held out to compare losses on.

    Pre-training takes every unlabeled image of every source and the train images that fine-tuning trains on. Held out
    are the validation images, the very ones of fine-tuning; a part of the unlabeled ones if no source has any.

    Args:
        config: the sources and how they are split.
        image_size: side of the images.

    Raises:
        ConfigError: a source is wrong, or an image of it cannot be decoded.
    """
    train: list[tuple[Split, np.ndarray]] = []
    held_out: list[tuple[Split, np.ndarray]] = []
    for source in config.sources:
        splits = load_splits(config, source)
        parts = _carve(splits, image_size, config)
        if "unlabeled" in splits:
            train.append((splits["unlabeled"], np.arange(len(splits["unlabeled"]))))
        train += [parts["train"]] if "train" in parts else []
        held_out += [parts["validation"]] if "validation" in parts else []
    require(
        len(train) > 0,
        f"{', '.join(config.sources)} has neither an unlabeled nor a train split to pre-train on: name another source "
        "(--data.source)",
    )
    if not held_out:
        whole, train = train, []
        for split, rows in whole:
            kept, drawn = _draw(split, rows, "validation", config)
            train.append((split, kept))
            held_out.append((split, drawn))
    stores = _open(train + held_out, image_size, config)
    return _join(train, stores), _join(held_out, stores)


def load_evaluation_images(
    config: DataConfig, others: Sequence[str], image_size: int
) -> dict[Literal["test", "validation"], list[ImageSet]]:
    """Return the images that pre-training must not see, source by source.

    Args:
        config: the sources and how they are split; of streamed ones only the unlabeled images are read.
        others: more sources, which must have test images.
        image_size: side of the images.

    Returns:
        `test`, the test images of every source that has some; `validation`, the validation images of the others. The
        validation images of the sources themselves are those that `load_pretraining_images` holds out.

    Raises:
        ConfigError: a source is wrong, an image of it cannot be decoded, or one of the others has no test images.
    """
    found: dict[Literal["test", "validation"], list[ImageSet]] = {"test": [], "validation": []}
    own_sources = () if config.streaming else config.sources
    for source in dict.fromkeys((*own_sources, *others)):
        own = source in own_sources
        # classes that were named are those of the sources to train on
        splits = load_splits(config if own else replace(config, class_names=None), source)
        parts = _carve(splits, image_size, config)
        require(
            own or "test" in parts,
            f"{source} has no test split with labels to audit against: name another source (--audit.sources)",
        )
        for role, sets in found.items():
            if role in parts and not (own and role == "validation"):
                sets.append(_join([parts[role]], _open([parts[role]], image_size, config)))
    return found


def load_labelled_images(
    config: DataConfig, image_size: int, roles: Sequence[str] = ("train", "validation", "test")
) -> dict[str, ImageSet]:
    """The labelled images of one source by role.

    Args:
        config: the source and how it is split.
        image_size: side of the images.
        roles: which of `train`, `validation`, `test` to open.

    Raises:
        ConfigError: the source is wrong or has no images for a role, or an image of it cannot be decoded.
    """
    require(len(config.sources) == 1, "labelled images come from one source, name one (--data.source)")
    source = config.sources[0]
    splits = load_splits(config, source)
    parts = _carve(splits, image_size, config)
    found = ", ".join(f"{role} ({len(split)} images)" for role, split in splits.items())
    for role in roles:
        if role not in parts and role == "test" and "train" in parts:
            raise ConfigError(
                f"{source} has no test split, only {found}: set part of train aside (--data.test_fraction 0.2)"
            )
        require(
            role in parts,
            f"{source} has no labelled {'test' if role == 'test' else 'train'} split, only {found}: name a source that "
            "has one (--data.source)",
        )
    stores = _open([parts[role] for role in roles], image_size, config)
    note = describe_few_labels(splits["train"], config) if "train" in parts else ""
    return {role: _join([parts[role]], stores, note if role == "train" else "") for role in roles}


def load_probe_images(config: DataConfig, image_size: int, most: int) -> tuple[ImageSet, ImageSet] | None:
    """Train and validation images with labels, to look at an encoder while it is pre-trained; never test images.

    Args:
        config: the sources; the first with a labelled train split is taken.
        image_size: side of the images.
        most: images of each of the two at most; more are thinned out by class.

    Returns:
        None when no source has labels.

    Raises:
        ConfigError: a source is wrong, or an image of it cannot be decoded.
    """
    for source in config.sources:
        parts = _carve(load_splits(config, source), image_size, config)
        if "train" not in parts:
            continue
        found = []
        for role in ("train", "validation"):
            split, rows = parts[role]
            assert split.labels is not None
            if len(rows) > most:
                rows = rows[stratified_draw(split.labels[rows], most, seed=0)]
            found.append((split, rows))
        stores = _open(found, image_size, config)
        return _join(found[:1], stores), _join(found[1:], stores)
    return None


def load_image_files(files: Sequence[str], image_size: int) -> torch.Tensor:
    """Image files by name, decoded as the store decodes them: torch.uint8 (n, S, S, 3).

    Raises:
        ConfigError: a file cannot be decoded.
    """
    images = []
    for file in files:
        image = decode(file, image_size)
        if isinstance(image, str):
            raise ConfigError(f"{file} cannot be decoded ({image}): name another file (--data.source)")
        images.append(image)
    return torch.from_numpy(np.stack(images))


def _open(parts: list[tuple[Split, np.ndarray]], image_size: int, config: DataConfig) -> dict[int, Store]:
    """The store of each split, by the split's identity: train and validation are often rows of one."""
    splits = {id(split): split for split, _ in parts}
    return {key: open_store(split, image_size, config) for key, split in splits.items()}


def _join(parts: list[tuple[Split, np.ndarray]], stores: dict[int, Store], note: str = "") -> ImageSet:
    """Joins rows of splits; a row whose image was skipped is no longer there."""
    joined = [(stores[id(split)], np.flatnonzero(np.isin(stores[id(split)].rows, rows))) for split, rows in parts]
    joined = [(store, indices) for store, indices in joined if len(indices)]
    roles = " and ".join(f"{split.role} of {split.source}" for split, _ in parts)
    require(len(joined) > 0, f"no image that was drawn from {roles} can be decoded (--data.source)")
    return ImageSet(joined, note)


def _carve(splits: dict[str, Split], image_size: int, config: DataConfig) -> dict[str, tuple[Split, np.ndarray]]:
    """The rows of the labelled roles of a source: what it lacks of test and validation is carved from train."""
    parts = {role: (split, np.arange(len(split))) for role, split in splits.items() if split.labels is not None}
    if "train" in parts and "test" not in parts and config.test_fraction:
        split, rows = parts["train"]
        kept, drawn = _draw(split, rows, "test", config)
        parts |= {"train": (split, kept), "test": (split, drawn)}
    if "train" in parts and config.has_label_set:
        split, rows = parts["train"]
        # from the images that are there: a set, and each class in it, is to be as large as it is said to be
        rows = np.intersect1d(rows, _open([parts["train"]], image_size, config)[id(split)].rows)
        parts["train"] = split, few_label_rows(split, rows, config)
        parts.pop("validation", None)  # its labels are not among those of the set
    if "train" in parts and "validation" not in parts:
        split, rows = parts["train"]
        kept, drawn = _draw(split, rows, "validation", config)
        parts |= {"train": (split, kept), "validation": (split, drawn)}
    return parts


def _draw(split: Split, rows: np.ndarray, role: str, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """The rows without and with the part that is drawn, by class, for validation or test."""
    fraction = config.test_fraction if role == "test" else config.validation_fraction
    num = max(1, round(fraction * len(rows)))
    if role == "validation" and config.has_label_set and split.labels is not None:
        num = max(num, len(np.unique(split.labels[rows])))  # so that each class can have one
    require(
        num < len(rows),
        f"{role}_fraction {fraction} leaves none of the {len(rows)} images of {split.role} in {split.source}: choose "
        f"a smaller part or a larger source (--data.{role}_fraction)",
    )
    labels = np.zeros(len(rows)) if split.labels is None else split.labels[rows]
    drawn = rows[stratified_draw(labels, num, [config.split_seed, 0 if role == "test" else 1])]
    return np.setdiff1d(rows, drawn), drawn
