"""The order of streamed images, as a pure function of the batch: shuffled as well as reading in sequence allows.

An epoch shuffles the shards, lays their images in a row and cuts it into as many equal parts as there are readers.
Every batch takes an equal share of each part, so that it mixes as many places as there are readers; each process
has some of the parts and reads nothing else. A part is read in windows, and the images of a window are shuffled: a
shuffle buffer that is emptied whole, so that it is a function of (seed, epoch, reader, window), not of what was read
before. Nothing has to be saved: to go on at a batch is to read its windows.

K shards, n images of a window.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mae_hf.data.random import integer_seed
from mae_hf.errors import require


@dataclass(frozen=True, eq=False)
class Window:
    """Images that are read one after another and shuffled.

    Args:
        pieces: what to read, in this order: shard, first image of the shard, number of images.
        rows: int64 (n,), the numbers of the images as they are read.
        order: int64 (n,), which of them comes first, second, ... in training.
    """

    pieces: tuple[tuple[int, int, int], ...]
    rows: NDArray[np.int64]
    order: NDArray[np.int64]


class StreamSampler:
    """The rows of every global batch, for images that are read in sequence.

    A row is the number of an image over all shards in the order of their names, so what is drawn for it does not depend
    on when it is read. As with `BatchSampler`, a batch is the same set of images on any number of processes.

    Args:
        lengths: images of each shard, (K,).
        first: the images before this one are not trained on.
        batch_size: images per optimizer step, over all processes and micro-batches together: at most the images that
            are left, and a multiple of the number of these and of `num_readers`, which the config sees to.
        seed: seed of the order.
        num_readers: parts of an epoch that are read at once.
        buffer_size: images of the windows that are open at once, over all readers.
        num_processes: processes that share the batch.
        process_index: this process, from 0.
        accumulation_steps: micro-batches per process and optimizer step.

    Raises:
        ConfigError: readers that the processes cannot share out evenly.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        first: int,
        batch_size: int,
        seed: int,
        num_readers: int,
        buffer_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation_steps: int = 1,
    ) -> None:
        starts = np.concatenate([[0], np.cumsum(lengths)])
        self._begin = np.maximum(starts[:-1], first)  # rows (K,) at which each shard's part in training begins
        self._skipped = self._begin - starts[:-1]
        self._lengths = np.maximum(starts[1:] - self._begin, 0)
        self.num_images = int(self._lengths.sum())
        require(
            num_readers % num_processes == 0,
            f"stream_readers {num_readers} cannot be shared out to {num_processes} processes: choose a multiple of "
            f"{num_processes} (--data.stream_readers)",
        )
        share = num_readers // num_processes
        self.readers = range(process_index * share, (process_index + 1) * share)
        self.batches_per_epoch = self.num_images // batch_size
        self.accumulation_steps = accumulation_steps
        self._seed = seed
        self._part = self.num_images // num_readers
        self._share = batch_size // num_readers
        self.window_size = min(max(1, buffer_size // num_readers), self._part)
        # one for each reader is in use at a time, two where a batch or the reading ahead crosses a border
        self.window = functools.lru_cache(maxsize=4 * share)(self._window)

    def epoch(self, batch_index: int) -> int:
        """The epoch that batch `batch_index` belongs to, both from 0."""
        return batch_index // self.batches_per_epoch

    def micro_batches(self, batch_index: int) -> list[NDArray[np.int64]]:
        """This process's rows of batch `batch_index` (from 0), one int64 array (B,) per micro-batch."""
        epoch, rows = self.epoch(batch_index), []
        for reader, index, places in self.places(batch_index):
            window = self.window(epoch, reader, index)
            rows.append(window.rows[window.order[places]])
        return np.split(np.concatenate(rows), self.accumulation_steps)

    def places(self, batch_index: int) -> list[tuple[int, int, range]]:
        """Where this process's images of a batch are: reader, number of its window, and the places in its order."""
        start = batch_index % self.batches_per_epoch * self._share
        pieces = []
        for reader in self.readers:
            at, stop = start, start + self._share
            while at < stop:
                index, place = divmod(at, self.window_size)
                num = min(stop - at, self.window_size - place)
                pieces.append((reader, index, range(place, place + num)))
                at += num
        return pieces

    def window_at(self, batch_index: int) -> tuple[int, int]:
        """The epoch of a batch and the number of the window that each reader is in."""
        return self.epoch(batch_index), batch_index % self.batches_per_epoch * self._share // self.window_size

    def last_window_at(self, batch_index: int) -> tuple[int, int]:
        """The same of the last images that a reader gives to this batch."""
        start = batch_index % self.batches_per_epoch * self._share
        return self.epoch(batch_index), (start + self._share - 1) // self.window_size

    @property
    def windows_per_epoch(self) -> int:
        """Windows that a reader opens in an epoch; the last images of an epoch that fill no batch are not read."""
        return -(-self.batches_per_epoch * self._share // self.window_size)

    def _window(self, epoch: int, reader: int, index: int) -> Window:
        order = _permutation(len(self._lengths), self._seed, epoch, "shards")
        ends = np.cumsum(self._lengths[order])
        start = reader * self._part + index * self.window_size
        stop = min(start + self.window_size, (reader + 1) * self._part)
        pieces, rows, at = [], [], start
        while at < stop:
            place = int(np.searchsorted(ends, at, side="right"))
            shard = int(order[place])
            within = at - int(ends[place] - self._lengths[shard])
            num = min(stop - at, int(self._lengths[shard]) - within)
            pieces.append((shard, int(self._skipped[shard]) + within, num))
            rows.append(np.arange(num) + self._begin[shard] + within)
            at += num
        shuffled = _permutation(stop - start, self._seed, epoch, f"window {reader} {index}")
        return Window(tuple(pieces), np.concatenate(rows), shuffled)


def _permutation(num: int, seed: int, epoch: int, stream: str) -> NDArray[np.int64]:
    generator = torch.Generator().manual_seed(integer_seed(seed, epoch, stream))
    return torch.randperm(num, generator=generator).numpy()
