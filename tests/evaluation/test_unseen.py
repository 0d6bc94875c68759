"""Scores without the images that pre-training has seen, counted by hand."""

import numpy as np
import pytest

from mae_hf.evaluation.unseen import describe_seen, unseen_metrics

NAMES = ("cat", "dog", "ship")
#                         right            wrong            right            right            wrong
PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.1, 0.5, 0.4], [0.2, 0.5, 0.3]])
LABELS = np.array([0, 1, 2, 1, 2])


def test_seen_images_do_not_count():
    seen = np.array([False, True, False, False, False])
    scores = unseen_metrics(PROBABILITIES, LABELS, NAMES, seen)
    assert scores["num_seen_test_images"] == 1
    assert scores["test_unseen/accuracy"] == 3 / 4
    assert scores["test_unseen/loss"] == pytest.approx(-np.log([0.8, 0.8, 0.5, 0.3]).mean())
    assert scores["test_unseen/f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert describe_seen(seen, scores) == "pre-training has seen 1 of the 5 test images; accuracy on the others 0.7500"


def test_f1_is_the_mean_over_the_classes_that_have_unseen_images():
    scores = unseen_metrics(PROBABILITIES, LABELS, NAMES, np.array([True, False, False, False, False]))
    assert scores["test_unseen/f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["test_unseen/accuracy"] == 2 / 4


def test_nothing_seen_all_seen_and_unknown_have_different_scores():
    none, everything = (unseen_metrics(PROBABILITIES, LABELS, NAMES, np.full(5, seen)) for seen in (False, True))
    assert none["test_unseen/accuracy"] == 3 / 5
    assert everything == {"num_seen_test_images": 5}
    assert unseen_metrics(PROBABILITIES, LABELS, NAMES, None) == {}


def test_the_number_of_seen_images_is_described():
    some = describe_seen(np.array([True, False, True]))
    assert some == "pre-training has seen 2 of the 3 test images; scores come with and without"
    assert "none of the test images" in describe_seen(np.zeros(3, bool))
    assert "all 3 test images" in describe_seen(np.ones(3, bool), {})
    assert "unknown" in describe_seen(None)
