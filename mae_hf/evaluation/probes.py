"""Probes of frozen features: nearest neighbours, logistic regression, and the paper's linear head.

A probe learns from labelled features, chooses its settings on validation images, and predicts class probabilities of
the test images, whose features are float (n, D).

Shapes: n images, D features, C classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from mae_hf.errors import require

NUM_NEIGHBOURS, TEMPERATURE = 20, 0.07
# Powers of ten around scikit-learn's default of 1. Features are standardised, so one grid serves all encoders.
STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
FIXED_STRENGTH = 1.0  # with too few labels to choose
MAX_PARTS = 5
# The paper's linear head. Validation chooses one of the learning rates, which are those at `BATCH_SIZE`.
EPOCHS, WARMUP_EPOCHS, BATCH_SIZE, MOMENTUM = 90, 10, 256, 0.9
LEARNING_RATES = (0.01, 0.1, 1.0)


class Labelled(NamedTuple):
    """Features of images, and their classes."""

    features: np.ndarray  # float (n, D)
    labels: np.ndarray  # int (n,)


@dataclass(frozen=True)
class Probe:
    """The predictions of a probe."""

    probabilities: np.ndarray  # float32 (n, C) of the test images; a class without training images has 0
    # the accuracy by which `settings` were chosen, or could have been; None without validation
    validation_accuracy: float | None
    settings: dict[str, float]  # the probe's numbers, fixed or chosen on validation


def check_features(**features: np.ndarray) -> None:
    """Raise a ConfigError, with the name of the features, if they are not finite or the same for all images."""
    broken = "the encoder's weights are broken, choose a different one (--model)"
    for name, values in features.items():
        bad = int((~np.isfinite(values)).sum())
        require(bad == 0, f"{bad} of {values.size} values of {name} are not finite: {broken}")
        is_constant = len(values) > 1 and bool((values == values[0]).all())
        require(not is_constant, f"{name} of all images are equal: {broken}")


def knn_probabilities(
    train: Labelled, features: np.ndarray, num_classes: int, k: int = NUM_NEIGHBOURS, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Return each class's share of the vote of the `k` nearest training images, float32 (n, C), for features (n, D).

    Votes are weighted by exp(cosine similarity / T). All training images vote if there are fewer than `k`.

    Source: Wu et al. 2018, section 3.4 (arXiv 1805.01978); k and T as in DINO (arXiv 2104.14294).
    """
    check_features(train_features=train.features, features=features)
    neighbours, queries = _unit_length(train.features), _unit_length(features)
    k = min(k, len(neighbours))
    shares = np.empty((len(queries), num_classes), np.float32)
    for start in range(0, len(queries), 1024):  # a block of similarities at a time, not n x n_train
        similarity = queries[start : start + 1024] @ neighbours.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        closeness = np.take_along_axis(similarity, nearest, axis=1)
        # The greatest weight of each image is 1: no overflow at low temperatures, and the same winner.
        weights = np.exp((closeness - closeness.max(axis=1, keepdims=True)) / temperature)
        votes = np.zeros((len(nearest), num_classes))
        np.add.at(votes, (np.arange(len(nearest))[:, None], train.labels[nearest]), weights)
        shares[start : start + 1024] = votes / votes.sum(axis=1, keepdims=True)
    return shares


def _unit_length(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo(np.float32).tiny)


def knn_probe(train: Labelled, validation: Labelled | None, test_features: np.ndarray, num_classes: int) -> Probe:
    """Return the vote of nearest neighbours with the literature's k and temperature.

    Validation images only give `validation_accuracy`.
    """
    accuracy = None
    if validation is not None:
        accuracy = _accuracy(knn_probabilities(train, validation.features, num_classes), validation.labels)
    settings = {"k": min(NUM_NEIGHBOURS, len(train.labels)), "temperature": TEMPERATURE}
    return Probe(knn_probabilities(train, test_features, num_classes), accuracy, settings)


def linear_probe(train: Labelled, validation: Labelled | None, test_features: np.ndarray, num_classes: int) -> Probe:
    """Return a logistic regression on standardised features, with the best strength of its L2 penalty.

    The strength with the best accuracy on validation images is chosen, the strongest of equals. Without validation
    images it is the one with the best log loss of cross-validation on `train`, because accuracies on few images are
    often equal. Cross-validation has as many parts as the rarest class has images, 5 at most. With one part,
    `FIXED_STRENGTH` is taken. Training labels of one class only are a ConfigError.
    """
    check_features(train_features=train.features, test_features=test_features)
    counts = np.unique(train.labels, return_counts=True)[1]
    require(len(counts) > 1, "all training images have one class: a linear probe needs two or more (--data.source)")
    candidates: list[tuple[float, float | None, float]] = [(0.0, None, FIXED_STRENGTH)]
    if validation is not None:
        check_features(validation_features=validation.features)
        accuracies = [float(_regression(strength).fit(*train).score(*validation)) for strength in STRENGTHS]
        candidates = list(zip(accuracies, accuracies, STRENGTHS, strict=True))
    elif counts.min() > 1:
        num_parts = min(MAX_PARTS, int(counts.min()))
        candidates = [_cross_validated(train, strength, num_parts) for strength in STRENGTHS]
    _, accuracy, strength = max(candidates, key=lambda candidate: candidate[0])
    best = _regression(strength).fit(*train)
    probabilities = np.zeros((len(test_features), num_classes), np.float32)
    probabilities[:, best.classes_] = best.predict_proba(test_features)
    return Probe(probabilities, accuracy, {"C": strength})


def _regression(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def _cross_validated(train: Labelled, strength: float, num_parts: int) -> tuple[float, float | None, float]:
    """Return minus the log loss, the accuracy and the strength, by cross-validation on the training images."""
    parts = StratifiedKFold(num_parts, shuffle=True, random_state=0)
    held_out = cross_val_predict(_regression(strength), *train, cv=parts, method="predict_proba")
    accuracy = float((np.unique(train.labels)[held_out.argmax(axis=1)] == train.labels).mean())
    return -float(log_loss(train.labels, held_out)), accuracy, strength


def head_probe(
    train: Labelled, validation: Labelled, test_features: np.ndarray, num_classes: int, seed: int = 0
) -> Probe:
    """Return the paper's linear head on frozen features, with the learning rate that is best on validation.

    As in the paper: BatchNorm without affine parameters, a linear layer that starts at N(0, 0.01²), 90 epochs, 10 of
    warm-up and a cosine to 0, momentum 0.9, no weight decay. Two things differ. The features are computed once, without
    random crops or flips. SGD with batches of 256 replaces LARS with batches of 16,384.

    The smallest of equal learning rates is chosen. `seed` draws the first weights and the order of the images.

    Source: He et al. 2022, appendix A.1 (arXiv 2111.06377); `main_linprobe.py` of facebookresearch/mae.
    """
    check_features(train_features=train.features, validation_features=validation.features, test_features=test_features)
    candidates = []
    for learning_rate in LEARNING_RATES:
        head = _train_head(train, num_classes, learning_rate, seed)
        accuracy = _accuracy(_head_probabilities(head, validation.features), validation.labels)
        candidates.append((accuracy, learning_rate, head))
    accuracy, learning_rate, head = max(candidates, key=lambda candidate: candidate[0])
    settings = {"learning_rate": learning_rate, "epochs": EPOCHS}
    return Probe(_head_probabilities(head, test_features), accuracy, settings)


def _train_head(train: Labelled, num_classes: int, learning_rate: float, seed: int) -> nn.Module:
    features, labels = torch.tensor(train.features, dtype=torch.float32), torch.tensor(train.labels, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(features.shape[1], num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    head = nn.Sequential(nn.BatchNorm1d(features.shape[1], affine=False, eps=1e-6), linear)
    num_batches = max(1, len(labels) // BATCH_SIZE)
    optimizer = torch.optim.SGD(head.parameters(), lr=learning_rate, momentum=MOMENTUM)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_EPOCHS * num_batches, EPOCHS * num_batches)
    for _ in range(EPOCHS):
        order = torch.randperm(len(labels), generator=generator)
        for rows in order.tensor_split(num_batches):  # of one size to within one: no rest too small to normalise
            loss = nn.functional.cross_entropy(head(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.no_grad()
def _head_probabilities(head: nn.Module, features: np.ndarray) -> np.ndarray:
    return head(torch.tensor(features, dtype=torch.float32)).softmax(dim=-1).numpy()


def _accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())
