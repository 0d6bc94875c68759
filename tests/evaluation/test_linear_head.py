"""The paper's linear head against a training loop in numpy."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mae_hf.errors import ConfigError
from mae_hf.evaluation import linear_head
from mae_hf.evaluation.linear_head import head_probe
from mae_hf.evaluation.probes import Labelled


def blobs(n: int, seed: int = 0, class_sep: float = 0.7) -> list[Labelled]:
    """Features of 3 classes in three thirds: train, validation and test."""
    options = {"n_informative": 6, "n_classes": 3, "class_sep": class_sep, "random_state": seed}
    features, labels = make_classification(3 * n, 12, **options)
    return [Labelled(features[i * n : (i + 1) * n], labels[i * n : (i + 1) * n]) for i in range(3)]


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def head_from_the_paper(train: Labelled, features, peak: float):
    """Appendix A.1, one batch per epoch: BatchNorm without affine, 10 of 90 epochs warm-up, cosine, momentum 0.9."""
    x, one_hot = train.features, np.eye(3)[train.labels]
    mean, var = x.mean(axis=0), x.var(axis=0)
    generator = torch.Generator().manual_seed(0)
    w = torch.nn.init.trunc_normal_(torch.empty(3, x.shape[1]), std=0.01, generator=generator).numpy().T
    b, moving_mean, moving_var, velocity = np.zeros(3), np.zeros(x.shape[1]), np.ones(x.shape[1]), [0.0, 0.0]
    for epoch in range(90):
        rate = peak * (epoch / 10 if epoch < 10 else 0.5 * (1 + np.cos(np.pi * (epoch - 10) / 80)))
        z = (x - mean) / np.sqrt(var + 1e-6)
        error = (softmax(z @ w + b) - one_hot) / len(x)
        velocity = [0.9 * velocity[0] + z.T @ error, 0.9 * velocity[1] + error.sum(axis=0)]
        w, b = w - rate * velocity[0], b - rate * velocity[1]
        moving_mean = 0.9 * moving_mean + 0.1 * mean
        moving_var = 0.9 * moving_var + 0.1 * var * len(x) / (len(x) - 1)
    return softmax((features - moving_mean) / np.sqrt(moving_var + 1e-6) @ w + b)


def test_the_head_is_trained_as_in_the_paper(monkeypatch):
    monkeypatch.setattr(linear_head, "LEARNING_RATES", (0.1,))
    train, validation, test = blobs(200)
    probe = head_probe(train, validation, test.features, 3)
    expected = head_from_the_paper(train, test.features, 0.1)
    np.testing.assert_allclose(probe.probabilities, expected, atol=2e-4)
    assert probe.probabilities.std(axis=0).min() > 0.1  # it has learnt something


def test_the_head_takes_the_learning_rate_that_is_best_on_validation(monkeypatch):
    train, validation, test = blobs(200, seed=3)
    scores = {rate: head_from_the_paper(train, validation.features, rate) for rate in linear_head.LEARNING_RATES}
    scores = {rate: (p.argmax(axis=1) == validation.labels).mean() for rate, p in scores.items()}
    best = max(scores, key=lambda rate: (scores[rate], -rate))
    probe = head_probe(train, validation, test.features, 3)
    assert len(set(scores.values())) > 1
    assert probe.settings == {"learning_rate": best, "epochs": 90}
    assert probe.validation_accuracy == pytest.approx(scores[best])


def test_with_many_batches_the_head_is_about_as_good_as_sklearns_logistic_regression():
    train, validation, test = blobs(700, seed=1)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(*train)
    predictions = head_probe(train, validation, test.features, 3).probabilities.argmax(axis=1)
    assert (predictions == test.labels).mean() == pytest.approx(model.score(*test), abs=0.03)


def test_the_head_does_not_depend_on_the_scale_of_the_features():
    parts = blobs(100, seed=2)
    scaled = [Labelled(part.features * np.logspace(-1, 3, 12) + 5, part.labels) for part in parts]
    first, second = (head_probe(a, b, c.features, 3) for a, b, c in (parts, scaled))
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=0.02)


def test_the_same_seed_gives_the_same_head_whatever_was_drawn_before():
    train, validation, test = blobs(300)
    first = head_probe(train, validation, test.features, 3, seed=1)
    torch.rand(7)
    second = head_probe(train, validation, test.features, 3, seed=1)
    other = head_probe(train, validation, test.features, 3, seed=2)
    assert (first.probabilities == second.probabilities).all()
    assert (first.probabilities != other.probabilities).any()


def test_features_that_are_not_finite_are_counted():
    train, validation, test = blobs(20)
    train.features[3, 4] = np.nan
    with pytest.raises(ConfigError, match="1 of 240 values of train_features are not finite"):
        head_probe(train, validation, test.features, 3)
