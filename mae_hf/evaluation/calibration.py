"""Calibration: whether a classifier is right as often as its probabilities say.

Shapes: n images, C classes, M bins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15  # as in the paper


@dataclass(frozen=True, eq=False)
class Reliability:
    """A classifier's accuracy by its confidence, in bins of equal width between 0 and 1."""

    counts: NDArray[np.int64]  # (M,), images in each bin
    confidence: NDArray[np.float64]  # (M,), mean confidence of each bin; NaN where it is empty
    accuracy: NDArray[np.float64]  # (M,), part of each bin that is right; NaN where it is empty

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1: the mean over images of the gap of their bin."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())


def reliability(
    labels: NDArray[np.int64], probabilities: NDArray[np.floating], num_bins: int = NUM_BINS
) -> Reliability:
    """Return the reliability of a classifier on a set of images, with its expected calibration error.

    The confidence of an image is the probability of its predicted class; bin m holds those in ((m - 1) / M, m / M].

    Args:
        labels: int (n,), true classes.
        probabilities: float (n, C), the softmax; the greatest is the prediction.
        num_bins: M.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599, section 2.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    is_right = probabilities.argmax(axis=1) == labels
    inner_edges = np.linspace(0, 1, num_bins + 1)[1:-1]
    bins = np.searchsorted(inner_edges, confidence, side="left")
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin is the NaN that is wanted
        means = (np.bincount(bins, weights=values, minlength=num_bins) / counts for values in (confidence, is_right))
        return Reliability(counts, *means)
