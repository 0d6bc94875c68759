"""The tables of numbers on the page: both arms, recipes, pairs, runs and classes.

Shapes: C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_hf.evaluation.statistics import Interval, Spread
from mae_hf.report.comparison import PRETRAINED_ARM, SCRATCH_ARM, Comparison, describe_units, interval_text
from mae_hf.report.results import Recipe, f1_of_classes, scores_on_test

NONE = "–"
# Columns of the table of runs: key of `Comparison.table`, title, factor, format.
_RUN_COLUMNS = (
    ("test_accuracy", "test accuracy (%)", 100, ".2f"),
    ("test_f1", "test macro-F1 (%)", 100, ".2f"),
    ("test_loss", "test loss", 1, ".3f"),
    ("best_validation_accuracy", "best validation accuracy (%)", 100, ".2f"),
    ("best_epoch", "at epoch", 1, "g"),
    ("epochs_to_scratch_best", "epochs to scratch's best validation", 1, "g"),
    ("seed", "seed", 1, "d"),
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str  # what is shown
    value: float | None = None  # the number to sort by; None sorts by the text, NaN comes last
    marked: bool = False  # whether it stands out, by a sign as well as a colour


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    caption: str  # what it shows
    head: Sequence[str]  # titles of the columns
    rows: Sequence[Sequence[str | Cell]]  # a cell for each title; the first is the heading of its row
    marked: Sequence[bool] = ()  # whether each row stands out; empty if none does
    sortable: bool = False  # whether a click on a title sorts

    @property
    def is_numeric(self) -> list[bool]:
        """Whether each column holds numbers."""
        cells = zip(*self.rows, strict=True)
        return [any(isinstance(cell, Cell) and cell.value is not None for cell in column) for column in cells]


def arms_table(comparison: Comparison) -> Table:
    """Return the table of both arms and their difference."""
    results = comparison.results
    ours, other = arms = (results.pretrained, results.scratch)
    welch = results.seeds_test.interval if results.seeds_test else None
    rows = [
        ("seeds", *(", ".join(map(str, sorted(set(arm.seeds)))) for arm in arms), ""),
        ("± is the standard deviation over", *map(describe_units, arms), ""),
        ("test accuracy (%)", *(_spread(arm.accuracy, 100, 1) for arm in arms), f"{comparison.points:+.1f} points"),
        (
            f"its 95 % interval over {results.num_test_images:,} test images",
            *(_interval(arm.accuracy_interval, ".1f") for arm in arms),
            _interval(results.gain_interval, "+.1f"),
        ),
        (
            "its 95 % interval over runs (Student's t)",
            *(_over_runs(arm.accuracy) for arm in arms),
            interval_text(welch, "+.1f") if welch else NONE,
        ),
    ]
    if unseen := results.unseen:
        name = f"accuracy on the {unseen.num_images:,} of them that pre-training has not seen (%)"
        accuracies = (_spread(accuracy, 100, 1) for accuracy in (unseen.pretrained, unseen.scratch))
        rows += [
            (name, *accuracies, f"{100 * unseen.gain:+.1f} points"),
            ("95 % interval of that difference", "", "", _interval(unseen.gain_interval, "+.1f")),
        ]
    measures = [
        ("test macro-F1 (%)", 100, 1, ours.f1, other.f1),
        ("test loss", 1, 3, ours.loss, other.loss),
        ("best validation accuracy (%)", 100, 1, ours.best_validation_accuracy, other.best_validation_accuracy),
    ]
    if results.epochs and ours.mean_validation_accuracy and other.mean_validation_accuracy:
        name = "mean height of the validation curve (%), epochs {:g} to {:g}".format(*results.epochs)
        measures.append((name, 100, 1, ours.mean_validation_accuracy, other.mean_validation_accuracy))
    for name, factor, digits, first, second in measures:
        difference = f"{factor * (first.center - second.center):+.{digits}f}"
        rows.append((name, _spread(first, factor, digits), _spread(second, factor, digits), difference))
    reach = f"median epoch at which validation accuracy reaches {100 * results.target:.1f} %, scratch's best"
    rows += [
        (reach, *(_epochs(arm.epochs_to_target.center) for arm in arms), ""),
        ("its smallest and largest value over runs", *(_range(arm.epochs_to_target) for arm in arms), ""),
    ]
    return Table("Both arms", ("", PRETRAINED_ARM, SCRATCH_ARM, "difference"), rows)


def choices_table(comparison: Comparison) -> Table | None:
    """Return the table of what each recipe gives; None where validation had nothing to choose."""
    if not comparison.has_choice:
        return None
    choices = comparison.results.choices
    rows: list[list[str | Cell]] = [
        [
            PRETRAINED_ARM if choice.is_pretrained else SCRATCH_ARM,
            choice.name,
            Cell(str(choice.num_runs), choice.num_runs),
            _percent(choice.validation_accuracy, ".1f"),
            Cell(f"{100 * choice.chosen:.0f}", choice.chosen),
            _percent(choice.accuracy, ".1f"),
            _percent(choice.gain, "+.1f"),
        ]
        for choice in choices
    ]
    caption = (
        "Recipes: the gain if validation had chosen this recipe, and how often it chooses it on resampled images. "
        "Marked recipes are chosen."
    )
    titles = ("best validation accuracy (%)", "chosen in (% of resamples)", "test accuracy (%)", "gain (points)")
    head = ("arm", "recipe", "runs", *titles)
    return Table(caption, head, rows, [choice.is_chosen for choice in choices])


def pairs_table(comparison: Comparison) -> Table:
    """Return McNemar's test of each pair of runs."""
    pairs = comparison.results.pairs
    rows = [
        (
            f"{pair.pretrained} and {pair.scratch}",
            NONE if pair.seed is None else str(pair.seed),
            Cell(f"{pair.test.only_first:,}", pair.test.only_first),
            Cell(f"{pair.test.only_second:,}", pair.test.only_second),
            Cell(f"{pair.test.p_value:.2g}", pair.test.p_value),
        )
        for pair in pairs
    ]
    which = "runs of equal seed" if pairs[0].seed is not None else "the best runs on validation, as no seeds match"
    head = ("runs", "seed", "only pre-trained right", "only scratch right", "p")
    return Table(f"Pairs: test images that only one of the two classifies correctly, for {which}", head, rows)


def runs_table(comparison: Comparison) -> Table:
    """Return the table of all runs."""
    runs = comparison.table()
    rows: list[list[str | Cell]] = []
    for row in runs:
        numbers = [
            Cell("not reached", math.nan) if row[key] is None else Cell(f"{factor * row[key]:{form}}", float(row[key]))
            for key, _, factor, form in _RUN_COLUMNS
        ]
        rows.append([f"✓ {row['run']}" if row["chosen"] else row["run"], row["init"], row["recipe"], *numbers])
    caption = "All runs. The answer is about the runs of the chosen recipes, marked ✓. Click on a title to sort."
    head = ("run", "started from", "recipe", *(title for _, title, _, _ in _RUN_COLUMNS))
    return Table(caption, head, rows, [row["chosen"] for row in runs], sortable=True)


def classes_table(comparison: Comparison) -> Table:
    """Return recall and F1 of each class."""
    names, labels = comparison.runs[0].class_names, comparison.runs[0].test.labels
    columns = [_recall(arm) for arm in comparison.chosen]
    columns += [np.array(list(f1_of_classes(arm).values())) for arm in comparison.chosen]
    counts = np.bincount(labels, minlength=len(names))
    rows: list[list[str | Cell]] = []
    for i, name in enumerate(names):
        numbers = [_percent(column[i], ".1f") for column in columns]
        gain = _percent(columns[2][i] - columns[3][i], "+.1f")
        rows.append([name, Cell(f"{counts[i]:,}", float(counts[i])), *numbers, gain])
    means = ", mean over runs" if max(map(len, comparison.chosen)) > 1 else ""
    titles = [f"{what}, {arm} (%)" for what in ("recall", "F1") for arm in ("pre-trained", "scratch")]
    return Table(
        f"Recall (the share of a class that is recognised) and F1 on test images{means}. Click on a title to sort.",
        ("class", "test images", *titles, "F1 gained (points)"),
        rows,
        sortable=True,
    )


def _spread(value: Spread, factor: float, digits: int) -> str:
    sd = "" if value.sd is None else f" ± {factor * value.sd:.{digits}f}"
    return f"{factor * value.center:.{digits}f}{sd}"


def _interval(interval: Interval | None, form: str) -> str:
    return interval_text(interval, form) if interval else "none: all images alike"


def _over_runs(value: Spread) -> str:
    if value.low is None or value.high is None:
        return "unknown: one number" if len(value.values) == 1 else "none: all alike"
    return f"{100 * value.low:.1f} to {100 * value.high:.1f}"


def _epochs(value: Any) -> str:
    return f"{value:g}" if math.isfinite(value) else "not reached"


def _range(value: Spread) -> str:
    if value.kind == "none":
        return "unknown: one number"
    reached = sum(map(math.isfinite, value.values))
    missed = "" if reached == len(value.values) else f", reached by {reached} of {len(value.values)}"
    return f"{_epochs(value.low)} to {_epochs(value.high)}{missed}"


def _percent(value: float, form: str) -> Cell:
    return Cell(NONE if math.isnan(value) else f"{100 * value:{form}}", float(value))


def _recall(arm: Recipe) -> NDArray[np.float64]:
    """The share of each class that is recognised, mean over runs, (C,); NaN for a class without test images."""
    matrix = np.mean([scores_on_test(run)["confusion_matrix"] for run in arm], axis=0)
    with np.errstate(invalid="ignore"):
        return np.diag(matrix) / matrix.sum(axis=1)
