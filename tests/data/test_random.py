"""The draws are pure, uniform, and independent between rows, epochs and purposes."""

import zlib

import numpy as np
import pytest
import torch
from scipy import stats

from mae_hf.data.random import Draws, integer_seed, to_device

MASK_64 = 2**64 - 1


def splitmix64(state):
    """The published generator in plain Python integers: the next state and its output."""
    state = (state + 0x9E3779B97F4A7C15) & MASK_64
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
    return state, z ^ (z >> 31)


def test_each_row_is_a_splitmix64_generator_that_starts_at_a_hash_of_its_address():
    state = 0
    for part in (5, 7, zlib.crc32(b"crop"), 11):
        _, state = splitmix64((state + part) & MASK_64)
    expected = []
    for _ in range(4):
        state, bits = splitmix64(state)
        expected.append((bits >> 11) / 2**53)
    np.testing.assert_array_equal(Draws(5, 7, np.array([11]), 0).uniform("crop", 4)[0], expected)


def test_known_values_never_change():
    expected = [[0.58101277, 0.56798513, 0.10756782], [0.68512736, 0.88865391, 0.14789867]]
    np.testing.assert_allclose(Draws(0, 0, np.array([0, 1]), 0).uniform("crop", 3), expected, rtol=0, atol=5e-9)
    draws = Draws(7, 3, np.array([5]), step=11)
    assert draws.uniform("mask", 2).tolist() == [[0.6870682261714143, 0.2610425785640046]]
    np.testing.assert_allclose(draws.normal("x", 2), [[1.7782684564590454, 0.029503757134079933]], rtol=1e-6)
    assert draws.uniform_of_batch("mix", 2).tolist() == [0.43324915057449853, 0.7451985100727173]
    assert integer_seed(7, 3, "order") == 6551327626612572


def test_the_numbers_of_a_batch_depend_on_the_step_and_not_on_rows_and_epoch():
    of_batch = Draws(1, 0, np.arange(3), step=5).uniform_of_batch("mix", 4)
    np.testing.assert_array_equal(Draws(1, 2, np.arange(7), step=5).uniform_of_batch("mix", 4), of_batch)
    assert not np.isin(Draws(1, 0, np.arange(3), step=6).uniform_of_batch("mix", 4), of_batch).any()


def test_a_row_gets_the_same_numbers_in_any_batch_and_at_any_length():
    whole = Draws(3, 2, np.arange(100), 0).uniform("crop", 6)
    np.testing.assert_array_equal(Draws(3, 2, np.array([70, 4]), 0).uniform("crop", 6), whole[[70, 4]])
    np.testing.assert_array_equal(Draws(3, 2, np.arange(100), 0).uniform("crop", 2), whole[:, :2])
    assert whole.shape == (100, 6)
    assert whole.dtype == np.float64
    assert whole.min() >= 0
    assert whole.max() < 1


def test_the_numbers_are_uniform_along_rows_and_along_the_counter():
    for numbers in (
        Draws(0, 0, np.arange(100_000), 0).uniform("mask", 1),
        Draws(0, 0, np.array([0]), 0).uniform("mask", 100_000),
    ):
        assert stats.kstest(numbers.ravel(), "uniform").pvalue > 0.001
        counts = np.histogram(numbers, bins=256, range=(0, 1))[0]
        assert stats.chisquare(counts).pvalue > 0.001


def test_neighbouring_rows_epochs_seeds_purposes_and_counters_are_uncorrelated():
    rows = np.arange(50_000)
    base = Draws(1, 1, rows, 0).uniform("crop", 2)
    others = {
        "row": Draws(1, 1, rows + 1, 0).uniform("crop", 1),
        "epoch": Draws(1, 2, rows, 0).uniform("crop", 1),
        "seed": Draws(2, 1, rows, 0).uniform("crop", 1),
        "purpose": Draws(1, 1, rows, 0).uniform("flip", 1),
        "counter": base[:, 1:],
    }
    for name, other in others.items():
        assert abs(np.corrcoef(base[:, 0], other[:, 0])[0, 1]) < 4 / np.sqrt(len(rows)), name
        cells = np.histogram2d(base[:, 0], other[:, 0], bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(cells.ravel()).pvalue > 0.0005, name


def test_no_number_repeats_over_many_rows_and_epochs():
    first = np.concatenate(
        [Draws(seed, epoch, np.arange(20_000), 0).uniform("a", 1) for seed in (0, 1) for epoch in range(5)]
    )
    assert len(np.unique(first)) == len(first)


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_any_integer_is_a_seed(seed):
    assert not np.array_equal(
        Draws(seed, 0, np.array([0]), 0).uniform("a", 4), Draws(0, 0, np.array([0]), 0).uniform("a", 4)
    )


def test_normal_numbers_are_standard_normal_and_uncorrelated_with_their_neighbours():
    numbers = Draws(0, 0, np.arange(2000), 0).normal("noise", 50)
    assert numbers.dtype == np.float32
    assert stats.kstest(numbers.ravel(), "norm").pvalue > 0.001
    for one, other in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(one.size)


def test_a_row_gets_the_same_normal_numbers_in_any_batch_and_at_any_length():
    whole = Draws(3, 2, np.arange(40), 0).normal("noise", 7)
    assert whole.shape == (40, 7)
    np.testing.assert_array_equal(Draws(3, 2, np.array([31, 4]), 0).normal("noise", 4), whole[[31, 4], :4])


def test_integer_seeds_differ_by_seed_epoch_and_purpose():
    seeds = {integer_seed(s, e, name) for s in range(20) for e in range(20) for name in ("order", "weights")}
    assert len(seeds) == 800
    assert all(0 <= value < 2**53 for value in seeds)


@pytest.mark.parametrize("values", [np.arange(6, dtype=np.int64).reshape(2, 3), torch.arange(6).reshape(2, 3)])
def test_arrays_and_tensors_keep_shape_dtype_and_values(values):
    tensor = to_device(values, torch.device("cpu"))
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_does_not_wait_for_a_gpu():
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensor = to_device(np.arange(6), torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tensor.tolist() == list(range(6))
