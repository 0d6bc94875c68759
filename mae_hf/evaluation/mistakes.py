"""The mistakes that a classifier is surest of."""

import numpy as np
from numpy.typing import NDArray


def most_confident_mistakes(
    labels: NDArray[np.int64], probabilities: NDArray[np.floating], num_mistakes: int
) -> NDArray[np.int64]:
    """The images that are predicted wrong with the greatest probability, the surest first.

    Args:
        labels: int (n,), true classes.
        probabilities: float (n, C); the greatest is the prediction.
        num_mistakes: at most so many.

    Returns:
        Their rows, int64 (m,); of equally sure ones the first in the order of the images.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    surest_first = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[surest_first[:num_mistakes]]
