"""How many dimensions features use, without any label: RankMe and the participation ratio.

Shapes: n images, D features.
"""

import numpy as np

from mae_hf.errors import require
from mae_hf.evaluation.probes import check_finite

EPSILON = 1e-7


def rankme(features: np.ndarray) -> float:
    """Return exp of the entropy of the normalised singular values of the features, from 1 to min(n, D).

    The value depends on the images and their number: compare encoders on the same images.

    Args:
        features: float (n, D), neither centred nor scaled.

    Raises:
        ConfigError: features that are not finite, or all zero.

    Source: Garrido et al. 2023 (arXiv 2210.02885), equations 1 and 2.
    """
    _check(features)
    values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    parts = values / values.sum() + EPSILON
    return float(np.exp(-(parts * np.log(parts)).sum()))


def participation_ratio(features: np.ndarray) -> float:
    """Return the effective rank of the covariance: (sum of its eigenvalues)² / sum of their squares, from 1 to D.

    Features that vary equally in all directions have D, those on a line 1, equal features 0.

    Raises:
        ConfigError: features that are not finite, or all zero.

    Source: Gao et al. 2017, A theory of multineuronal dimensionality, dynamics and measurement (bioRxiv 214262).
    """
    _check(features)
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean(axis=0)
    covariance = centred.T @ centred
    squares = float((covariance**2).sum())  # of the eigenvalues, too: the matrix is symmetric
    return float(np.trace(covariance) ** 2 / squares) if squares else 0.0


def _check(features: np.ndarray) -> None:
    check_finite(features=features)
    is_zero = not np.any(features)
    require(
        not is_zero, "the features are all zero: the encoder's weights are broken, choose a different one (--model)"
    )
