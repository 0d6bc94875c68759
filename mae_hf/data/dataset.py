"""The images of a run: rows of splits, as batches of uint8.

No decision uses test images. Pre-training opens them only to leave out their duplicates.

The config of the `load_*` functions names the sources and says how they are split; `image_size` is the side of the
square images. They raise `ConfigError` if a source is wrong or an image cannot be decoded.

Shapes: B images in a batch, H = W the side of the square images.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from mae_hf.config.data import DataConfig
from mae_hf.config.fields import Switch
from mae_hf.data.cache import Store, open_stores, read_or_decode
from mae_hf.data.decode import decode
from mae_hf.data.random import to_device
from mae_hf.data.sources import load_splits
from mae_hf.data.splits import Part, carve, describe_few_labels, set_aside, stratified_draw
from mae_hf.errors import ConfigError, require

NO_LABEL = -1
COPIED_AT_ONCE = 1024  # images, from the cache to a GPU


class ImageSet:
    """Images of one or several stores, joined and numbered from 0.

    `parts` are stores of images of one size, each with the indices np.int64 of the images that belong to the set.

    Attributes:
        note: how the images were chosen, if results must say so, such as an unofficial fold.
        labels: np.int64 (n,), -1 for images without a class.
        class_names: empty if the images have no classes.
        split_rows: np.int64 (n,), the row of each image in its split.
        fingerprint: of pixels, rows and labels, not of any path.
    """

    def __init__(self, parts: Sequence[tuple[Store, np.ndarray]]) -> None:
        self.note = ""
        self.parts = tuple(parts)
        self.split_rows: np.ndarray = np.concatenate([store.rows[indices] for store, indices in parts])
        self._images = [store.images for store, _ in parts]
        self._indices = np.concatenate([indices for _, indices in parts])
        self._part = np.repeat(np.arange(len(parts)), [len(indices) for _, indices in parts])
        names = {store.split.class_names for store, _ in parts}
        # Labels of several sources make one classification only if the sources have the same classes.
        self.class_names: tuple[str, ...] = (names.pop() if len(names) == 1 else None) or ()
        self.labels: np.ndarray = np.full(len(self._indices), NO_LABEL)
        if self.class_names:
            self.labels = np.concatenate([Part(store.split, store.rows[indices]).labels for store, indices in parts])
        digest = hashlib.sha256(" ".join(store.digest for store, _ in parts).encode())
        for array in (self._part, self._indices, self.labels):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
        self.fingerprint: str = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, 3) of an image."""
        return self._images[0].shape[1:]

    def file_names(self) -> list[str | None]:
        """The file name of each image as its source gives it, n in all; None for an image without a file."""
        parts = ((store.split.file_names(), store.rows[indices]) for store, indices in self.parts)
        return [names[row] for names, rows in parts for row in rows]

    def batch(self, rows: np.ndarray | Sequence[int], pin_memory: bool = False) -> torch.Tensor:
        """The images of these numbers, np.int64 (B,), as a new torch.uint8 (B, H, W, 3), pinned on request."""
        rows = np.asarray(rows, np.int64)
        parts, indices = self._part[rows], self._indices[rows]
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8, pin_memory=pin_memory)
        batch = images.numpy()
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            if len(here) == len(rows):
                np.take(self._images[part], indices, axis=0, out=batch, mode="clip")  # clip avoids a buffer
            else:
                batch[here] = self._images[part][indices[here]]
        return images

    def batch_on(self, device: torch.device, rows: np.ndarray) -> torch.Tensor:
        """The same on a device. The copy to a GPU is queued, and the host continues."""
        return self.batch(rows, pin_memory=device.type == "cuda").to(device, non_blocking=True)


class DeviceImages:
    """Batches of an image set on the device that trains on them. A GPU holds the whole set if there is room.

    Otherwise each batch is read into pinned memory, and its copy is queued on the GPU. The host reads the next batch
    while the GPU still works on this one.
    """

    def __init__(self, images: ImageSet, device: torch.device, on_device: Switch) -> None:
        self.device = device
        self.labels = images.labels
        self._images = images
        self._resident: torch.Tensor | None = None
        num_bytes = len(images) * math.prod(images.shape)
        if device.type == "cuda" and holds_all(num_bytes, torch.cuda.mem_get_info(device)[0], on_device):
            self._resident = _copy_whole(images, device)

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """The images of `rows`, np.int64 (B,), as torch.uint8 (B, H, W, 3) on the device."""
        if self._resident is not None:
            return self._resident[to_device(rows, self.device)]
        return self._images.batch_on(self.device, rows)


def holds_all(num_bytes: int, free_bytes: int, on_device: Switch) -> bool:
    """Whether a GPU holds images of this size; with `auto` they may take a quarter of its free memory."""
    return on_device == "always" or (on_device == "auto" and num_bytes <= free_bytes / 4)


def _copy_whole(images: ImageSet, device: torch.device) -> torch.Tensor:
    """All images in their order, uint8 (n, H, W, 3) on the device, without a copy of all in the host's memory."""
    resident = torch.empty((len(images), *images.shape), dtype=torch.uint8, device=device)
    for rows in torch.arange(len(images)).split(COPIED_AT_ONCE):
        resident[rows[0] : rows[-1] + 1] = images.batch(rows.numpy())
    return resident


def load_pretraining_images(config: DataConfig, image_size: int) -> tuple[ImageSet, ImageSet]:
    """The images to pre-train on, and the held-out images for the evaluation loss.

    Pre-training takes every unlabeled image of every source, and the train images of fine-tuning. The validation images
    of fine-tuning are held out. If no source has any, a part of the unlabeled images is held out.
    """
    sources = [_parts(config, source, image_size) for source in config.sources]
    train = [parts[role] for parts in sources for role in ("unlabeled", "train") if role in parts]
    held_out = [parts["validation"] for parts in sources if "validation" in parts]
    names = ", ".join(config.sources)
    require(bool(train), f"{names} has neither an unlabeled nor a train split: name another source (--data.source)")
    if not held_out:
        divided = [set_aside(part, "validation", config) for part in train]
        train, held_out = [kept for kept, _ in divided], [drawn for _, drawn in divided]
    train_images, held_out_images = _image_sets([train, held_out], image_size, config)
    return train_images, held_out_images


def load_evaluation_images(config: DataConfig, others: Sequence[str], image_size: int) -> dict[str, list[ImageSet]]:
    """Return the images that pre-training must not see, source by source.

    `test` has the test images of every source with a test split, and `others` must have one. `validation` has the
    validation images of `others`; `load_pretraining_images` holds out the config's own. The sources of a stream are not
    read.
    """
    found: dict[str, list[Part]] = {"test": [], "validation": []}
    trained_on: list[Part] = []
    own_sources = () if config.streaming else config.sources
    for source in dict.fromkeys((*own_sources, *others)):
        own = source in own_sources
        # `class_names` is about the sources to train on
        parts = _parts(config if own else replace(config, class_names=None), source, image_size)
        fix = "name another source (--audit.sources)"
        require(own or "test" in parts, f"{source} has no test split to audit against: {fix}")
        for role, part in parts.items():
            if role == "test" or (role == "validation" and not own):
                found[role].append(part)
            elif own:
                trained_on.append(part)
    # Also those to train on, so that one message names the bad images of all splits.
    every = [part.split for parts in (*found.values(), trained_on) for part in parts]
    open_stores(list(dict.fromkeys(every)), image_size, config)
    return {split: _image_sets([[part] for part in parts], image_size, config) for split, parts in found.items()}


def load_labelled_images(
    config: DataConfig, image_size: int, roles: Sequence[str] = ("train", "validation", "test")
) -> dict[str, ImageSet]:
    """The labelled images of the only source by role; a role without labelled images is an error."""
    require(len(config.sources) == 1, "labelled images come from one source, name one (--data.source)")
    source = config.sources[0]
    parts = _parts(config, source, image_size)
    splits = {part.split.role: part.split for part in parts.values()}
    for role in roles:
        found = ", ".join(f"{role} ({len(split)} images)" for role, split in splits.items())
        missing, fix = "test" if role == "test" else "train", "name a source that has one (--data.source)"
        fix = "set part of train aside (--data.test_fraction 0.2)" if role == "test" and "train" in parts else fix
        require(role in parts, f"{source} has no labelled {missing} split, only {found}: {fix}")
        fix = "put its images into a folder per class, add a column `label`, or remove it (--data.source)"
        require(parts[role].split.labels is not None, f"{role} of {source} has no labels: {fix}")
    images = dict(zip(roles, _image_sets([[parts[role]] for role in roles], image_size, config), strict=True))
    if "train" in images:
        images["train"].note = describe_few_labels(splits["train"], config)
    return images


def load_probe_images(config: DataConfig, image_size: int, max_images: int) -> tuple[ImageSet, ImageSet] | None:
    """Labelled train and validation images to probe an encoder with during pre-training; never test images.

    They are from the first source that has both; None if no source has. More than `max_images` of train or validation
    are thinned out by class.
    """
    for source in config.sources:
        parts = _parts(config, source, image_size)
        chosen = [parts[role] for role in ("train", "validation") if role in parts]
        if len(chosen) < 2 or any(part.split.labels is None for part in chosen):
            continue
        train, validation = _image_sets([[part] for part in chosen], image_size, config)
        return thin_out(train, max_images), thin_out(validation, max_images)
    return None


def thin_out(images: ImageSet, max_images: int) -> ImageSet:
    """Return at most `max_images` of the labelled images of one source, each class by its share."""
    ((store, indices),) = images.parts
    return ImageSet([(store, indices[stratified_draw(images.labels, max_images, seed=0)])])


def load_image_files(
    files: Sequence[str | Path | Image | np.ndarray], image_size: int, config: DataConfig
) -> torch.Tensor:
    """Image files by name, or images in memory, decoded like a source: torch.uint8 (n, S, S, 3)."""
    images = []
    for file in files:
        image = decode(str(file) if isinstance(file, Path) else file, image_size, config)
        if isinstance(image, str):
            raise ConfigError(f"{file} cannot be decoded ({image}): name another file (--data.source)")
        images.append(image)
    return torch.from_numpy(np.stack(images))


def _parts(config: DataConfig, source: str, image_size: int) -> dict[str, Part]:
    splits = load_splits(config, source)
    return carve(splits, config, usable=lambda split: read_or_decode(split, image_size, config).rows)


def _image_sets(groups: Sequence[Sequence[Part]], image_size: int, config: DataConfig) -> list[ImageSet]:
    """Join the parts of each group. Leave out images that could not be decoded, or report all of them at once."""
    splits = list(dict.fromkeys(part.split for parts in groups for part in parts))
    stores = dict(zip(splits, open_stores(splits, image_size, config), strict=True))
    sets = []
    for parts in groups:
        joined = [(stores[part.split], np.flatnonzero(np.isin(stores[part.split].rows, part.rows))) for part in parts]
        joined = [(store, indices) for store, indices in joined if len(indices)]
        names = " and ".join(f"{part.split.role} of {part.split.source}" for part in parts)
        require(len(joined) > 0, f"no image that was drawn from {names} can be decoded (--data.source)")
        sets.append(ImageSet(joined))
    return sets
