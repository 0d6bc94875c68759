"""Probes of frozen features: nearest neighbours, logistic regression, and the paper's linear head.

A probe learns from labelled features, chooses its settings by cross-validation on them, and predicts class
probabilities of other images, whose features are float (n, D): n images, D features, C classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
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
# The paper's linear head. Cross-validation chooses one of the learning rates, which are those at `BATCH_SIZE`.
EPOCHS, WARMUP_EPOCHS, BATCH_SIZE, MOMENTUM = 90, 10, 256, 0.9
LEARNING_RATES, FIXED_RATE = (0.01, 0.1, 1.0), 0.1


class Labelled(NamedTuple):
    """Features of images, and their classes."""

    features: np.ndarray  # float (n, D)
    labels: np.ndarray  # int (n,)


class Head(NamedTuple):
    """A linear classifier: the logits of features f are `weight @ f + bias`."""

    weight: np.ndarray  # float64 (C, D)
    bias: np.ndarray  # float64 (C,)


class Probe(NamedTuple):
    """The predictions of a probe."""

    probabilities: np.ndarray  # float32 (n, C) of the other images; a class without training images has 0
    cross_validated_accuracy: float | None  # on left-out training images; None where no setting was chosen
    settings: dict[str, float]  # the probe's numbers, fixed or chosen
    head: Head | None = None  # the same classifier as one linear layer; of `linear` alone


def check_features(**features: np.ndarray) -> None:
    """Raise a ConfigError, with the name of the features, if they are not finite or the same for all images."""
    broken = "the encoder's weights are broken, choose a different one (--model)"
    for name, values in features.items():
        bad = int((~np.isfinite(values)).sum())
        require(bad == 0, f"{bad} of {values.size} values of {name} are not finite: {broken}")
        is_constant = len(values) > 1 and bool((values == values[0]).all())
        require(not is_constant, f"{name} of all images are equal: {broken}")


def knn_probe(train: Labelled, features: np.ndarray, num_classes: int) -> Probe:
    """Return each class's share of the vote of the nearest training images, weighted by exp(cosine similarity / T).

    Source: Wu et al. 2018, section 3.4 (arXiv 1805.01978); their number and T as in DINO (arXiv 2104.14294).
    """
    check_features(train_features=train.features, features=features)
    k = min(NUM_NEIGHBOURS, len(train.labels))

    def weights(distances: np.ndarray) -> np.ndarray:  # the greatest is 1: no overflow at low temperatures
        return np.exp((distances.min(axis=1, keepdims=True) - distances) / TEMPERATURE)

    voters = KNeighborsClassifier(k, weights=weights, algorithm="brute", metric="cosine").fit(*train)
    with config_context(working_memory=64):  # MiB of distances at a time
        shares = _class_probabilities(voters, features, num_classes)
    return Probe(shares.astype(np.float32), None, {"k": k, "temperature": TEMPERATURE})


def linear_probe(train: Labelled, features: np.ndarray, num_classes: int) -> Probe:
    """Return a logistic regression on standardised features; `_choose` finds the strength of its L2 penalty."""
    check_features(train_features=train.features, features=features)

    def fit(known: Labelled, strength: float) -> Pipeline:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(*known)

    def predict(known: Labelled, others: np.ndarray, strength: float) -> np.ndarray:
        return _class_probabilities(fit(known, strength), others, num_classes)

    strength, accuracy = _choose(train, STRENGTHS, FIXED_STRENGTH, predict)
    best = fit(train, strength)
    probabilities = _class_probabilities(best, features, num_classes).astype(np.float32)
    return Probe(probabilities, accuracy, {"C": strength}, _fold(best, num_classes))


def _fold(regression: Pipeline, num_classes: int) -> Head:
    """The standardisation and the logistic regression as one layer. A class without images has a logit of -20."""
    scaler, fitted = regression[0], regression[1]
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:  # scikit-learn has the logit of the second of two classes, against 0 of the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    head = Head(np.zeros((num_classes, weight.shape[1])), np.full(num_classes, -20.0))
    head.weight[fitted.classes_], head.bias[fitted.classes_] = weight, bias - weight @ scaler.mean_
    return head


def _class_probabilities(fitted: Pipeline | KNeighborsClassifier, features: np.ndarray, num_classes: int) -> np.ndarray:
    probabilities = np.zeros((len(features), num_classes))
    probabilities[:, fitted.classes_] = fitted.predict_proba(features)
    return probabilities


def _choose(
    train: Labelled, candidates: Sequence[float], fixed: float, predict: Callable[..., np.ndarray]
) -> tuple[float, float | None]:
    """Return the candidate with the best log loss of cross-validation on the training images, and its accuracy.

    The log loss decides because accuracies on few images are often equal. There are as many parts as the rarest class
    has images, 5 at most. With one part nothing can be chosen: that gives `fixed` and None.
    """
    counts = np.unique(train.labels, return_counts=True)[1]
    require(len(counts) > 1, "all training images have one class: this probe needs two or more (--data.source)")
    num_parts = min(MAX_PARTS, int(counts.min()))
    if num_parts < 2:
        return fixed, None
    features, labels = train
    parts = list(StratifiedKFold(num_parts, shuffle=True, random_state=0).split(features, labels))
    truth, scores = np.concatenate([labels[rest] for _, rest in parts]), {}
    for candidate in candidates:
        found = [predict(Labelled(features[known], labels[known]), features[rest], candidate) for known, rest in parts]
        predicted = np.concatenate(found)
        of_truth = np.maximum(predicted[np.arange(len(truth)), truth], np.finfo(predicted.dtype).eps)
        scores[candidate] = float(np.log(of_truth).mean()), float((predicted.argmax(axis=1) == truth).mean())
    best = max(candidates, key=lambda candidate: scores[candidate][0])
    return best, scores[best][1]


def head_probe(train: Labelled, features: np.ndarray, num_classes: int, seed: int = 0) -> Probe:
    """Return the paper's linear head on frozen features, with the best learning rate.

    As in the paper: BatchNorm without affine parameters, a linear layer that starts at N(0, 0.01²), 90 epochs, 10 of
    warm-up and a cosine to 0, momentum 0.9, no weight decay. Two things differ. The features are computed once, without
    random crops or flips. SGD with batches of 256 replaces LARS with batches of 16,384. `_choose` chooses the learning
    rate, the smallest of equals, or takes `FIXED_RATE`. `seed` draws the first weights and the order of the images.

    Source: He et al. 2022, appendix A.1 (arXiv 2111.06377); `main_linprobe.py` of facebookresearch/mae.
    """
    check_features(train_features=train.features, features=features)

    def predict(known: Labelled, others: np.ndarray, learning_rate: float) -> np.ndarray:
        head = _train_head(known, num_classes, learning_rate, seed)
        with torch.no_grad():
            return head(torch.tensor(others, dtype=torch.float32)).softmax(dim=-1).numpy()

    learning_rate, accuracy = _choose(train, LEARNING_RATES, FIXED_RATE, predict)
    settings = {"learning_rate": learning_rate, "epochs": EPOCHS}
    return Probe(predict(train, features, learning_rate), accuracy, settings)


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


CLASSIFIERS: dict[str, Callable[..., Probe]] = {"knn": knn_probe, "linear": linear_probe, "head": head_probe}
