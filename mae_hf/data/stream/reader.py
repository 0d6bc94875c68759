"""Images that are read during training: windows of shards, decoded in threads, one batch after another.

Each reader has one window in use and at most one read ahead, still encoded. `batch` hands the images of a coming batch
to the decoding threads, and takes the decoded ones in turn. `StreamSampler` alone decides which image comes when. An
image that cannot be decoded or must not be seen is replaced by the next one of its window. So the images of a batch
depend on nothing else.

Shapes: B images in a batch, S side of the square image.
"""

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from mae_hf.config.data import DataConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import Plan
from mae_hf.data.cache import ahead, open_stores
from mae_hf.data.cores import num_cores
from mae_hf.data.dataset import ImageSet
from mae_hf.data.decode import FIX_BAD_IMAGE, IMAGES_PER_TASK, decode
from mae_hf.data.splits import Split
from mae_hf.data.stream.order import Encoded, Stream, StreamSampler, Window
from mae_hf.data.stream.shards import ShardReader, open_shards
from mae_hf.errors import RunError, require, warn
from mae_hf.files import moved_away

AHEAD_PER_THREAD = 4 * IMAGES_PER_TASK  # images
NOTES = "streamed-{}.jsonl"  # in the run folder, a file of each process
SECONDS_TO_STOP = 5.0  # for threads that read: a preempted machine has 30

FindDuplicate = Callable[[NDArray[np.uint8]], Mapping[str, Any] | None]
"""Recognises images (S, S, 3) that must not be seen: returns what to note about one, None for all others."""

_Batch = tuple[NDArray[np.int64], Iterator[NDArray[np.uint8]]]
"""The rows of a micro-batch, and its images as they are decoded."""

_Opened = tuple[Window, list[Encoded]]
"""A window with its images in the order in which they were read."""


def load_stream(config: DataConfig, image_size: int) -> tuple[Stream, ImageSet]:
    """The shards to pre-train on, and the held-out images for the evaluation loss: the first of the stream.

    ConfigError if a source is wrong, or a held-out image cannot be decoded; RunError if a shard cannot be read.
    """
    stream, num = open_shards(config), config.stream_held_out
    require(
        num < stream.lengths.sum(),
        f"stream_held_out {num} leaves none of the {stream.lengths.sum()} images of {', '.join(config.sources)} to "
        "train on: choose fewer (--data.stream_held_out)",
    )
    encoded = ShardReader(stream, threading.Event()).read(np.arange(num))
    features = datasets.Features({"image": datasets.Image(decode=False)})
    images = datasets.Dataset.from_dict({"image": encoded}, features)
    split = Split(config.sources[0], "held-out", images, None, None, stream.fingerprint)
    [store] = open_stores([split], image_size, config)
    return stream, ImageSet([(store, np.arange(len(store.rows)))])


class StreamedImages:
    """The images of a process's batches on the device that trains on them, in the order of `sampler`."""

    def __init__(
        self,
        stream: Stream,
        config: PretrainConfig,
        plan: Plan,
        device: torch.device,
        process_index: int,
        find_duplicate: FindDuplicate,
    ) -> None:
        self.device = device
        self.sampler = StreamSampler(stream, config, plan, process_index)
        self._stream = stream
        self._config = config
        self._notes = StreamNotes(Path(config.output_dir), process_index)
        self._find_duplicate = find_duplicate
        self._batches: Iterator[_Batch] | None = None

    @contextlib.contextmanager
    def reading(self, first_step: int, end: int) -> Iterator[None]:
        """Read the batches of the steps from `first_step` to before `end`, until this context ends."""
        num_threads = max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        micro_batch_size = len(self.sampler.micro_batches(first_step)[0])
        stopped, decoders = threading.Event(), ThreadPoolExecutor(num_threads, "decode")
        with ThreadPool(len(self.sampler.readers)) as pool:
            windows = {reader: self.sampler.windows(reader, first_step, end) for reader in self.sampler.readers}
            shards = {reader: ShardReader(self._stream, stopped) for reader in windows}
            coming: dict[int, tuple[Window, AsyncResult[list[Encoded]]]] = {}  # a thread reads it, or has read it

            def read_ahead(reader: int) -> None:
                if window := next(windows[reader], None):
                    coming[reader] = window, pool.apply_async(shards[reader].read, (window.rows,))

            def next_window(reader: int) -> _Opened:
                window, task = coming[reader]
                opened = window, task.get()
                read_ahead(reader)
                return opened

            for reader in windows:
                read_ahead(reader)
            num_ahead = max(2, num_threads * AHEAD_PER_THREAD // micro_batch_size)
            self._batches = ahead(self._decoding(first_step, end, next_window, decoders), num_ahead)
            try:
                yield
            finally:
                stopped.set()
                # A thread that still reads when Python ends can crash it, but a server is not waited for.
                deadline = time.monotonic() + SECONDS_TO_STOP
                for _, task in coming.values():
                    task.wait(max(0.0, deadline - time.monotonic()))
                decoders.shutdown(cancel_futures=True)
                self._batches = None

    def batch(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The images of `rows`, np.int64 (B,), as torch.uint8 (B, S, S, 3) on the device.

        `rows` must belong to the next micro-batch. Outside of `reading` all images are black. RunError if a shard
        cannot be read, or an image cannot be decoded.
        """
        pinned, size = self.device.type == "cuda", self._config.model.image_size
        images = torch.zeros((len(rows), size, size, 3), dtype=torch.uint8, pin_memory=pinned)
        if self._batches is not None:
            expected, decoded = next(self._batches)
            if not np.array_equal(expected, rows):
                raise ValueError("the batches of a stream must be taken in their order")
            np.concatenate(list(decoded), out=images.numpy())
        return images.to(self.device, non_blocking=True)

    def _decoding(
        self, first_step: int, end: int, next_window: Callable[[int], _Opened], decoders: ThreadPoolExecutor
    ) -> Iterator[_Batch]:
        """Hand the images of one batch after another to the decoding threads."""
        in_use: dict[int, tuple[tuple[int, int], _Opened]] = {}  # of each reader: epoch and number, the window
        for step in range(first_step, end):
            epoch, images = self.sampler.plan.epoch(step), []
            for reader, (index, positions) in itertools.product(self.sampler.readers, self.sampler.positions(step)):
                if reader not in in_use or in_use[reader][0] != (epoch, index):
                    in_use[reader] = (epoch, index), next_window(reader)
                images += [(*in_use[reader][1], position) for position in positions]
            for rows in self.sampler.micro_batches(step):
                share, images = images[: len(rows)], images[len(rows) :]
                parts = [share[at : at + IMAGES_PER_TASK] for at in range(0, len(share), IMAGES_PER_TASK)]
                yield rows, decoders.map(lambda part: np.stack([self._image(*each) for each in part]), parts)

    def _image(self, window: Window, encoded: Sequence[Encoded], position: int) -> NDArray[np.uint8]:
        """The image at a position of a window, or the next one that can be used."""
        for index in np.roll(window.order, -position):
            row = int(window.rows[index])
            image = decode(encoded[index], self._config.model.image_size, self._config.data)
            if isinstance(image, str):
                if self._config.data.on_bad_image == "raise":
                    which = f"{self._stream.where(row)} cannot be decoded ({image})"
                    raise RunError(f"{which}: {FIX_BAD_IMAGE}; the same command then resumes from the last checkpoint")
                self._notes.add(row, self._stream.where(row), {"kind": "bad", "cause": image})
            elif (duplicate := self._find_duplicate(image)) is None:
                return image
            else:
                self._notes.add(row, self._stream.where(row), {"kind": "exact", **duplicate})
                if not self._config.audit.leave_out:
                    return image
        raise RunError(
            f"none of the {len(encoded)} images from {self._stream.where(int(window.rows[0]))} on can be used, all are "
            "broken or duplicate test or validation images: leave that shard out (--data.source), or shuffle more at a "
            "time (--data.stream_buffer)"
        )


class StreamNotes:
    """What a process notes about streamed images in the run folder, on disk before a checkpoint that has seen them.

    A note is a JSON object: `row` of the stream and `image`, its name; `kind` is `bad`, with the `cause`, or `exact`,
    with the digest and the test or validation images that it duplicates. However often and by many threads an image is
    read, it has at most one note.
    """

    def __init__(self, folder: Path, process_index: int) -> None:
        self._file = folder / NOTES.format(process_index)
        self._noted = {int(note["row"]) for note in _read_notes(self._file)}
        self._warned = False
        self._lock = threading.Lock()

    def add(self, row: int, image: str, what: Mapping[str, Any]) -> None:
        """Write a note about an image unless there is one, and warn of the first bad image.

        RunError if the run folder was moved away.
        """
        with self._lock:
            if row in self._noted:
                return
            if what["kind"] == "bad" and not self._warned:
                self._warned = True
                warn(
                    f"{image} cannot be decoded ({what['cause']}): another image replaces it; {self._file} lists all "
                    "such images"
                )
            self._noted.add(row)
            try:  # the folder exists, or was moved away and must not be created again
                with self._file.open("a") as file:  # a newline first, because the last line may have been cut short
                    file.write(f"\n{json.dumps({'row': row, 'image': image, **what})}")
            except FileNotFoundError:
                raise moved_away(self._file.parent) from None


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """The notes of all processes of a run, one per image, in the order of the stream."""
    notes = {note["row"]: note for file in sorted(folder.glob(NOTES.format("*"))) for note in _read_notes(file)}
    return [notes[row] for row in sorted(notes)]


def describe_notes(notes: Sequence[Mapping[str, Any]]) -> str:
    """Say in a line how many images could not be decoded."""
    num = sum(note["kind"] == "bad" for note in notes)
    return f"bad images      {num:,} could not be decoded and were replaced" if num else "bad images      none"


def _read_notes(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):  # the run was killed while it wrote the line
            yield json.loads(line)
