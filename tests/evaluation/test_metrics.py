"""Metrics and reliability against formulas and scikit-learn; offline, with evaluate.combine, without seen images."""

import math
import socket
import warnings

import evaluate
import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from mae_hf.evaluation.metrics import (
    ClassificationMetrics,
    classification_metrics,
    describe_seen,
    reliability,
    unseen_metrics,
)

CLASSES = ("cat", "dog", "ship")
LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 0, 2])
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.9, 0.0], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]
)


def f1_by_hand(label: int, labels: np.ndarray, predictions: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN), 0 where the class is nowhere."""
    hits = np.sum((labels == label) & (predictions == label))
    counted = np.sum(labels == label) + np.sum(predictions == label)
    return 2 * hits / counted if counted else 0.0


def test_scores_equal_the_textbook_formulas():
    scores = classification_metrics(PROBABILITIES, LABELS, CLASSES)
    expected = {name: f1_by_hand(i, LABELS, PREDICTIONS) for i, name in enumerate(CLASSES)}
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["f1_per_class"] == pytest.approx(expected)
    assert scores["f1"] == pytest.approx(sum(expected.values()) / 3)
    assert scores["loss"] == pytest.approx(-sum(map(math.log, (0.8, 0.5, 0.2, 0.9, 0.3, 0.7))) / 6)
    assert scores["confusion_matrix"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]  # row: true, column: predicted


def test_nothing_is_made_in_a_home_that_may_be_read_only(monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", "/dev/null/metrics")
    assert classification_metrics(PROBABILITIES, LABELS, CLASSES)["accuracy"] == pytest.approx(4 / 6)


def test_loss_equals_sklearn_on_many_classes():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), 300)
    labels = rng.integers(0, 10, 300)
    scores = classification_metrics(probabilities, labels, [str(i) for i in range(10)])
    assert scores["loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(10)), rel=1e-9)


@pytest.mark.parametrize("predictions", [[0, 1, 1], [0, 1, 2]], ids=["nowhere", "only predicted"])
def test_a_class_without_images_has_no_f1_and_does_not_count_in_the_mean(predictions):
    labels, predictions = np.array([0, 1, 0]), np.array(predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = classification_metrics(np.eye(3)[predictions], labels, CLASSES)
    expected = {name: f1_by_hand(i, labels, predictions) for i, name in enumerate(CLASSES[:2])}
    assert scores["f1_per_class"] == pytest.approx(expected)  # no ship
    assert scores["f1"] == pytest.approx(sum(expected.values()) / 2)
    assert np.shape(scores["confusion_matrix"]) == (3, 3)


def test_a_class_that_is_never_predicted_counts_as_zero_without_a_warning():
    labels, predictions = np.array([0, 1, 2]), np.array([0, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = classification_metrics(np.eye(3)[predictions], labels, CLASSES)
    assert scores["f1_per_class"] == pytest.approx({"cat": 1.0, "dog": 2 / 3, "ship": 0.0})
    assert scores["f1"] == pytest.approx(5 / 9)


def test_a_probability_of_zero_for_the_truth_gives_a_finite_loss():
    scores = classification_metrics(np.array([[1.0, 0.0]], np.float32), np.array([1]), ("a", "b"))
    assert 80 < scores["loss"] < 90  # -log of the least normal float32


def test_the_metric_needs_no_network_and_combines_with_others(monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    metrics = evaluate.combine([ClassificationMetrics(keep_in_memory=True)])
    scores = metrics.compute(predictions=PREDICTIONS, references=LABELS, probabilities=PROBABILITIES, names=CLASSES)
    assert set(scores) == {"accuracy", "f1", "f1_per_class", "confusion_matrix", "loss"}


def test_batches_give_the_same_as_all_at_once():
    metric, whole = (ClassificationMetrics(keep_in_memory=True) for _ in range(2))
    inputs = {"predictions": PREDICTIONS, "references": LABELS, "probabilities": PROBABILITIES}
    for start in (0, 4):  # 4 and 2: uneven
        metric.add_batch(**{name: values[start : start + 4] for name, values in inputs.items()})
    assert metric.compute(names=CLASSES) == whole.compute(**inputs, names=CLASSES)


def test_a_broken_model_has_no_scores():
    with pytest.raises(ValueError, match="not finite: the weights of the model are broken"):
        classification_metrics(np.array([[np.nan, 0, 0], [0, 1, 0]]), np.array([0, 1]), CLASSES)


#                             right            wrong            right            right            wrong
SOME_PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.1, 0.5, 0.4], [0.2, 0.5, 0.3]])
SOME_LABELS = np.array([0, 1, 2, 1, 2])


def test_seen_images_do_not_count():
    seen = np.array([False, True, False, False, False])
    scores = unseen_metrics(SOME_PROBABILITIES, SOME_LABELS, CLASSES, seen)
    assert scores["num_seen_test_images"] == 1
    assert scores["test_unseen/accuracy"] == 3 / 4
    assert scores["test_unseen/loss"] == pytest.approx(-np.log([0.8, 0.8, 0.5, 0.3]).mean())
    assert scores["test_unseen/f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert describe_seen(seen, scores) == "pre-training has seen 1 of the 5 test images; accuracy on the others 0.7500"


def test_f1_is_the_mean_over_the_classes_that_have_unseen_images():
    scores = unseen_metrics(SOME_PROBABILITIES, SOME_LABELS, CLASSES, np.array([True, False, False, False, False]))
    assert scores["test_unseen/f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["test_unseen/accuracy"] == 2 / 4


def test_nothing_seen_all_seen_and_unknown_have_different_scores():
    none, everything = (
        unseen_metrics(SOME_PROBABILITIES, SOME_LABELS, CLASSES, np.full(5, seen)) for seen in (False, True)
    )
    assert none["test_unseen/accuracy"] == 3 / 5
    assert everything == {"num_seen_test_images": 5}
    assert unseen_metrics(SOME_PROBABILITIES, SOME_LABELS, CLASSES, None) == {}


def test_the_number_of_seen_images_is_described():
    some = describe_seen(np.array([True, False, True]))
    assert some == "pre-training has seen 2 of the 3 test images; scores come with and without"
    assert "none of the test images" in describe_seen(np.zeros(3, bool))
    assert "all 3 test images" in describe_seen(np.ones(3, bool), {})
    assert "unknown" in describe_seen(None)


def two_classes(confidence: list[float]) -> np.ndarray:
    """Probabilities of class 0 and 1, class 0 with these confidences."""
    return np.array([[p, 1 - p] for p in confidence])


def test_reliability_is_that_of_a_case_worked_out_by_hand():
    # 2 of 4 right at 0.8, 1 of 1 right at 0.6: the gaps are 0.3 and 0.4, so (4 * 0.3 + 1 * 0.4) / 5
    found = reliability(np.array([0, 0, 1, 1, 0]), two_classes([0.8, 0.8, 0.8, 0.8, 0.6]), num_bins=10)
    assert found.error == pytest.approx(0.32)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 0, 4, 0, 0]
    assert found.accuracy[[5, 7]].tolist() == [1.0, 0.5]
    assert found.confidence[[5, 7]] == pytest.approx([0.6, 0.8])
    assert np.isnan(np.delete(found.accuracy, [5, 7])).all()


def test_a_bin_of_the_confidence_holds_its_upper_edge_and_not_its_lower_one():
    assert reliability(np.array([0, 0, 0]), two_classes([0.5, 0.75, 1.0]), num_bins=4).counts.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(("right", "error"), [(10, 0.0), (0, 1.0), (7, 0.3)])
def test_who_is_always_sure_is_off_by_the_part_that_is_wrong(right, error):
    labels = np.array([0] * right + [1] * (10 - right))
    assert reliability(labels, two_classes([1.0] * 10)).error == pytest.approx(error)


def test_who_is_right_as_often_as_he_says_is_hardly_off():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 50_000)
    labels = (rng.random(50_000) > confidence).astype(int)
    assert reliability(labels, np.stack([confidence, 1 - confidence], axis=1)).error < 0.01


def test_the_bins_of_the_confidence_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(400, 5)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = rng.integers(0, 5, 400)
    found = reliability(labels, probabilities, num_bins=12)
    is_right = probabilities.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(is_right, probabilities.max(axis=1), n_bins=12)
    filled = found.counts > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled], confidence)
    expected = sum(n * abs(a - c) for n, a, c in zip(found.counts[filled], accuracy, confidence, strict=True)) / 400
    assert found.error == pytest.approx(expected)


def test_fewer_images_than_bins_and_a_single_class_are_no_obstacle():
    assert reliability(np.array([0]), np.array([[1.0]])).error == 0
    assert reliability(np.array([1, 1]), two_classes([0.9, 0.9])).error == pytest.approx(0.9)
