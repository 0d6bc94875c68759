"""Reliability and its expected error: known answers, and scikit-learn on the same bins."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from mae_hf.evaluation.calibration import reliability


def two_classes(confidence: list[float]) -> np.ndarray:
    """Probabilities of class 0 and 1, class 0 with these confidences."""
    return np.array([[p, 1 - p] for p in confidence])


def test_a_case_worked_out_by_hand():
    # 2 of 4 right at 0.8, 1 of 1 right at 0.6: the gaps are 0.3 and 0.4, so (4 * 0.3 + 1 * 0.4) / 5
    found = reliability(np.array([0, 0, 1, 1, 0]), two_classes([0.8, 0.8, 0.8, 0.8, 0.6]), num_bins=10)
    assert found.error == pytest.approx(0.32)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 0, 4, 0, 0]
    assert found.accuracy[[5, 7]].tolist() == [1.0, 0.5]
    assert found.confidence[[5, 7]] == pytest.approx([0.6, 0.8])
    assert np.isnan(np.delete(found.accuracy, [5, 7])).all()


def test_a_bin_holds_its_upper_edge_and_not_its_lower_one():
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


def test_the_bins_are_those_of_scikit_learn():
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
