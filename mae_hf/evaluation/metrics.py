"""Classification metrics as `evaluate.Metric` subclasses that need neither the Hub nor a download.

`evaluate.load("accuracy")` fetches its code from the Hub; these come with the package and are computed by
scikit-learn. A class with images that is never predicted has an F1 of 0; a class without images has none, as there is
nothing it could be right about, and macro-F1 is the mean over the others.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

_INT = datasets.Value("int64")
_CITATION = "Pedregosa et al. 2011, Scikit-learn: Machine Learning in Python, JMLR 12"


def _info(description: str, inputs: str, prediction: Any) -> evaluate.MetricInfo:
    """The description that `evaluate` wants; its first input is `inputs`, its second `references`."""
    return evaluate.MetricInfo(
        description=description,
        citation=_CITATION,
        inputs_description=f"{inputs} and references: one per image; num_classes: how many classes there are.",
        features=datasets.Features({inputs: prediction, "references": _INT}),
    )


class _InMemory(evaluate.Metric):
    """A metric that makes no folder in `~/.cache` where nothing is to be written: a home may be read-only."""

    def _build_data_dir(self) -> str:
        return str(self._data_dir_root if self.keep_in_memory else super()._build_data_dir())


class Accuracy(_InMemory):
    """`accuracy`: the part of the predictions that equals the reference."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("Part of the predictions that is right.", "predictions", _INT)

    def _compute(self, predictions: Sequence[int], references: Sequence[int], **_: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class F1(_InMemory):
    """`f1`: mean F1 of the classes that have images; `f1_per_class`: of class 0, 1, ... `num_classes - 1`, else NaN."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("F1 of each class and their mean.", "predictions", _INT)

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], num_classes: int, **_: Any
    ) -> dict[str, Any]:
        per_class = np.full(num_classes, np.nan)
        present = np.unique(references)
        per_class[present] = f1_score(references, predictions, labels=present, average=None, zero_division=0)
        return {"f1": float(np.nanmean(per_class)), "f1_per_class": [float(value) for value in per_class]}


class ConfusionMatrix(_InMemory):
    """`confusion_matrix`: nested lists of counts; row: the reference, column: the prediction."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("Counts of each reference (row) predicted as each class (column).", "predictions", _INT)

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], num_classes: int, **_: Any
    ) -> dict[str, list[list[int]]]:
        matrix = confusion_matrix(references, predictions, labels=list(range(num_classes)))
        return {"confusion_matrix": matrix.tolist()}


class LogLoss(_InMemory):
    """`loss`: mean cross-entropy of the true class, from `probabilities` in the place of predictions."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("Mean cross-entropy.", "probabilities", datasets.Sequence(datasets.Value("float64")))

    def _compute(
        self, probabilities: Sequence[Sequence[float]], references: Sequence[int], **_: Any
    ) -> dict[str, float]:
        # Not sklearn's log_loss: it drops to 1 - 2e-16 what float32 softmax rounds to 1, and warns about its sums.
        of_truth = np.take_along_axis(np.asarray(probabilities), np.asarray(references)[:, None], axis=1)
        return {"loss": float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean())}


def classification_metrics(
    predictions: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """The scores of a classifier over a whole split.

    Args:
        predictions: int (n,), predicted classes.
        labels: int (n,), true classes.
        probabilities: float (n, num_classes), what the softmax gave.
        class_names: the name of each class.

    Returns:
        `accuracy`, `f1` (macro, over the classes that have images), `f1_per_class` (by class name, without the classes
        that have no image), `loss` (mean cross-entropy of the true class) and `confusion_matrix` (nested lists; row:
        true class, column: predicted).

    Raises:
        ValueError: nothing to score, lengths that differ, a class or a probability out of range.
    """
    predictions, labels, probabilities = np.asarray(predictions), np.asarray(labels), np.asarray(probabilities)
    num_classes = len(class_names)
    if len(labels) == 0:
        raise ValueError("no predictions to score: the split is empty")
    if not len(predictions) == len(labels) == len(probabilities):
        raise ValueError(
            f"{len(predictions)} predictions, {len(labels)} labels and {len(probabilities)} rows of probabilities: "
            "all must come from the same images"
        )
    if probabilities.shape != (len(labels), num_classes):
        raise ValueError(f"probabilities of shape {probabilities.shape}: {(len(labels), num_classes)} is needed")
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-5)).all():
        raise ValueError("probabilities outside of [0, 1] or not finite: give the softmax, not the logits")
    for name, classes in (("predictions", predictions), ("labels", labels)):
        if classes.min() < 0 or classes.max() >= num_classes:
            raise ValueError(
                f"{name} from {classes.min()} to {classes.max()}: with {num_classes} classes they must lie between 0 "
                f"and {num_classes - 1}"
            )
    metrics = evaluate.combine([metric(keep_in_memory=True) for metric in (Accuracy, F1, ConfusionMatrix, LogLoss)])
    scores = metrics.compute(
        predictions=predictions, references=labels, probabilities=probabilities, num_classes=num_classes
    )
    by_name = zip(class_names, scores["f1_per_class"], strict=True)
    scores["f1_per_class"] = {name: f1 for name, f1 in by_name if not np.isnan(f1)}
    return scores
