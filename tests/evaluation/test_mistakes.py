"""The surest mistakes come first, and right predictions never."""

import numpy as np

from mae_hf.evaluation.mistakes import most_confident_mistakes

PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]])


def test_mistakes_are_in_the_order_of_their_probability_equal_ones_in_that_of_the_images():
    labels = np.array([0, 0, 0, 1, 0])  # only the first is right
    assert most_confident_mistakes(labels, PROBABILITIES, 9).tolist() == [2, 3, 1, 4]
    assert most_confident_mistakes(labels, PROBABILITIES, 2).tolist() == [2, 3]


def test_who_is_always_right_makes_none():
    assert most_confident_mistakes(np.array([0, 1, 1, 0, 1]), PROBABILITIES, 9).tolist() == []
