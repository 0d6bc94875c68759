"""The scores of a classifier: an `evaluate.Metric` that, unlike `evaluate.load("accuracy")`, needs no download."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

NUM_BINS = 15  # of `reliability`, as in its paper


class ClassificationMetrics(evaluate.Metric):
    """The scores that `classification_metrics` returns, from predictions, references and probabilities."""

    def _build_data_dir(self) -> str:
        # no folder in `~/.cache` where nothing is written: a home may be read-only
        return str(self._data_dir_root if self.keep_in_memory else super()._build_data_dir())

    def _info(self) -> evaluate.MetricInfo:
        number, numbers = datasets.Value("int64"), datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Accuracy, F1, confusion matrix and cross-entropy of a classifier.",
            citation="Pedregosa et al. 2011, Scikit-learn: Machine Learning in Python, JMLR 12",
            features=datasets.Features({"predictions": number, "references": number, "probabilities": numbers}),
        )

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], probabilities: Sequence[Any], names: Sequence[str]
    ) -> dict[str, Any]:
        present = np.unique(references)
        f1 = np.full(len(names), np.nan)
        f1[present] = f1_score(references, predictions, labels=present, average=None, zero_division=0)
        # Not sklearn's log_loss: it drops to 1 - 2e-16 what float32 softmax rounds to 1, and warns about its sums.
        of_truth = np.take_along_axis(np.asarray(probabilities), np.asarray(references)[:, None], axis=1)
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(np.nanmean(f1)),
            "f1_per_class": {name: float(f1[label]) for label, name in enumerate(names) if label in present},
            "confusion_matrix": confusion_matrix(references, predictions, labels=range(len(names))).tolist(),
            "loss": float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean()),
        }


def classification_metrics(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the scores of a classifier from its softmax, (n, C), and the true classes, int (n,).

    The class of the greatest probability is the prediction. The scores are `accuracy`, `f1` (macro, over the classes
    that have images), `f1_per_class` (their F1 by name), `loss` (mean cross-entropy of the true class) and
    `confusion_matrix` (row: true class, column: predicted). Probabilities of a broken model are a ValueError.
    """
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities are not finite: the weights of the model are broken")
    metric, predictions = ClassificationMetrics(keep_in_memory=True), probabilities.argmax(axis=1)
    return metric.compute(predictions=predictions, references=labels, probabilities=probabilities, names=class_names)


def unseen_metrics(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], seen: np.ndarray | None
) -> dict[str, float | int]:
    """Return `num_seen_test_images`, and `test_unseen/accuracy`, `/f1` and `/loss` on the others, if there are any.

    `seen` is bool (n,), whether pre-training has seen each test image; None, which gives no scores, if unknown.
    """
    if seen is None:
        return {}
    found: dict[str, float | int] = {"num_seen_test_images": int(seen.sum())}
    if seen.all():
        return found
    scores = classification_metrics(probabilities[~seen], labels[~seen], class_names)
    return found | {f"test_unseen/{key}": scores[key] for key in ("accuracy", "f1", "loss")}


def describe_seen(seen: np.ndarray | None, scores: Mapping[str, Any] | None = None) -> str:
    """Return a line on how many test images pre-training has seen; `scores` of `unseen_metrics` add the accuracy."""
    if seen is None:
        streamed = "its images were streamed, without a search for near-duplicates"
        why = f"the model has no audit.json, or one for other test images or another image size, or {streamed}"
        return f"unknown which test images pre-training has seen: {why}"
    if not seen.any():
        return "pre-training has seen none of the test images"
    if seen.all():
        return f"pre-training has seen all {len(seen):,} test images: there is no score without them"
    rest = f"accuracy on the others {scores['test_unseen/accuracy']:.4f}" if scores else "scores come with and without"
    return f"pre-training has seen {seen.sum():,} of the {len(seen):,} test images; {rest}"


class Reliability(NamedTuple):
    """A classifier's accuracy by its confidence, in M bins of equal width between 0 and 1. An empty bin has NaN."""

    counts: NDArray[np.int64]  # (M,), images in each bin
    confidence: NDArray[np.float64]  # (M,), mean confidence of each bin
    accuracy: NDArray[np.float64]  # (M,), share of each bin that is right

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1: the mean over images of the gap of their bin."""
        return float(np.nansum(self.counts * np.abs(self.accuracy - self.confidence)) / self.counts.sum())


def reliability(labels: np.ndarray, probabilities: np.ndarray, num_bins: int = NUM_BINS) -> Reliability:
    """Return the reliability of a classifier from int labels (n,) and the probabilities of its classes, (n, C).

    The confidence of an image is the probability of its predicted class; bin m holds those in ((m - 1) / M, m / M].

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599, section 2.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    is_right = probabilities.argmax(axis=1) == labels
    bins = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], confidence, side="left")
    counts, *sums = (np.bincount(bins, weights, minlength=num_bins) for weights in (None, confidence, is_right))
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin is the NaN that is wanted
        return Reliability(counts, sums[0] / counts, sums[1] / counts)
