"""The draws are pure, uniform, and independent between rows, epochs and streams."""

import zlib

import numpy as np
import pytest
from scipy import stats

from mae_hf.data.random import integer_seed, normal, uniform

MASK_64 = 2**64 - 1


def splitmix64(state):
    """The published generator in plain Python integers: the next state and its output."""
    state = (state + 0x9E3779B97F4A7C15) & MASK_64
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
    return state, z ^ (z >> 31)


def test_each_row_is_a_splitmix64_generator_started_at_a_hash_of_its_address():
    state = 0
    for part in (5, 7, zlib.crc32(b"crop"), 11):
        _, state = splitmix64((state + part) & MASK_64)
    expected = []
    for _ in range(4):
        state, bits = splitmix64(state)
        expected.append((bits >> 11) / 2**53)
    np.testing.assert_array_equal(uniform(5, 7, [11], 4, "crop")[0], expected)


def test_the_values_of_one_address_never_change():
    expected = [[0.58101277, 0.56798513, 0.10756782], [0.68512736, 0.88865391, 0.14789867]]
    np.testing.assert_allclose(uniform(0, 0, [0, 1], 3, "crop"), expected, rtol=0, atol=5e-9)


def test_a_row_gets_the_same_numbers_in_any_batch_and_at_any_length():
    whole = uniform(3, 2, np.arange(100), 6, "crop")
    np.testing.assert_array_equal(uniform(3, 2, np.array([70, 4]), 6, "crop"), whole[[70, 4]])
    np.testing.assert_array_equal(uniform(3, 2, np.arange(100), 2, "crop"), whole[:, :2])
    assert whole.shape == (100, 6)
    assert whole.dtype == np.float64
    assert whole.min() >= 0
    assert whole.max() < 1


def test_the_numbers_are_uniform_along_rows_and_along_the_counter():
    for numbers in (uniform(0, 0, np.arange(100_000), 1, "mask"), uniform(0, 0, [0], 100_000, "mask")):
        assert stats.kstest(numbers.ravel(), "uniform").pvalue > 0.001
        counts = np.histogram(numbers, bins=256, range=(0, 1))[0]
        assert stats.chisquare(counts).pvalue > 0.001


def test_neighbouring_rows_epochs_seeds_streams_and_counters_are_uncorrelated():
    rows = np.arange(50_000)
    base = uniform(1, 1, rows, 2, "crop")
    others = {
        "row": uniform(1, 1, rows + 1, 1, "crop"),
        "epoch": uniform(1, 2, rows, 1, "crop"),
        "seed": uniform(2, 1, rows, 1, "crop"),
        "stream": uniform(1, 1, rows, 1, "flip"),
        "counter": base[:, 1:],
    }
    for name, other in others.items():
        assert abs(np.corrcoef(base[:, 0], other[:, 0])[0, 1]) < 4 / np.sqrt(len(rows)), name
        cells = np.histogram2d(base[:, 0], other[:, 0], bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(cells.ravel()).pvalue > 0.0005, name


def test_no_row_of_many_epochs_repeats_another():
    first = np.concatenate([uniform(seed, epoch, np.arange(20_000), 1, "a") for seed in (0, 1) for epoch in range(5)])
    assert len(np.unique(first)) == len(first)


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_any_integer_is_a_seed(seed):
    assert not np.array_equal(uniform(seed, 0, [0], 4, "a"), uniform(0, 0, [0], 4, "a"))


def test_normal_numbers_are_standard_normal_and_uncorrelated_with_their_neighbours():
    numbers = normal(0, 0, np.arange(2000), 50, "noise")
    assert numbers.dtype == np.float32
    assert stats.kstest(numbers.ravel(), "norm").pvalue > 0.001
    for one, other in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(one.size)


def test_a_row_gets_the_same_normal_numbers_in_any_batch_and_at_any_length():
    whole = normal(3, 2, np.arange(40), 7, "noise")
    assert whole.shape == (40, 7)
    np.testing.assert_array_equal(normal(3, 2, [31, 4], 4, "noise"), whole[[31, 4], :4])


def test_integer_seeds_differ_by_seed_epoch_and_stream():
    seeds = {integer_seed(s, e, name) for s in range(20) for e in range(20) for name in ("order", "weights")}
    assert len(seeds) == 800
    assert all(0 <= value < 2**53 for value in seeds)
