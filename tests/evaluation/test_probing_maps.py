"""t-SNE and UMAP: repeatable, right for small sets, and they keep groups together."""

import numpy as np
import pytest

from mae_hf.errors import ConfigError
from mae_hf.evaluation.probing import check_mappable, knn_accuracy, tsne, umap


def groups(n_each: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated groups in 8 dimensions and their numbers."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), n_each)
    return 10 * np.eye(3, 8)[labels] + rng.normal(size=(3 * n_each, 8)), labels


def test_the_map_keeps_groups_together_and_is_the_same_for_the_same_seed():
    features, labels = groups()
    points = tsne(features, 0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert points.shape == (90, 2)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    assert np.array_equal(points, tsne(features, 0))


@pytest.mark.parametrize("n", [3, 4, 5, 20])
def test_few_images_are_mapped_too(n):
    features = np.random.default_rng(n).normal(size=(n, 6))
    points = tsne(features, 0)
    assert points.shape == (n, 2) and np.isfinite(points).all()


@pytest.mark.slow  # the library compiles itself for up to a minute
def test_umap_keeps_groups_together_and_is_the_same_for_the_same_seed():
    pytest.importorskip("umap", reason="umap-learn is optional (the extra umap)")
    features, labels = groups()
    points = umap(features, 0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert points.shape == (90, 2)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    assert np.array_equal(points, umap(features, 0))
    for n in (3, 5, 20):
        assert np.isfinite(umap(features[:: 90 // n][:n], 0)).all()


@pytest.mark.parametrize("shape", [(2, 6), (20, 2)])
def test_too_little_to_map_is_said(shape):
    with pytest.raises(ConfigError, match="at least 3 images, 3 features"):
        check_mappable(np.random.default_rng(0).normal(size=shape))


def test_features_of_a_broken_encoder_are_not_mapped():
    features, _ = groups()
    check_mappable(features)
    features[3, 4] = np.nan
    with pytest.raises(ConfigError, match="1 of 720 values of features are not finite"):
        check_mappable(features)


def test_knn_accuracy_is_a_vote_of_the_five_nearest_others_by_cosine_similarity():
    features, labels = groups(7)
    features[0] = 10 * features[-1]  # in direction beside the others' class, however far away
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = unit @ unit.T
    np.fill_diagonal(similarities, -2)
    votes = [np.bincount(labels[row]).argmax() for row in np.argsort(-similarities, axis=1)[:, :5]]
    assert knn_accuracy(features, labels) == np.mean(votes == labels) == pytest.approx(20 / 21)
    assert knn_accuracy(features[:3], np.array([0, 0, 0])) == 1  # fewer images than neighbours
