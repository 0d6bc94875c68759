"""How far a difference between two arms can be trusted: intervals, a paired test, and what several seeds add.

Two sources of chance are kept apart. The test images are a sample: intervals over them are bootstrap intervals (Efron
and Tibshirani 1993, chapter 13). The seed of a run is a draw: mean and standard deviation over seeds say what it moves.

Shapes: S seeds, n test images, E evaluations of a run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.integrate import trapezoid

CONFIDENCE = 0.95
NUM_RESAMPLES = 9999
MIN_SEEDS = 5  # fewer are too few to resample: their range is given instead
_SEED = 0  # of all resampling: the same files give the same intervals
_BATCH = 250  # resamples at once, so that 10,000 images take 20 MB


@dataclass(frozen=True)
class Interval:
    """A 95 % bootstrap interval."""

    low: float
    high: float


def image_interval(values: np.ndarray) -> Interval | None:
    """The percentile bootstrap interval of a mean over test images.

    For an accuracy the values are 0 and 1 (of several seeds: their mean, image by image); for a difference of two
    accuracies they are the differences image by image, so that both arms are resampled together.

    Args:
        values: float (n,).

    Returns:
        The interval, or None where there is none: fewer than two images, or all values alike (resampling them would
        give an interval of width 0, which claims a certainty that n images do not have).
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(_SEED),
    )
    return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))


@dataclass(frozen=True)
class McNemar:
    """The exact McNemar test of two classifiers on the same images.

    Args:
        only_first: images that only the first has right.
        only_second: images that only the second has right.
        p_value: two-sided; how likely so unequal a split of these images is if both classifiers are equally good.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """The exact McNemar test: the images that only one of the two has right, against a fair coin (McNemar 1947).

    Args:
        first: bool (n,), whether the first classifier has each image right.
        second: bool (n,), the second, on the same images.

    Raises:
        ValueError: the lengths differ.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} images: a paired test needs the same images")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_value = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return McNemar(only_first, only_second, float(p_value))


@dataclass(frozen=True)
class OverSeeds:
    """A number that each seed has one of.

    Args:
        values: of each seed; `inf` where it was not reached.
        center: their mean, or their median where one may be `inf`.
        sd: sample standard deviation (S - 1); None with a single seed or an `inf`.
        low: lower end of the interval; None with a single seed.
        high: upper end of the interval; None with a single seed.
        kind: what the interval is: `bootstrap` (95 %, over seeds), `range` (least to greatest) or `none`.
    """

    values: tuple[float, ...]
    center: float
    sd: float | None
    low: float | None
    high: float | None
    kind: str


def over_seeds(values: Sequence[float], use_median: bool = False) -> OverSeeds:
    """Center, spread and interval of one number per seed.

    From `MIN_SEEDS` seeds on the interval is a percentile bootstrap over seeds; below, it is the range, and says so.

    Args:
        values: of each seed, at least one; `inf` (not reached) only with `use_median`.
        use_median: take the median, which an `inf` does not spoil, instead of the mean.

    Raises:
        ValueError: no values, a NaN, or an `inf` in a mean.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0 or np.isnan(array).any() or not (use_median or np.isfinite(array).all()):
        raise ValueError(f"{list(values)}: a number is needed from each seed")
    center = np.median if use_median else np.mean
    low = high = sd = None
    kind = "none"
    if len(array) > 1:
        sd = float(array.std(ddof=1)) if np.isfinite(array).all() else None
        low, high, kind = float(array.min()), float(array.max()), "range"
    if len(array) >= MIN_SEEDS:
        # Sorted by hand: scipy's percentiles interpolate, which makes a NaN of two that are not reached.
        draws = np.random.default_rng(_SEED).integers(len(array), size=(NUM_RESAMPLES, len(array)))
        resampled = np.sort(center(array[draws], axis=1))
        tail = round((1 - CONFIDENCE) / 2 * (NUM_RESAMPLES + 1))
        low, high, kind = float(resampled[tail - 1]), float(resampled[-tail]), "bootstrap"
    return OverSeeds(tuple(map(float, array)), float(center(array)), sd, low, high, kind)


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The two-sided p-value of Welch's t-test (1947): whether two arms' means differ by more than their seeds do.

    Args:
        first: a number of each seed of one arm.
        second: of the other arm.

    Returns:
        None where an arm has a single seed, or neither arm has any spread.
    """
    if min(len(first), len(second)) < 2 or np.ptp(first) == np.ptp(second) == 0:
        return None
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def mean_under_curve(epochs: Sequence[float], values: Sequence[float], start: float, end: float) -> float:
    """The area under a curve between two epochs, divided by their distance: the mean height of the curve.

    The curve is a straight line between evaluations (trapezoid rule).

    Args:
        epochs: (E,), rising.
        values: (E,), for example validation accuracies.
        start: first epoch of the area, not before the first evaluation.
        end: its last epoch, not after the last evaluation.

    Raises:
        ValueError: an empty range, or one that the curve does not cover.
    """
    x, y = np.asarray(epochs, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if not (len(x) and x[0] <= start < end <= x[-1]):
        raise ValueError(f"the curve does not cover epochs {start:g} to {end:g}")
    inside = (x > start) & (x < end)
    grid = np.concatenate([[start], x[inside], [end]])
    return float(trapezoid(np.interp(grid, x, y), grid) / (end - start))


def epochs_to_reach(epochs: Sequence[float], values: Sequence[float], target: float) -> float:
    """The first epoch whose value is at least `target`, `inf` if none is; nothing is interpolated."""
    return next((float(epoch) for epoch, value in zip(epochs, values, strict=True) if value >= target), math.inf)
