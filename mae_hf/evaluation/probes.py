"""How much of the classes is already in the features: nearest neighbours and a linear classifier, no fine-tuning.

Shapes: n images, D features.
"""

from dataclasses import dataclass

import numpy as np

# Powers of ten around scikit-learn's default of 1. Features are standardised, so one grid serves all encoders.
STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class LinearProbe:
    """What a linear classifier on frozen features achieves.

    Args:
        predictions: int64 (n,), classes of the test images.
        accuracy: part of the test images that is right.
        validation_accuracy: the same on validation, by which `C` was chosen.
        C: inverse strength of the L2 penalty.
    """

    predictions: np.ndarray
    accuracy: float
    validation_accuracy: float
    C: float


def _check_finite(**features: np.ndarray) -> None:
    for name, values in features.items():
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise ValueError(
                f"{name} has {bad} non-finite values of {values.size}: the encoder's weights or its inputs are broken"
            )


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """The accuracy of a vote of the `k` nearest training images, weighted by exp(cosine similarity / temperature).

    Args:
        train_features: float (n_train, D).
        train_labels: int (n_train,).
        features: float (n, D), of the images to classify.
        labels: int (n,).
        k: neighbours that vote; all training images if there are fewer.
        temperature: the smaller, the more the nearest count.

    Returns:
        Part of the images that is right.

    Raises:
        ValueError: features that are not finite.

    Source: Wu et al. 2018, section 3.4 (arXiv 1805.01978).
    """
    _check_finite(train_features=train_features, features=features)
    train, queries = _unit_length(train_features), _unit_length(features)
    train_labels = np.asarray(train_labels)
    num_classes = int(train_labels.max()) + 1
    k = min(k, len(train))
    right = 0
    for start in range(0, len(queries), 1024):  # a block of similarities at a time, not n x n_train
        similarity = queries[start : start + 1024] @ train.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        closeness = np.take_along_axis(similarity, nearest, axis=1)
        # The greatest weight of each image is 1: no overflow at low temperatures, and the same winner.
        weights = np.exp((closeness - closeness.max(axis=1, keepdims=True)) / temperature)
        votes = np.zeros((len(nearest), num_classes))
        np.add.at(votes, (np.arange(len(nearest))[:, None], train_labels[nearest]), weights)
        right += int((votes.argmax(axis=1) == labels[start : start + 1024]).sum())
    return right / len(queries)


def _unit_length(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo(np.float32).tiny)


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> LinearProbe:
    """The test accuracy of a logistic regression on standardised features; validation chooses its strength.

    Args:
        train_features: float (n_train, D); `validation_features` and `test_features` likewise.
        train_labels: int (n_train,); `validation_labels` and `test_labels` likewise.

    Returns:
        The probe with the best validation accuracy; of equals, the one with the strongest penalty.

    Raises:
        ValueError: features that are not finite, or training labels of one class only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    _check_finite(train_features=train_features, validation_features=validation_features, test_features=test_features)
    scaler = StandardScaler().fit(train_features)
    train, validation, test = (scaler.transform(x) for x in (train_features, validation_features, test_features))
    best, best_accuracy = None, -1.0
    for strength in STRENGTHS:
        classifier = LogisticRegression(C=strength, max_iter=2000).fit(train, train_labels)
        accuracy = float(classifier.score(validation, validation_labels))
        if accuracy > best_accuracy:
            best, best_accuracy = classifier, accuracy
    assert best is not None
    predictions = best.predict(test)
    return LinearProbe(
        predictions=predictions.astype(np.int64),
        accuracy=float((predictions == test_labels).mean()),
        validation_accuracy=best_accuracy,
        C=float(best.C),
    )
