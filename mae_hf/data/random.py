"""Random numbers as pure functions of where they are used: the same on every machine and any number of processes.

A stateful generator would tie the numbers of an image to the batches before it and to the number of processes. Here
each number is a hash of its address, so a run can be resumed, accumulated or spread over processes without a change.
`to_device` copies what was drawn to the device that uses it.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of the images of a micro-batch and of its batch.

    An image's numbers depend on (seed, epoch, row) alone, whatever batch the row is in. The numbers of a whole batch
    depend on (seed, step). Each purpose ("crop", "mask") has its own numbers, independent of all others.
    """

    seed: int  # of the run
    epoch: int  # pass over the images, from 0
    rows: NDArray[np.int64]  # (B,), the rows of the images in their `ImageSet` or stream
    step: int  # optimizer step that the batch is for, from 0

    def __getitem__(self, index: slice | NDArray[np.int64]) -> "Draws":
        """The draws of some images of the micro-batch."""
        return replace(self, rows=self.rows[index])

    def uniform(self, purpose: str, num: int) -> NDArray[np.float64]:
        """`num` uniform numbers in [0, 1) for each image: float64 (B, num)."""
        return _uniform(self.seed, self.epoch, self.rows, purpose, num)

    def normal(self, purpose: str, num: int) -> NDArray[np.float32]:
        """`num` standard normal numbers for each image: float32 (B, num).

        Source: Box and Muller 1958.
        """
        draws = self.uniform(purpose, num + num % 2)
        radius = np.sqrt(-2 * np.log((1 - draws[:, ::2]).astype(np.float32)))  # 1 - u is above 0, also once rounded
        angle = (2 * np.pi * draws[:, 1::2]).astype(np.float32)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(len(draws), -1)[:, :num]

    def uniform_of_batch(self, purpose: str, num: int) -> NDArray[np.float64]:
        """`num` uniform numbers in [0, 1) that all images of the batch share: float64 (num,)."""
        return _uniform(self.seed, self.step, np.zeros(1, np.int64), purpose, num)[0]


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy draws or other small values to the device. With a GPU, the copy is queued and the host continues.

    A plain `.to(device)` from ordinary memory would make the host wait until the GPU has finished its queue. On a CPU,
    the tensor shares the memory of `values`.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def integer_seed(seed: int, epoch: int, purpose: str) -> int:
    """A seed for a library's own generator, different for every (seed, epoch, purpose)."""
    return int(_uniform(seed, epoch, np.zeros(1, np.int64), purpose, 1)[0, 0] * 2**53)


def permutation(num: int, seed: int, epoch: int, purpose: str) -> NDArray[np.int64]:
    """A random order of the numbers below `num`, different for every (seed, epoch, purpose)."""
    generator = torch.Generator().manual_seed(integer_seed(seed, epoch, purpose))
    return torch.randperm(num, generator=generator).numpy()


def _uniform(seed: int, epoch: int, rows: NDArray[np.int64], purpose: str, num: int) -> NDArray[np.float64]:
    """Uniform numbers, float64 (B, num): one SplitMix64 generator (Steele, Lea and Flood 2014) per row.

    Each generator starts at a hash of its address.
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, zlib.crc32(purpose.encode())):
        state = _scramble(state + _GOLDEN + np.uint64(part % 2**64))
    state = _scramble(state + _GOLDEN + rows.astype(np.uint64))
    counter = np.arange(1, num + 1, dtype=np.uint64) * _GOLDEN
    bits = _scramble(state[:, None] + counter)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: a bijection of 64 bits in which every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
