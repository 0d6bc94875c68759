"""Classification metrics as an `evaluate.Metric` that needs neither the Hub nor a download.

`evaluate.load("accuracy")` downloads its code from the Hub; this metric comes with the package, and scikit-learn
computes it. A class with images that is never predicted has an F1 of 0. A class without images has no F1, and macro-F1
is the mean over the other classes.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score


class ClassificationMetrics(evaluate.Metric):
    """`accuracy`, `f1`, `f1_per_class`, `confusion_matrix` and `loss` of a classifier, from its probabilities.

    `f1_per_class` is NaN for a class without images. Rows of the confusion matrix are references, columns predictions.
    """

    def _build_data_dir(self) -> str:
        # no folder in `~/.cache` where nothing is written: a home may be read-only
        return str(self._data_dir_root if self.keep_in_memory else super()._build_data_dir())

    def _info(self) -> evaluate.MetricInfo:
        number, numbers = datasets.Value("int64"), datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Accuracy, F1, confusion matrix and cross-entropy of a classifier.",
            citation="Pedregosa et al. 2011, Scikit-learn: Machine Learning in Python, JMLR 12",
            inputs_description="predictions, references and probabilities of each image; num_classes: of the data.",
            features=datasets.Features({"predictions": number, "references": number, "probabilities": numbers}),
        )

    def _compute(
        self,
        predictions: Sequence[int],
        references: Sequence[int],
        probabilities: Sequence[Sequence[float]],
        num_classes: int,
    ) -> dict[str, Any]:
        present = np.unique(references)
        f1 = np.full(num_classes, np.nan)
        f1[present] = f1_score(references, predictions, labels=present, average=None, zero_division=0)
        # Not sklearn's log_loss: it drops to 1 - 2e-16 what float32 softmax rounds to 1, and warns about its sums.
        of_truth = np.take_along_axis(np.asarray(probabilities), np.asarray(references)[:, None], axis=1)
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(np.nanmean(f1)),
            "f1_per_class": [float(value) for value in f1],
            "confusion_matrix": confusion_matrix(references, predictions, labels=range(num_classes)).tolist(),
            "loss": float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean()),
        }


def classification_metrics(
    predictions: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the scores of a classifier over a whole split.

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
    shape = (len(labels), num_classes)
    if len(labels) == 0:
        raise ValueError("no predictions to score: the split is empty")
    if len(predictions) != len(labels) or probabilities.shape != shape:
        raise ValueError(
            f"{len(predictions)} predictions and probabilities of shape {probabilities.shape} for {len(labels)} labels "
            f"of {num_classes} classes: all must come from the same images"
        )
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-5)).all():
        raise ValueError("probabilities outside of [0, 1] or not finite: give the softmax, not the logits")
    for name, classes in (("predictions", predictions), ("labels", labels)):
        if classes.min() < 0 or classes.max() >= num_classes:
            raise ValueError(
                f"{name} are from {classes.min()} to {classes.max()}, but {num_classes} classes have the numbers 0 to "
                f"{num_classes - 1}"
            )
    scores: dict[str, Any] = ClassificationMetrics(keep_in_memory=True).compute(
        predictions=predictions, references=labels, probabilities=probabilities, num_classes=num_classes
    )
    by_name = zip(class_names, scores["f1_per_class"], strict=True)
    return scores | {"f1_per_class": {name: f1 for name, f1 in by_name if not np.isnan(f1)}}
