"""Images that are read while the model learns: windows of shards, decoded in threads, one batch after another.

Each of a process's readers is a thread with one window in use and at most one read ahead, still encoded. A thread that
feeds hands the images of the coming batches to the decoding threads; `batch` takes them in turn. Which image comes when
is `StreamSampler`'s decision alone. An image that cannot be decoded or must not be seen is replaced by the next one of
its window, so this is a function of the batch, too.

Shapes: B images in a batch, S side of the square image.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from mae_hf.config.commands import PretrainConfig
from mae_hf.config.data import DataConfig
from mae_hf.config.train import Plan
from mae_hf.data.cache import open_store
from mae_hf.data.cores import num_cores
from mae_hf.data.dataset import ImageSet
from mae_hf.data.decode import FIX, IMAGES_PER_TASK, decode
from mae_hf.data.splits import Split
from mae_hf.data.stream.notes import StreamNotes
from mae_hf.data.stream.order import StreamSampler, Window
from mae_hf.data.stream.shards import SILENCE, Encoded, ShardReader, Shards, open_shards
from mae_hf.errors import RunError, require

TASKS_AHEAD_PER_THREAD = 4
FindDuplicate = Callable[[NDArray[np.uint8]], Mapping[str, Any] | None]
POLL = 0.2  # seconds after which a thread that waits looks whether it is to stop


@dataclass(frozen=True, eq=False)
class Stream:
    """The shards to pre-train on.

    Args:
        shards: the files of every source.
        num_held_out: images at the beginning that are held out.
    """

    shards: Shards
    num_held_out: int

    @property
    def fingerprint(self) -> str:
        """Of the shards, and of what is held out."""
        return f"{self.shards.fingerprint}-{self.num_held_out}"

    def __len__(self) -> int:
        return int(self.shards.lengths.sum()) - self.num_held_out


def load_stream(config: DataConfig, image_size: int) -> tuple[Stream, ImageSet]:
    """The shards to pre-train on, and the images held out to compare losses on: the first of the first shards.

    Args:
        config: the sources; how many images are held out, and where these are kept.
        image_size: side S of the images.

    Raises:
        ConfigError: a source is wrong, or an image that is held out cannot be decoded.
        RunError: a shard cannot be read.
    """
    shards = open_shards(config)
    num = config.stream_held_out
    require(
        num < shards.lengths.sum(),
        f"stream_held_out {num} leaves none of the {shards.lengths.sum()} images of {', '.join(config.sources)} to "
        "train on: choose less (--data.stream_held_out)",
    )
    stream = Stream(shards, num)
    reader = ShardReader(shards, threading.Event())
    encoded: list[Encoded] = []
    for shard, length in enumerate(shards.lengths):
        if len(encoded) < num:
            encoded += reader.read(shard, 0, min(int(length), num - len(encoded)))
    column = [{"bytes": i, "path": None} if isinstance(i, bytes) else {"bytes": None, "path": i} for i in encoded]
    images = datasets.Dataset.from_dict(
        {"image": column}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    split = Split(config.sources[0], "held-out", images, None, None, stream.fingerprint)
    store = open_store(split, image_size, config)
    return stream, ImageSet([(store, np.arange(len(store.rows)))])


class StreamedImages:
    """The images of a process's batches on the device that trains on them, in the order of its sampler.

    Args:
        shards: the files.
        sampler: which images come when.
        device: where the batches are needed.
        image_size: side S of the images.
        on_bad_image: `raise` stops at an image that cannot be decoded, `skip` replaces it.
        notes: of every image that was replaced or is a duplicate.
        find_duplicate: returns what to note about an image, (S, S, 3), that must not be seen; None for all others.
        leave_out: whether to replace these images; otherwise they are only noted.
    """

    def __init__(
        self,
        shards: Shards,
        sampler: StreamSampler,
        device: torch.device,
        image_size: int,
        *,
        on_bad_image: Literal["raise", "skip"],
        notes: StreamNotes,
        find_duplicate: FindDuplicate,
        leave_out: bool,
    ) -> None:
        self.device = device
        self.sampler = sampler
        self._shards = shards
        self._image_size = image_size
        self._on_bad_image = on_bad_image
        self._notes = notes
        self._find_duplicate = find_duplicate
        self._leave_out = leave_out
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._batches: queue.Queue[_Batch | BaseException] | None = None

    @contextlib.contextmanager
    def reading(self, batch_index: int, end: int) -> Iterator[None]:
        """Reads the batches from number `batch_index` on, those before `end`, until this context ends."""
        num_threads = max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        micro_batch_size = len(self.sampler.micro_batches(batch_index)[0])
        self._batches = queue.Queue(max(2, num_threads * TASKS_AHEAD_PER_THREAD * IMAGES_PER_TASK // micro_batch_size))
        self._pool = ThreadPoolExecutor(num_threads, "decode")
        self._stopped.clear()
        windows = {reader: _Windows() for reader in self.sampler.readers}
        threads = [threading.Thread(target=self._feed, args=(batch_index, end, windows), daemon=True)]
        for reader, ready in windows.items():
            threads.append(threading.Thread(target=self._read, args=(batch_index, end, reader, ready), daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:  # a library's thread that is cut off when Python ends may take Python down with it
                thread.join(timeout=SILENCE)
            self._pool.shutdown(cancel_futures=True)
            self._batches = None

    def batch(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The images of `rows`, np.int64 (B,), as torch.uint8 (B, S, S, 3) on the device.

        They must be those of the next micro-batch. Outside of `reading` they are black, enough to try speeds on.

        Raises:
            RunError: a shard cannot be read, or an image cannot be decoded.
        """
        pinned = self.device.type == "cuda"
        images = torch.zeros((len(rows), self._image_size, self._image_size, 3), dtype=torch.uint8, pin_memory=pinned)
        if self._batches is not None:
            batch = self._batches.get()
            if isinstance(batch, BaseException):
                raise batch
            if not np.array_equal(batch.rows, rows):
                raise ValueError("the batches of a stream are to be taken in their order")
            np.concatenate([chunk.result() for chunk in batch.chunks], out=images.numpy())
        return images.to(self.device, non_blocking=True)

    def _read(self, batch_index: int, end: int, reader: int, windows: "_Windows") -> None:
        """A reader's thread: one window after another, never more than one that nobody has asked for."""
        shards = ShardReader(self._shards, self._stopped)
        epoch, index = self.sampler.window_at(batch_index)
        try:
            last = self.sampler.last_window_at(end - 1)
            while batch_index < end and (epoch, index) <= last and not self._stopped.is_set():
                if not windows.room.acquire(timeout=POLL):
                    continue
                window = self.sampler.window(epoch, reader, index)
                encoded: list[Encoded] = []
                for shard, first, num in window.pieces:
                    encoded += shards.read(shard, first, num)
                windows.ready.put(_Opened(window, encoded))
                index += 1
                if index == self.sampler.windows_per_epoch:
                    epoch, index = epoch + 1, 0
        except BaseException as error:  # it is raised where the batch is asked for
            windows.ready.put(error)

    def _feed(self, batch_index: int, end: int, windows: "Mapping[int, _Windows]") -> None:
        """The feeding thread: the images of one batch after another to those that decode."""
        opened: dict[int, tuple[tuple[int, int], _Opened]] = {}
        try:
            while batch_index < end and not self._stopped.is_set():
                epoch, images = self.sampler.epoch(batch_index), []
                for reader, index, places in self.sampler.places(batch_index):
                    if reader not in opened or opened[reader][0] != (epoch, index):
                        opened[reader] = (epoch, index), windows[reader].take(self._stopped)
                    images += [(opened[reader][1], place) for place in places]
                start = 0
                for rows in self.sampler.micro_batches(batch_index):
                    share, start = images[start : start + len(rows)], start + len(rows)
                    chunks = [share[at : at + IMAGES_PER_TASK] for at in range(0, len(share), IMAGES_PER_TASK)]
                    self._put(_Batch(rows, [self._pool.submit(self._decode, chunk) for chunk in chunks]))
                batch_index += 1
        except BaseException as error:
            self._put(error)

    def _put(self, batch: "_Batch | BaseException") -> None:
        assert self._batches is not None
        while not self._stopped.is_set():
            try:
                return self._batches.put(batch, timeout=POLL)
            except queue.Full:
                continue

    def _decode(self, images: "Sequence[tuple[_Opened, int]]") -> NDArray[np.uint8]:
        return np.stack([self._image(opened, place) for opened, place in images])

    def _image(self, opened: "_Opened", place: int) -> NDArray[np.uint8]:
        """The image of a place in a window, or the next one that can be used."""
        num = len(opened.encoded)
        for index in np.roll(opened.window.order, -place):
            row = int(opened.window.rows[index])
            image = decode(opened.encoded[index], self._image_size)
            if isinstance(image, str):
                if self._on_bad_image == "raise":
                    raise RunError(
                        f"{self._shards.where(row)} cannot be decoded ({image}): {FIX}; the same command then "
                        "resumes from the last checkpoint"
                    )
                self._notes.add(row, self._shards.where(row), {"kind": "bad", "cause": image})
                continue
            duplicate = self._find_duplicate(image)
            if duplicate is not None:
                self._notes.add(row, self._shards.where(row), {"kind": "exact", **duplicate})
                if self._leave_out:
                    continue
            return image
        raise RunError(
            f"none of the {num} images from {self._shards.where(int(opened.window.rows[0]))} on can be used, all are "
            "broken or duplicate test or validation images: leave that shard out (--data.source), or shuffle more at a "
            "time (--data.stream_buffer)"
        )


def open_stream(
    stream: Stream,
    config: PretrainConfig,
    plan: Plan,
    device: torch.device,
    process_index: int,
    find_duplicate: FindDuplicate,
) -> StreamedImages:
    """The images of this process's batches; nothing is read yet.

    Args:
        stream: the shards to pre-train on.
        config: order, image size, and what happens to bad images and duplicates.
        plan: steps and processes.
        device: where the batches are needed.
        process_index: this process, from 0.
        find_duplicate: recognises images that must not be seen (`StreamedImages`).

    Raises:
        ConfigError: the processes cannot share out the readers.
    """
    sampler = StreamSampler(
        [int(length) for length in stream.shards.lengths],
        stream.num_held_out,
        config.train.batch_size,
        config.train.seed,
        config.data.stream_readers,
        config.data.stream_buffer,
        num_processes=plan.num_processes,
        process_index=process_index,
        accumulation_steps=plan.accumulation_steps,
    )
    return StreamedImages(
        stream.shards,
        sampler,
        device,
        config.model.image_size,
        on_bad_image=config.data.on_bad_image,
        notes=StreamNotes(Path(config.output_dir), process_index),
        find_duplicate=find_duplicate,
        leave_out=config.audit.leave_out,
    )


@dataclass(frozen=True, eq=False)
class _Opened:
    """A window with its images, encoded, in the order in which they were read."""

    window: Window
    encoded: list[Encoded]


@dataclass(frozen=True, eq=False)
class _Batch:
    """The rows of a micro-batch, and their images as they are decoded, in chunks."""

    rows: NDArray[np.int64]
    chunks: list[Future[NDArray[np.uint8]]]


class _Windows:
    """The windows of a reader on their way from the thread that reads to the one that feeds."""

    def __init__(self) -> None:
        self.room = threading.Semaphore(1)
        self.ready: queue.Queue[_Opened | BaseException] = queue.Queue()

    def take(self, stopped: threading.Event) -> _Opened:
        """The next window; the one after it may be read from now on."""
        while not stopped.is_set():
            with contextlib.suppress(queue.Empty):
                opened = self.ready.get(timeout=POLL)
                if isinstance(opened, BaseException):
                    raise opened
                self.room.release()
                return opened
        raise RunError("the stream was closed")
