"""Intervals, tests and spreads on cases whose answers are known: tables, closed forms, counting by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, t

from mae_hf.evaluation.statistics import (
    MIN_SEEDS,
    epochs_to_reach,
    image_interval,
    mcnemar,
    mean_under_curve,
    over_seeds,
    welch,
)


def test_the_interval_of_an_accuracy_has_the_quantiles_of_the_binomial_distribution():
    """Resampling 0s and 1s with replacement draws from Binomial(n, accuracy), whose quantiles are known."""
    interval = image_interval(np.repeat([1.0, 0.0], [360, 140]))
    assert interval is not None
    low, high = binom.ppf([0.025, 0.975], 500, 0.72) / 500
    assert interval.low == pytest.approx(low, abs=0.003) and interval.high == pytest.approx(high, abs=0.003)


def test_the_interval_of_a_difference_resamples_both_arms_together():
    """Arms that fail on the same images have a narrow interval: its variance is that of the differences alone."""
    rng = np.random.default_rng(0)
    baseline = rng.random(2000) < 0.6
    ours = baseline | (np.arange(2000) % 25 == 0)  # never worse
    difference = ours.astype(float) - baseline
    interval = image_interval(difference)
    assert interval is not None
    error = difference.std() / math.sqrt(2000)
    assert interval.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.001)
    assert interval.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.001)
    assert interval.low > 0


def test_the_same_images_give_the_same_interval():
    values = np.arange(50) % 3 == 0
    assert image_interval(values) == image_interval(values)


def test_images_that_are_all_alike_have_no_interval_rather_than_one_of_width_zero():
    assert image_interval(np.ones(100)) is None and image_interval(np.zeros(3)) is None
    assert image_interval(np.array([0.5])) is None and image_interval(np.array([])) is None


def test_the_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    intervals = [image_interval(rng.random(200) < 0.7) for _ in range(50)]
    covered = sum(i is not None and i.low <= 0.7 <= i.high for i in intervals)
    assert covered >= 43  # 47.5 expected, standard deviation 1.5


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    # A fair coin, both tails: 2 * (1/2)^5; 2 * (C(10,0) + C(10,1) + C(10,2)) / 2^10; 1 where both are equal or nothing
    [(5, 0, 0.0625), (8, 2, 0.109375), (2, 8, 0.109375), (4, 4, 1.0), (0, 0, 1.0), (1, 0, 1.0)],
)
def test_mcnemars_test_has_the_p_values_of_a_fair_coin(only_first, only_second, p_value):
    first = [True] * only_first + [False] * only_second + [True] * 7 + [False] * 3
    second = [False] * only_first + [True] * only_second + [True] * 7 + [False] * 3
    result = mcnemar(np.array(first), np.array(second))
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p_value == pytest.approx(p_value)


def test_a_paired_test_of_other_images_is_refused():
    with pytest.raises(ValueError, match="3 and 4 images"):
        mcnemar(np.ones(3), np.ones(4))


def test_a_single_seed_has_no_spread():
    one = over_seeds([0.5])
    assert (one.center, one.sd, one.low, one.high, one.kind) == (0.5, None, None, None, "none")


def test_few_seeds_have_a_range_and_the_standard_deviation_of_a_sample():
    three = over_seeds([0.5, 0.7, 0.9])
    assert three.center == pytest.approx(0.7) and three.sd == pytest.approx(0.2)
    assert (three.low, three.high, three.kind) == (0.5, 0.9, "range")


def test_the_bootstrap_over_seeds_has_the_quantiles_of_all_resamples():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert len(values) == MIN_SEEDS
    means = np.sort([np.mean(draw) for draw in itertools.product(values, repeat=5)])  # all 3,125
    result = over_seeds(values)
    assert result.kind == "bootstrap"
    assert result.low == pytest.approx(means[round(0.025 * 3125)], abs=0.4)
    assert result.high == pytest.approx(means[round(0.975 * 3125)], abs=0.4)


def test_a_seed_that_never_gets_there_counts_in_the_median():
    assert over_seeds([4, math.inf, 6], use_median=True).center == 6
    most = over_seeds([4, math.inf, math.inf], use_median=True)
    assert (most.center, most.sd, most.low, most.high) == (math.inf, None, 4, math.inf)
    many = over_seeds([3, 4, 5, 6, math.inf, math.inf], use_median=True)
    assert many.center == 5.5 and 3 <= many.low <= 4 and many.high == math.inf and many.kind == "bootstrap"


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [0.5, math.inf]])
def test_a_mean_of_what_is_no_number_is_refused(values):
    with pytest.raises(ValueError, match="a number is needed from each seed"):
        over_seeds(values)


def test_the_mean_under_a_curve_is_that_of_the_integral():
    # y = x / 10 on 0..10 has the mean 0.5, and 0.35 between 2 and 5; a constant has itself
    assert mean_under_curve([0, 1, 10], [0, 0.1, 1], 0, 10) == pytest.approx(0.5)
    assert mean_under_curve([0, 1, 10], [0, 0.1, 1], 2, 5) == pytest.approx(0.35)
    assert mean_under_curve([1, 2, 7], [0.4, 0.4, 0.4], 1, 7) == pytest.approx(0.4)
    # 0 until epoch 1, a rise to 1 until epoch 2, 1 from there on: 0 + 0.5 + 2 over 4 epochs
    assert mean_under_curve([0, 1, 2, 4], [0, 0, 1, 1], 0, 4) == pytest.approx(2.5 / 4)


@pytest.mark.parametrize(("start", "end"), [(0, 3), (1, 5), (2, 2), (3, 2)])
def test_a_range_that_the_curve_does_not_cover_is_refused(start, end):
    with pytest.raises(ValueError, match="does not cover epochs"):
        mean_under_curve([1, 2, 4], [0.1, 0.2, 0.3], start, end)


def test_the_first_epoch_that_reaches_the_target_counts():
    assert epochs_to_reach([1, 2, 3, 4], [0.2, 0.5, 0.4, 0.6], 0.5) == 2
    assert epochs_to_reach([1, 2], [0.2, 0.5], 0.51) == math.inf
    assert epochs_to_reach([], [], 0.5) == math.inf


def test_welch_compares_the_means_of_seeds_and_needs_several_of_each():
    # by hand: means 0.62 and 0.59, variances 1e-4 and 4e-4, 3 seeds each: t = 0.03 / sqrt(5e-4 / 3), 2.94 degrees
    p_value = welch([0.61, 0.62, 0.63], [0.57, 0.59, 0.61])
    assert p_value == pytest.approx(2 * t.sf(0.03 / (5e-4 / 3) ** 0.5, 25 / 17 * 2), rel=1e-9)
    assert welch([0.6], [0.5, 0.4]) is None
    assert welch([0.6, 0.6], [0.5, 0.5]) is None
