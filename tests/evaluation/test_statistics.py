"""Intervals, tests and spreads on cases whose answers are known: tables, closed forms, counting by hand."""

import math

import numpy as np
import pytest
from scipy.stats import binom, t

from mae_hf.evaluation.statistics import (
    NUM_RESAMPLES,
    Interval,
    first_over_second,
    holm,
    mcnemar,
    mean_spread,
    mean_under_curve,
    median_spread,
    percentile_interval,
    resample_arms,
    welch,
)


def image_interval(values: np.ndarray) -> Interval | None:
    """The interval of a mean over test images."""
    (arm,) = resample_arms([np.ones((1, 1))], [np.asarray(values, float)[None]])
    return percentile_interval(arm.accuracy)


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
    assert image_interval(np.array([0.5])) is None


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
    assert (result["only_first"], result["only_second"]) == (only_first, only_second)
    assert result["p_value"] == pytest.approx(p_value)


def test_the_interval_of_a_mean_is_students_t():
    # by hand: mean 3, standard deviation sqrt(2.5), 5 values, 4 degrees of freedom: 3 ± 2.776 * sqrt(2.5 / 5)
    five = mean_spread([1, 2, 3, 4, 5])
    assert (five.center, five.kind) == (3, "t") and five.sd == pytest.approx(2.5**0.5)
    assert (five.low, five.high) == pytest.approx((3 - 2.776445 * 0.5**0.5, 3 + 2.776445 * 0.5**0.5), abs=1e-5)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_the_interval_over_few_seeds_covers_the_truth_95_times_of_100(num_seeds):
    """A percentile bootstrap over five seeds covers 84 of 100."""
    draws = np.random.default_rng(0).normal(0.7, 0.02, size=(1500, num_seeds))
    spreads = [mean_spread(values) for values in draws]
    covered = np.mean([spread.low <= 0.7 <= spread.high for spread in spreads])
    assert covered == pytest.approx(0.95, abs=0.018)  # three standard deviations of 1,500 trials


def test_one_number_and_equal_numbers_have_no_interval():
    one, same = mean_spread([0.5]), mean_spread([0.5, 0.5])
    assert (one.center, one.sd, one.low, one.high, one.kind) == (0.5, None, None, None, "none")
    assert (same.center, same.sd, same.low, same.high, same.kind) == (0.5, 0, None, None, "none")
    assert median_spread([4]).kind == "none"


def test_a_seed_that_never_gets_there_counts_in_the_median_and_the_range():
    few = median_spread([4, math.inf, 6])
    assert (few.center, few.sd, few.low, few.high, few.kind) == (6, None, 4, math.inf, "range")
    assert median_spread([4, math.inf, math.inf]).center == math.inf
    many = median_spread([3, 4, 5, 6, math.inf, math.inf])
    assert (many.center, many.low, many.high) == (5.5, 3, math.inf)


def rows(*counts: int, n: int) -> np.ndarray:
    """A row for each count: the first `count` of n images are right."""
    return (np.arange(n) < np.array(counts)[:, None]).astype(float)


def test_resampling_chooses_the_recipe_again_and_tests_that_recipe():
    """Two recipes that are right on 10 and 9 of 30 validation images swap places in a known share of the resamples."""
    disjoint = np.zeros((2, 30))
    disjoint[0, :10], disjoint[1, 10:19] = 1, 1
    arms = [rows(15, n=30), disjoint], [rows(600, n=1000), rows(540, 590, n=1000)]
    (ours, theirs), again = resample_arms(*arms), resample_arms(*arms)
    assert ours.chosen.tolist() == [1.0]
    # of the images that one of the two has right, Binomial(k, 10/19) belong to the first; equal counts are a fair coin
    ties, wins = 0.0, 0.0
    for k in range(31):
        weight = binom.pmf(k, 30, 19 / 30)
        ties += weight * (binom.pmf(k / 2, k, 10 / 19) if k % 2 == 0 else 0)
        wins += weight * binom.sf(k // 2, k, 10 / 19)
    assert theirs.chosen[0] == pytest.approx(wins + ties / 2, abs=0.02)
    mixture = theirs.chosen @ [0.54, 0.59]
    assert theirs.accuracy.mean() == pytest.approx(mixture, abs=0.002)
    assert ours.accuracy.shape == (NUM_RESAMPLES,) and (theirs.accuracy == again[1].accuracy).all()


def test_the_arms_are_resampled_on_the_same_images():
    baseline = rows(600, n=1000)
    better = baseline.copy()
    better[0, 990:] = 1
    gain = np.subtract(*(arm.accuracy for arm in resample_arms([rows(1, n=2)] * 2, [better, baseline])))
    assert gain.min() >= 0 and gain.std() == pytest.approx(math.sqrt(0.01 * 0.99 / 1000), rel=0.05)


def test_the_mean_under_a_curve_is_that_of_the_integral():
    # y = x / 10 on 0..10 has the mean 0.5, and 0.35 between 2 and 5; a constant has itself
    assert mean_under_curve([0, 1, 10], [0, 0.1, 1], 0, 10) == pytest.approx(0.5)
    assert mean_under_curve([0, 1, 10], [0, 0.1, 1], 2, 5) == pytest.approx(0.35)
    assert mean_under_curve([1, 2, 7], [0.4, 0.4, 0.4], 1, 7) == pytest.approx(0.4)
    # 0 until epoch 1, a rise to 1 until epoch 2, 1 from there on: 0 + 0.5 + 2 over 4 epochs
    assert mean_under_curve([0, 1, 2, 4], [0, 0, 1, 1], 0, 4) == pytest.approx(2.5 / 4)


def test_welch_compares_the_means_of_seeds_and_needs_several_of_each():
    # by hand: means 0.62 and 0.59, variances 1e-4 and 4e-4, 3 seeds each: t = 0.03 / sqrt(5e-4 / 3), 2.94 degrees
    test = welch([0.61, 0.62, 0.63], [0.57, 0.59, 0.61])
    error, degrees = (5e-4 / 3) ** 0.5, 25 / 17 * 2
    assert test["p_value"] == pytest.approx(2 * t.sf(0.03 / error, degrees), rel=1e-9)
    assert test["interval"].high == pytest.approx(0.03 + t.ppf(0.975, degrees) * error)
    assert welch([0.6], [0.5, 0.4]) is None
    assert welch([0.6, 0.6], [0.5, 0.5]) is None


def test_holm_rejects_what_the_stepwise_procedure_rejects():
    """Holm 1979: from the smallest p on, compare with alpha / m, alpha / (m - 1), ...; stop at the first failure."""
    rng = np.random.default_rng(0)
    for m in (1, 2, 3, 6, 28):
        p_values = rng.beta(0.3, 3, m).tolist()
        corrected = holm(p_values)
        for alpha in (0.001, 0.01, 0.05, 0.2, 0.5):
            rejected, order = set(), np.argsort(p_values)
            for step, number in enumerate(order):
                if p_values[number] > alpha / (m - step):
                    break
                rejected.add(int(number))
            assert {number for number, p in enumerate(corrected) if p <= alpha} == rejected
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.7, 0.6]) == [1.0, 1.0]


def test_the_choice_of_the_arm_is_repeated_in_each_resample_like_in_a_slow_loop():
    rng = np.random.default_rng(1)
    m, n = 20, 40
    chances = ([0.6], [0.55, 0.65], [0.6])  # three arms; the second has two recipes
    arms = [
        [(rng.random((len(of_arm), k)) < np.array(of_arm)[:, None]).astype(float) for k in (m, n)] for of_arm in chances
    ]
    resampled = resample_arms(*zip(*arms, strict=True))
    gains, shares = first_over_second(resampled, chooses_arm=True), [arm.best_in for arm in resampled]
    slow, firsts = [], np.zeros(3)
    for _ in range(4000):
        drawn, tested = rng.integers(m, size=m), rng.integers(n, size=n)
        ranked = []
        for number, (validation, test) in enumerate(arms):
            means = validation[:, drawn].mean(axis=1) + 1e-9 * rng.random(len(validation))
            reached, recipe = max(zip(means, range(len(means)), strict=True))
            ranked.append((reached, number, test[recipe][tested].mean()))
        (_, first, best), (_, _, following), _ = sorted(ranked, reverse=True)
        slow.append(best - following)
        firsts[first] += 1
    assert np.mean(gains) == pytest.approx(np.mean(slow), abs=0.01)
    assert np.quantile(gains, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(slow, [0.025, 0.5, 0.975]), abs=0.03)
    assert shares == pytest.approx(firsts / 4000, abs=0.03) and min(shares) > 0.01
