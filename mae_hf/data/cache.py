"""The decoded images of a split: a memory-mapped uint8 array on disk, made once and shared by all runs and processes.

An array `ROLE-SIZE-KEY.npy` is complete once its record `.json` exists. `.bad.txt` lists the images that could not be
decoded. N images, S side of the square images.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from mae_hf.config.data import DataConfig
from mae_hf.data.cores import num_cores
from mae_hf.data.decode import FIX_BAD_IMAGE, IMAGES_PER_TASK, border_colour, decode
from mae_hf.data.splits import Split
from mae_hf.errors import ConfigError, clean, warn
from mae_hf.files import SHARED_PARTIAL, write_file, write_json
from mae_hf.progress import Progress

FORMAT_VERSION = 2  # increase it when an image would be decoded to other pixels
TASKS_AHEAD = 16  # enough to decode on while the disk is slow
ABANDONED = 600.0  # seconds without a new byte after which the process that writes a file is taken for dead
_SHOWN = 10  # bad images in a message
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Store:
    """The decoded images of a split."""

    split: Split
    images: np.ndarray  # np.uint8 (N, S, S, 3), memory-mapped, read-only
    rows: np.ndarray  # np.int64 (N,), the row of each image in its split
    bad: Sequence[tuple[int, str]]  # the other rows, and why their images cannot be decoded
    digest: str  # SHA-256 of the pixels
    path: Path  # of the array
    was_there: bool  # whether the array was found in the cache, and not decoded now


def open_stores(splits: Sequence[Split], image_size: int, config: DataConfig) -> list[Store]:
    """Read the decoded images of splits, of side S, from the cache, or decode them into it first.

    ConfigError if the disk is full, the cache cannot be written, or images cannot be decoded and the config does not
    say to skip them. Then the message is about all splits.
    """
    stores = [read_or_decode(split, image_size, config) for split in splits]
    bad = [store for store in stores if store.bad]
    if config.on_bad_image == "raise" and bad:
        raise ConfigError(f"{describe_bad(bad)}: {FIX_BAD_IMAGE}")
    if os.environ.get("RANK", "0") == "0":
        for store in bad:
            warn(f"{describe_bad([store])}; these images are left out")
    return stores


def read_or_decode(split: Split, image_size: int, config: DataConfig) -> Store:
    """Open the store of a split like `open_stores`, without reporting images that cannot be decoded."""
    folder = cache_folder(config)
    made = f"{FORMAT_VERSION} {image_size} {split.role} {split.fingerprint}"
    made += {"pad": f" pad {border_colour(config)}", "squash": " squash"}.get(config.resize, "")
    key = hashlib.sha256(made.encode()).hexdigest()[:20]
    array_file = folder / f"{split.role}-{image_size}-{key}.npy"
    _sweep(folder)
    if store := _read(array_file, split, image_size, was_there=True):
        return store
    try:
        _build(array_file, split, image_size, config)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error}): choose another (--data.cache_dir)") from error
    if store := _read(array_file, split, image_size, was_there=False):
        return store
    raise ConfigError(f"{array_file} cannot be read back: choose another folder (--data.cache_dir)")


def cache_folder(config: DataConfig) -> Path:
    """Return the folder of decoded images."""
    return Path(config.cache_dir or os.environ.get("MAE_HF_CACHE") or "~/.cache/mae_hf").expanduser()


def cached_examples(config: DataConfig, image_size: int, num: int) -> list[np.ndarray]:
    """Return up to `num` test images of the config's sources, or else validation images, from the cache.

    Each is uint8 (S, S, 3). The list is empty if no such images are in the cache, because this decodes nothing.
    """
    folder = cache_folder(config)
    for file in (*folder.glob(f"test-{image_size}-*.npy"), *folder.glob(f"validation-{image_size}-*.npy")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(file.with_suffix(".json").read_text())["source"] in config.sources:
                images = np.load(file, mmap_mode="r", allow_pickle=False)
                rows = np.linspace(0, len(images) - 1, min(num, len(images)), dtype=int)
                return [np.array(images[row]) for row in rows]
    return []


def _read(array_file: Path, split: Split, image_size: int, was_there: bool) -> Store | None:
    """Return the store if it exists and is whole, else None."""
    try:
        record = json.loads(array_file.with_suffix(".json").read_text())
        bad = record["skipped"]
        rows = np.delete(np.arange(len(split)), [row for row, _ in bad])
        images = np.load(array_file, mmap_mode="r", allow_pickle=False)  # ValueError if it is cut short
        if images.dtype != np.uint8 or images.shape != (len(rows), image_size, image_size, 3):
            return None
        return Store(split, images, rows, bad, record["sha256"], array_file, was_there)
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError):
        return None


def _build(array_file: Path, split: Split, image_size: int, config: DataConfig) -> None:
    """Decode a split into `array_file`, and write its record last."""
    bad: list[tuple[int, str]] = []
    digest = hashlib.sha256()

    def write(path: Path) -> None:
        with open(path, "wb") as file, contextlib.closing(decoded_images(split, image_size, config)) as decoded:
            _write_header(file, len(split), image_size)
            for row, result in enumerate(decoded):
                if isinstance(result, np.ndarray):
                    digest.update(result.data)
                    file.write(result.data)
                else:
                    bad.append((row, result))
            if len(bad) == len(split):
                what = f"no image of {split.role} in {split.source} can be decoded ({bad[0][1]})"
                raise ConfigError(f"{what}: are these images? (--data.source)")
            file.seek(0)
            _write_header(file, len(split) - len(bad), image_size)  # as long as the first: NumPy leaves room

    array_file.parent.mkdir(parents=True, exist_ok=True)
    write_file(array_file, write, shared=True)
    if bad:
        lines = [clean(f"{split.where(row)}: {reason}") for row, reason in bad]
        array_file.with_suffix(".bad.txt").write_text("\n".join(lines) + "\n")
    record = {"source": split.source, "skipped": bad, "sha256": digest.hexdigest()}
    write_json(array_file.with_suffix(".json"), record, shared=True)


def describe_bad(stores: Sequence[Store]) -> str:
    """Say how many images could not be decoded, and which: the first ten, and the files that list all."""
    which, some, lists = [], [], []
    for store in stores:
        which.append(f"{len(store.bad)} of {len(store.split)} images of {store.split.role} in {store.split.source}")
        some += [f"{store.split.where(row)} ({reason})" for row, reason in store.bad[:_SHOWN]]
        lists.append(str(store.path.with_suffix(".bad.txt")))
    listed = f"{'; '.join(some[:_SHOWN])}; all are listed in {' and '.join(lists)}"
    return f"{' and '.join(which)} cannot be decoded: {listed}"


def _sweep(folder: Path) -> None:
    """Remove the files that killed processes left half written; they may be as large as arrays."""
    if not (left := list(folder.glob(SHARED_PARTIAL))):
        return
    with tempfile.TemporaryFile(dir=folder) as probe:
        now = os.fstat(probe.fileno()).st_mtime  # by the disk's clock
    for file in left:
        with contextlib.suppress(OSError):  # another process sweeps, too, or has written it and lets none remove it
            if now - file.stat().st_mtime > ABANDONED:
                file.unlink()


def _write_header(file: BinaryIO, num: int, image_size: int) -> None:
    shape = (num, image_size, image_size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def decoded_images(
    split: Split, image_size: int, config: DataConfig, task: str = "decoding"
) -> Generator[np.ndarray | str]:
    """Decode the images of a split in threads; yield them in order, or the reason for one that cannot be decoded."""

    def decode_task(start: int) -> list[np.ndarray | str]:
        encoded = split.encoded(start, min(start + IMAGES_PER_TASK, len(split)))
        return [decode(image, image_size, config) for image in encoded]

    num_threads = num_cores()
    pool = ThreadPoolExecutor(num_threads)
    try:
        with Progress(total=len(split), desc=f"{task} {split.role} of {split.source}", unit="image") as progress:
            tasks = (pool.submit(decode_task, start) for start in range(0, len(split), IMAGES_PER_TASK))
            # A fixed number of tasks, so that memory does not grow with the number of images.
            for decoding in ahead(tasks, num_threads + TASKS_AHEAD):
                images = decoding.result()
                yield from images
                progress.update(len(images))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a signal or a full disk does not wait for further images


def ahead(started: Iterator[Item], num: int) -> Iterator[Item]:
    """Yield items of an iterator that starts some work for each, with the work of up to `num` of them started."""
    items = deque(islice(started, num))
    while items:
        yield items.popleft()
        items.extend(islice(started, 1))
