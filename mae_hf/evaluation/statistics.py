"""How far a difference between arms can be trusted: intervals, a paired test, and what several runs add.

Two sources of chance are kept apart. The test images are a sample: intervals over them are bootstrap intervals (Efron
and Tibshirani 1993, chapter 13), which repeat the choice of recipe and arm on resampled validation images. Independent
runs of the pipeline are a sample, too: intervals over them are Student's t intervals.

Shapes: R recipes, B resamples, m validation images, n test images, E evaluations of a run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
_AT_ONCE = 1000  # resamples, so that 10,000 images take 80 MB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def describe_accuracy(num_right: int, num: int) -> str:
    """Return the accuracy on `num` test images in words, with its 95 % interval (Wilson 1927)."""
    interval = stats.binomtest(num_right, num).proportion_ci(CONFIDENCE, "wilson")
    ends = f"95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f} %"
    return f"Test accuracy {100 * num_right / num:.1f} % ({ends}) on {num} images"


def percentile_interval(resampled: Floats) -> Interval | None:
    """Return the percentile interval of the number in each resample, (B,); None if all are alike."""
    if np.ptp(resampled) < 1e-12:  # a width of 0 would claim a certainty that few images do not have
        return None
    return Interval(*np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist())


class Resampled(NamedTuple):
    """An arm on resampled images."""

    accuracy: Floats  # (B,), the test accuracy of the recipe that validation chose in each resample
    validation: Floats  # (B,), its accuracy on the validation images of the resample; no two arms tie
    chosen: Floats  # (R,), the share of resamples in which validation chose each recipe
    best_in: float  # the share of resamples in which validation puts the arm first


def resample_arms(validation: Sequence[Floats], test: Sequence[Floats]) -> list[Resampled]:
    """Repeat the measurement on resampled images: choose each arm's recipe on validation images, then test it.

    Both arguments have an array for each arm: the share of each recipe's runs that are right on each image, (R, m) and
    (R, n). All arms and recipes see the same resampled images. Recipes that tie on validation are chosen at random.
    """
    generator = np.random.default_rng(0)  # the same files give the same intervals
    tested, validated = (_resampled_means(np.concatenate(arms), generator) for arms in (test, validation))
    validated += 1e-9 * generator.random(validated.shape)
    borders, rows = np.cumsum([len(arm) for arm in test])[:-1], np.arange(NUM_RESAMPLES)
    parts, results = (np.split(means, borders, axis=1) for means in (validated, tested)), []
    for of_validation, of_test in zip(*parts, strict=True):
        choice, reached = of_validation.argmax(axis=1), of_validation.max(axis=1)
        shares = np.bincount(choice, minlength=of_test.shape[1]) / NUM_RESAMPLES
        best_in = float((reached == validated.max(axis=1)).mean())
        results.append(Resampled(of_test[rows, choice], reached, shares, best_in))
    return results


def first_over_second(arms: Sequence[Resampled], chooses_arm: bool) -> Floats:
    """Return the gain of the first arm over the second in each resample, (B,); `chooses_arm`: sorted by validation."""
    accuracy = np.stack([arm.accuracy for arm in arms])
    if chooses_arm:
        accuracy = np.take_along_axis(accuracy, np.argsort([-arm.validation for arm in arms], axis=0), axis=0)
    return accuracy[0] - accuracy[1]


def _resampled_means(values: Floats, generator: np.random.Generator) -> Floats:
    """Means over resampled images, (B, rows) of (rows, n); every row sees the same images."""
    # images with the same values in all rows are interchangeable: a resample is a multinomial draw over such groups
    groups, counts = np.unique(values, axis=1, return_counts=True)
    n = values.shape[1]
    draws = (generator.multinomial(n, counts / n, size=_AT_ONCE) for _ in range(NUM_RESAMPLES // _AT_ONCE))
    return np.concatenate([drawn @ groups.T / n for drawn in draws])


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, Any]:
    """Return McNemar's exact test (1947) of two classifiers from the images that each has right, (n,).

    `only_first` and `only_second` are the numbers of images that only one has right. `p_value` is two-sided: the
    probability of a split at least as unequal if both are equally good.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_value = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": float(p_value)}


@dataclass(frozen=True)
class Spread:
    """A number measured once per independent run, such as the test accuracy of each seed."""

    values: tuple[float, ...]  # of each run; `inf` for a target that was not reached
    center: float  # their mean, or their median
    sd: float | None  # sample standard deviation; None for a single run or an `inf`
    low: float | None = None  # ends of the interval; None without one
    high: float | None = None
    kind: Literal["t", "range", "none"] = "none"  # Student's `t` (95 %), `range` (smallest to largest) or `none`


def mean_spread(values: Sequence[float]) -> Spread:
    """Return the mean of finite numbers and its Student's t interval, which needs two values that differ."""
    numbers, mean, n = tuple(map(float, values)), float(np.mean(values)), len(values)
    sd = float(np.std(values, ddof=1)) if n > 1 else None
    if not sd:
        return Spread(numbers, mean, sd)
    margin = sd / math.sqrt(n) * float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Spread(numbers, mean, sd, mean - margin, mean + margin, "t")


def median_spread(values: Sequence[float]) -> Spread:
    """Return the median and the range of values that may be `inf`."""
    numbers, median = tuple(map(float, values)), float(np.median(values))
    if len(numbers) == 1:
        return Spread(numbers, median, None)
    sd = float(np.std(values, ddof=1)) if np.isfinite(values).all() else None
    return Spread(numbers, median, sd, min(numbers), max(numbers), "range")


def welch(first: Sequence[float], second: Sequence[float]) -> dict[str, Any] | None:
    """Return Welch's t-test (1947) of the means of two arms' runs; None if an arm has one run, or neither varies.

    `p_value` is two-sided, and `interval` is of the difference, first minus second.
    """
    if min(len(first), len(second)) < 2 or np.ptp(first) == np.ptp(second) == 0:
        return None
    result = stats.ttest_ind(first, second, equal_var=False)
    interval = Interval(*map(float, result.confidence_interval(CONFIDENCE)))
    return {"p_value": float(result.pvalue), "interval": interval}


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values, in their order, corrected for their number (Holm 1979): below 0.05 is significant among all."""
    stepwise = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    corrected = np.maximum.accumulate(np.minimum(stepwise, 1))
    return corrected[stats.rankdata(p_values, "ordinal") - 1].tolist()


def mean_under_curve(epochs: Sequence[float], values: Sequence[float], start: float, end: float) -> float:
    """Return the mean height of a curve, straight between its E values at rising epochs, from `start` to `end`.

    Both must be within the epochs.
    """
    grid = [start, *(epoch for epoch in epochs if start < epoch < end), end]
    return float(trapezoid(np.interp(grid, epochs, values), grid) / (end - start))
