"""Scores on the test images that pre-training has never seen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mae_hf.evaluation.metrics import classification_metrics


def unseen_metrics(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], seen: np.ndarray | None
) -> dict[str, float | int]:
    """Return the scores of a classifier on the test images that pre-training has not seen.

    Args:
        probabilities: float (n, num_classes), output of the softmax.
        labels: int (n,), true classes.
        class_names: the name of each class.
        seen: bool (n,), whether pre-training has seen the image; None if unknown.

    Returns:
        `num_seen_test_images`, and if any image is unseen `test_unseen/accuracy`, `/f1` and `/loss`. Nothing if `seen`
        is None.
    """
    if seen is None:
        return {}
    found: dict[str, float | int] = {"num_seen_test_images": int(seen.sum())}
    rest = np.flatnonzero(~seen)
    if not len(rest):
        return found
    scores = classification_metrics(probabilities[rest].argmax(axis=1), labels[rest], probabilities[rest], class_names)
    return found | {f"test_unseen/{key}": scores[key] for key in ("accuracy", "f1", "loss")}


def describe_seen(seen: np.ndarray | None, scores: Mapping[str, Any] | None = None) -> str:
    """Return how many test images pre-training has seen, in a line to print.

    Args:
        seen: as in `unseen_metrics`.
        scores: what `unseen_metrics` returned, to add the accuracy.
    """
    if seen is None:
        return (
            "unknown which test images pre-training has seen: the model has no audit.json, or one for other test "
            "images or another image size, or its images were streamed, without a search for near-duplicates"
        )
    if not seen.any():
        return "pre-training has seen none of the test images"
    if seen.all():
        return f"pre-training has seen all {len(seen):,} test images: there is no score without them"
    rest = f"accuracy on the others {scores['test_unseen/accuracy']:.4f}" if scores else "scores come with and without"
    return f"pre-training has seen {seen.sum():,} of the {len(seen):,} test images; {rest}"
