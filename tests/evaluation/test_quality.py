"""Ranks of features that were made to have a known one."""

import numpy as np
import pytest
from scipy.stats import entropy, ortho_group

from mae_hf.errors import ConfigError
from mae_hf.evaluation.quality import participation_ratio, rankme


def features_with(singular_values: list[float], n: int = 60, seed: int = 0) -> np.ndarray:
    """(n, D) of mean 0 with exactly these singular values, in random directions."""
    directions = len(singular_values)
    generator = np.random.default_rng(seed)
    raw = generator.normal(size=(n, directions))
    left, _ = np.linalg.qr(raw - raw.mean(axis=0))
    return left * np.array(singular_values) @ ortho_group.rvs(directions, random_state=seed).T


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_features_that_use_some_directions_alike_have_that_rank(rank):
    features = features_with([2.0] * rank + [0.0] * (10 - rank) if rank > 1 else [2.0] + [0.0] * 9)
    assert rankme(features) == pytest.approx(rank, rel=1e-4)
    assert participation_ratio(features) == pytest.approx(rank, rel=1e-6)


def test_rankme_is_the_exponential_of_scipys_entropy_of_the_singular_values():
    values = [5.0, 3.0, 1.0, 0.5, 0.1]
    assert rankme(features_with(values)) == pytest.approx(np.exp(entropy(values)), rel=1e-5)


def test_the_participation_ratio_is_that_of_the_eigenvalues_of_the_covariance():
    features = features_with([5.0, 3.0, 1.0, 0.5, 0.1]) + 7
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T))
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert participation_ratio(features) == pytest.approx(expected)


def test_rankme_is_not_centred_so_that_one_common_direction_counts():
    features = np.tile([1.0, 2.0, 3.0], (8, 1))
    assert rankme(features) == pytest.approx(1, rel=1e-4)
    assert participation_ratio(features) == 0


@pytest.mark.parametrize("measure", [rankme, participation_ratio])
def test_broken_features_have_no_rank(measure):
    with pytest.raises(ConfigError, match="1 of 6 values of features are not finite"):
        measure(np.array([[1.0, 2, 3], [4, np.nan, 6]]))
    with pytest.raises(ConfigError, match="all zero"):
        measure(np.zeros((4, 3)))
