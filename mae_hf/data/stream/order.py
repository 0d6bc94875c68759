"""The order of streamed images, as a pure function of the batch: shuffled as well as reading in sequence allows.

An epoch shuffles the shards, concatenates them and divides their images into equal parts, one per reader. Every batch
takes an equal share of each part, so it mixes images from all over the stream. Each process reads only its own parts.

A part is read in windows, and the images of a window are shuffled. Unlike the usual shuffle buffer, a window depends on
(seed, epoch, reader, window) alone, not on what was read before. A checkpoint therefore saves nothing of the stream: a
resumed run reads the windows of its next batch.

K shards, n images of a window.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import Plan
from mae_hf.data.random import permutation
from mae_hf.errors import require

Encoded = bytes | str


@dataclass(frozen=True, eq=False)
class Stream:
    """The shards to pre-train on: the files of one or several sources, in the order of their names."""

    files: tuple[str, ...]  # (K,), paths or addresses
    lengths: NDArray[np.int64]  # (K,), images of each
    num_held_out: int  # images that are held out, the first of the stream
    fingerprint: str  # of the names, sizes and lengths of the files, not of their paths, and of `num_held_out`

    def __len__(self) -> int:
        return int(self.lengths.sum()) - self.num_held_out

    @functools.cached_property
    def ends(self) -> NDArray[np.int64]:
        """The row after the last one of each shard, (K,). A row is the number of an image over all shards."""
        return np.cumsum(self.lengths)

    def locate(self, row: int) -> tuple[int, int]:
        """The shard of an image, and its number there."""
        shard = int(np.searchsorted(self.ends, row, side="right"))
        return shard, int(row - self.ends[shard] + self.lengths[shard])

    def where(self, row: int) -> str:
        """The name of an image in a message."""
        shard, number = self.locate(row)
        return f"image {number} of {self.files[shard]}"


@dataclass(frozen=True, eq=False)
class Window:
    """Images that are read one after another and shuffled."""

    rows: NDArray[np.int64]  # (n,), as they are read
    order: NDArray[np.int64]  # (n,), which of them comes first, second, ... in training: indices into `rows`


class StreamSampler:
    """The rows of every global batch, for images that are read in sequence.

    An image has the same row whenever it is read, and so the same random draws. As with `BatchSampler`, a batch is the
    same set of images on any number of processes. ConfigError if the readers cannot be divided evenly among these.
    """

    def __init__(self, stream: Stream, config: PretrainConfig, plan: Plan, process_index: int) -> None:
        num_readers = config.data.stream_readers
        require(
            num_readers % plan.num_processes == 0,
            f"stream_readers {num_readers} cannot be divided among {plan.num_processes} processes: choose a multiple "
            f"of {plan.num_processes} (--data.stream_readers)",
        )
        share = num_readers // plan.num_processes
        self.readers = range(process_index * share, (process_index + 1) * share)
        self.stream = stream
        self._lengths = np.clip(stream.ends - stream.num_held_out, 0, stream.lengths)  # without held-out images
        self.plan = plan
        self._seed = config.train.seed
        self._part = len(stream) // num_readers
        self._share = config.train.batch_size // num_readers
        self._window_size = min(max(1, config.data.stream_buffer // num_readers), self._part)
        # one per reader is in use at a time, two where a batch or reading ahead crosses a border
        self.window = functools.lru_cache(maxsize=4 * share)(self._window)

    def micro_batches(self, step: int) -> list[NDArray[np.int64]]:
        """This process's rows of the batch of a step (from 0), one int64 array (B,) per micro-batch."""
        epoch, rows = self.plan.epoch(step), []
        for reader in self.readers:
            for index, positions in self.positions(step):
                window = self.window(epoch, reader, index)
                rows.append(window.rows[window.order[positions]])
        return np.split(np.concatenate(rows), self.plan.accumulation_steps)

    def positions(self, step: int) -> list[tuple[int, range]]:
        """Each reader's images of a batch: number of its window in the epoch, and positions in the window's order."""
        start, size = step % self.plan.steps_per_epoch * self._share, self._window_size
        stop = start + self._share
        indices = range(start // size, (stop - 1) // size + 1)
        return [(index, range(max(start - index * size, 0), min(stop - index * size, size))) for index in indices]

    def windows(self, reader: int, first_step: int, end: int) -> Iterator[Window]:
        """The windows that a reader needs for the steps from `first_step` to before `end`, in their order."""
        steps = range(first_step, end)
        needed = ((self.plan.epoch(step), index) for step in steps for index, _ in self.positions(step))
        for (epoch, index), _ in itertools.groupby(needed):
            yield self.window(epoch, reader, index)

    def _window(self, epoch: int, reader: int, index: int) -> Window:
        order = permutation(len(self._lengths), self._seed, epoch, "shards")
        ends = np.cumsum(self._lengths[order])
        start = reader * self._part + index * self._window_size
        places = np.arange(start, min(start + self._window_size, (reader + 1) * self._part))  # in the epoch
        nth = np.searchsorted(ends, places, side="right")
        shuffled = permutation(len(places), self._seed, epoch, f"window {reader} {index}")
        return Window(self.stream.ends[order[nth]] - ends[nth] + places, shuffled)
