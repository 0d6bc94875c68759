"""Probes against a loop written from the paper and scikit-learn."""

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mae_hf.evaluation import probes
from mae_hf.evaluation.probes import knn_accuracy, linear_probe


def blobs(seed: int = 0, n: int = 450) -> list[np.ndarray]:
    """Noisy features of 3 classes in three thirds: features and labels of train, validation and test."""
    features, labels = make_classification(n, 12, n_informative=4, n_classes=3, class_sep=0.7, random_state=seed)
    return [
        part
        for i in range(3)
        for part in (features[i * n // 3 : (i + 1) * n // 3], labels[i * n // 3 : (i + 1) * n // 3])
    ]


def knn_from_the_paper(train, train_labels, features, labels, k, temperature):
    """Wu et al. 2018, section 3.4: each of the k most similar votes with exp(s / tau)."""
    right = 0
    for query, label in zip(features, labels, strict=True):
        s = [query @ x / (np.linalg.norm(query) * np.linalg.norm(x)) for x in train]
        votes = dict.fromkeys(set(train_labels), 0.0)
        for i in sorted(range(len(s)), key=lambda i: -s[i])[:k]:
            votes[train_labels[i]] += np.exp(s[i] / temperature)
        right += max(votes, key=votes.__getitem__) == label
    return right / len(labels)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (7, 0.02)])
def test_knn_votes_as_in_the_paper(k, temperature):
    train, train_labels, _, _, test, test_labels = blobs()
    expected = knn_from_the_paper(train, train_labels, test, test_labels, k, temperature)
    assert knn_accuracy(train, train_labels, test, test_labels, k, temperature) == pytest.approx(expected)


def test_knn_with_one_neighbour_equals_sklearn_in_float32():
    train, train_labels, _, _, test, test_labels = blobs(1)
    reference = KNeighborsClassifier(1, metric="cosine").fit(train, train_labels)
    got = knn_accuracy(train.astype(np.float32), train_labels, test.astype(np.float32), test_labels, k=1)
    assert got == pytest.approx(reference.score(test, test_labels))


def test_knn_classifies_more_images_than_a_block_holds():
    train = np.eye(4)
    labels = np.arange(2500) % 4
    assert knn_accuracy(train, np.arange(4), 3 * train[labels], labels, k=1) == 1.0


def test_knn_asks_all_training_images_when_there_are_fewer_than_k():
    train, labels = np.array([[1.0, 0], [0, 1], [0.1, 1]]), np.array([0, 1, 1])
    assert knn_accuracy(train, labels, train, labels, k=20) == 1.0


def test_knn_at_a_low_temperature_does_not_overflow():
    train, train_labels, _, _, test, test_labels = blobs()
    one = knn_accuracy(train, train_labels, test, test_labels, k=1)
    assert knn_accuracy(train, train_labels, test, test_labels, k=20, temperature=1e-6) == pytest.approx(one)


def test_the_linear_probe_takes_the_strength_that_is_best_on_validation():
    data = blobs(2)
    train, train_labels, validation, validation_labels, test, test_labels = data
    scores = {}
    for strength in probes.STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(train, train_labels)
        scores[strength] = model.score(validation, validation_labels), model.score(test, test_labels)
    best = max(scores, key=lambda c: (scores[c][0], -c))
    probe = linear_probe(*data)
    assert len({validation_score for validation_score, _ in scores.values()}) > 1
    assert (probe.C, probe.validation_accuracy, probe.accuracy) == (best, *scores[best])
    assert (probe.predictions == test_labels).mean() == probe.accuracy


def test_the_linear_probe_does_not_depend_on_the_scale_of_the_features():
    train, a, validation, b, test, c = blobs(3)
    scale = np.logspace(-3, 3, 12)
    plain = linear_probe(train, a, validation, b, test, c)
    scaled = linear_probe(train * scale + 5, a, validation * scale + 5, b, test * scale + 5, c)
    assert (plain.predictions == scaled.predictions).mean() > 0.98 and plain.C == scaled.C


def test_the_linear_probe_is_the_same_twice():
    first, second = linear_probe(*blobs()), linear_probe(*blobs())
    assert (first.predictions == second.predictions).all() and first.C == second.C


def test_features_that_are_not_finite_are_counted():
    train, a, validation, b, test, c = blobs()
    test[0, :2] = np.nan, np.inf
    with pytest.raises(ValueError, match="test_features has 2 non-finite values of 1800"):
        linear_probe(train, a, validation, b, test, c)
    with pytest.raises(ValueError, match="features has 2 non-finite values of 1800"):
        knn_accuracy(train, a, test, c)
