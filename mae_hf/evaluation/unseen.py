"""The score on the test images that pre-training has never seen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mae_hf.evaluation.metrics import classification_metrics


def unseen_metrics(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], seen: np.ndarray | None
) -> dict[str, float | int]:
    """The scores of a classifier over the test images that pre-training has not seen.

    Args:
        probabilities: float (n, num_classes), what the softmax gave.
        labels: int (n,), true classes.
        class_names: the name of each class.
        seen: bool (n,), whether pre-training has seen the image; None if that is not known.

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


def describe_seen(seen: np.ndarray | None) -> str:
    """How many test images pre-training has seen, in a line to print; `seen` as in `unseen_metrics`."""
    if seen is None or seen.all() or not seen.any():
        return describe_unseen({} if seen is None else {"num_seen_test_images": int(seen.sum())})
    return f"pre-training has seen {seen.sum():,} of the {len(seen):,} test images: scores come with and without them"


def describe_unseen(metrics: Mapping[str, Any]) -> str:
    """The same in a line to print."""
    num = metrics.get("num_seen_test_images")
    if num is None:
        return (
            "not known which test images pre-training has seen: the model has no audit.json, or one for other test "
            "images or another image size, or its images were streamed and near copies not looked for"
        )
    if not num:
        return "pre-training has seen none of the test images"
    if "test_unseen/accuracy" not in metrics:
        return f"pre-training has seen all {num:,} test images: there is no score without them"
    return f"pre-training has seen {num:,} test images; accuracy on the others {metrics['test_unseen/accuracy']:.4f}"
