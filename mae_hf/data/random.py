"""Random numbers that belong to an image: pure functions of (seed, epoch, row), the same on every machine and split.

A stateful generator would tie what an image gets to the batches before it and to the number of processes. Here each
number is a hash of where it is used, so a run can be resumed, accumulated or spread over processes without a change.
"""

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, epoch: int, rows: ArrayLike, num: int, stream: str) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for each row, whatever batch the row is in.

    Args:
        seed: seed of the run.
        epoch: pass over the images; each has its own numbers.
        rows: int64 (B,), row numbers of an `ImageSet`.
        num: numbers per row.
        stream: what they are for ("crop", "mask"); streams are independent of each other.

    Returns:
        float64 (B, num).

    Source: SplitMix64 (Steele, Lea and Flood 2014), one generator per row, started at a hash of where it is used.
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, zlib.crc32(stream.encode())):
        state = _scramble(state + _GOLDEN + np.uint64(part % 2**64))
    state = _scramble(state + _GOLDEN + np.asarray(rows, dtype=np.int64).astype(np.uint64))
    counter = np.arange(1, num + 1, dtype=np.uint64) * _GOLDEN
    bits = _scramble(state[:, None] + counter)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, epoch: int, rows: ArrayLike, num: int, stream: str) -> NDArray[np.float32]:
    """Standard normal numbers for each row, float32 (B, num); arguments as for `uniform`.

    Source: Box and Muller 1958.
    """
    draws = uniform(seed, epoch, rows, num + num % 2, stream)
    radius = np.sqrt(-2 * np.log((1 - draws[:, ::2]).astype(np.float32)))  # 1 - u is above 0, also once rounded
    angle = (2 * np.pi * draws[:, 1::2]).astype(np.float32)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(len(draws), -1)[:, :num]


def integer_seed(seed: int, epoch: int, stream: str) -> int:
    """A seed for a library's own generator, another one for every (seed, epoch, stream)."""
    return int(uniform(seed, epoch, [0], 1, stream)[0, 0] * 2**53)


def _scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: a bijection of 64 bits in which every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
