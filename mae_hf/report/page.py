"""The report as one HTML page: the answer, the comparison, pictures, and what lies behind them."""

import base64
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

import numpy as np

from mae_hf.evaluation.statistics import Interval, OverSeeds
from mae_hf.report import background
from mae_hf.report.comparison import PRETRAINED, SCRATCH, Comparison
from mae_hf.report.markup import Cell, contents, items, paragraphs, picture, section, table
from mae_hf.report.pictures import Pictures
from mae_hf.report.results import Unseen, f1_of_classes
from mae_hf.training.finished_runs import Run
from mae_hf.training.provenance import find_provenances

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
_HOW_TO_READ = (
    "MAE pre-trained: a masked autoencoder has first learned from images without labels, by filling in hidden patches; "
    "its encoder was then trained on the labels. From scratch: the same network, trained on the same labels from "
    "random weights.",
    "Recipes were chosen and weights kept by validation images alone; test images were looked at once, at the end. "
    "Accuracy, F1 and loss on them are computed again here from each run's predictions.parquet, curves come from its "
    "metrics.jsonl. Macro-F1 is the mean of the classes' F1, each the harmonic mean of precision and recall.",
    "A 95 % interval over test images (percentile bootstrap, 9,999 draws, both arms on the same drawn images) says "
    "what other test images might have given; of several seeds it is that of their mean. What other seeds might have "
    "given is not in it: that is what ±, the standard deviation over seeds, says. McNemar's exact test counts the "
    "images that only one of two runs has right; p is how often so unequal a count would happen if both were equally "
    "good.",
    "Epochs until an accuracy is reached end at the first check of it on validation images, and those of pre-training "
    "are not counted. The best validation accuracy is the greatest of many checks, a little too high in both arms.",
)


def page(comparison: Comparison, drawn: Pictures, output_dir: str) -> str:
    """The whole report: pictures, style and script inside, no requests.

    Args:
        comparison: what it is about.
        drawn: its pictures.
        output_dir: where the report goes, as the command names it.
    """
    origins = find_provenances([run.config.model.init for run in comparison.pretrained])
    pictures = "".join(
        picture(item.heading, base64.b64encode(item.path.read_bytes()).decode(), item.caption)
        for item in drawn.pictures
    )
    parts = {
        "comparison": ("Comparison", _comparison(comparison)),
        "pictures": ("Pictures", pictures + items(drawn.notes)),
        "classes": ("Class by class", _classes(comparison)),
        "data": ("Data", background.data(comparison, origins)),
        "leaks": ("Leaks", background.leaks(comparison, origins)),
        "recipe": ("Recipe", background.recipe(comparison)),
        "environment": ("Environment", background.environment(comparison, origins)),
        "commands": ("Commands", background.reproduce(comparison, origins, output_dir)),
    }
    template = Template(files("mae_hf.report").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        answer=escape(comparison.answer()),
        details=escape(comparison.details()),
        content=contents({key: heading for key, (heading, _) in parts.items()})
        + "".join(section(key, heading, content) for key, (heading, content) in parts.items()),
    )


def _comparison(comparison: Comparison) -> str:
    results = comparison.results
    pairs = [
        (
            f"{pair.pretrained} and {pair.scratch}",
            NONE if pair.seed is None else str(pair.seed),
            Cell(f"{pair.test.only_first:,}", pair.test.only_first),
            Cell(f"{pair.test.only_second:,}", pair.test.only_second),
            Cell(f"{pair.test.p_value:.2g}", pair.test.p_value),
        )
        for pair in results.pairs
    ]
    matched = "of equal seed" if results.pairs[0].seed is not None else "that are best on validation, as no seeds match"
    head = ("runs", "seed", "only pre-trained right", "only scratch right", "p")
    return (
        table("Both arms", ("", PRETRAINED, SCRATCH, "difference"), _arm_rows(comparison))
        + items(comparison.notes())
        + paragraphs(*_HOW_TO_READ)
        + table(f"Runs in pairs: test images that only one of the two has right, for runs {matched}", head, pairs)
        + _runs(comparison)
    )


def _arm_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    results = comparison.results
    ours, other = results.pretrained, results.scratch
    rows = [
        ("seeds", *(", ".join(map(str, sorted(arm.seeds))) for arm in (ours, other)), ""),
        (
            "test accuracy (%)",
            _spread(ours.accuracy, 100, 1),
            _spread(other.accuracy, 100, 1),
            f"{comparison.points:+.1f} points",
        ),
        (
            f"its 95 % interval over {results.num_test_images:,} test images",
            _interval(ours.accuracy_interval, ".1f"),
            _interval(other.accuracy_interval, ".1f"),
            _interval(results.gain_interval, "+.1f"),
        ),
        *_unseen_rows(results.unseen),
        ("test macro-F1 (%)", *_three(ours.f1, other.f1, 100, 1)),
        ("test loss", *_three(ours.loss, other.loss, 1, 3)),
        (
            "best validation accuracy (%)",
            *_three(ours.best_validation_accuracy, other.best_validation_accuracy, 100, 1),
        ),
    ]
    if results.epochs and ours.mean_validation_accuracy and other.mean_validation_accuracy:
        start, end = results.epochs
        areas = (ours.mean_validation_accuracy, other.mean_validation_accuracy, results.mean_validation_gain)
        rows += [
            (
                f"mean height of the validation curve (%), epochs {start:g} to {end:g} (area / epochs)",
                *_three(ours.mean_validation_accuracy, other.mean_validation_accuracy, 100, 1),
            ),
            ("its interval over seeds", *(_over_seeds(area, 100, 1) for area in areas)),
        ]
    return [
        *rows,
        (
            f"epochs of fine-tuning until validation accuracy is {100 * results.target:.1f} %, scratch's best"
            + (" (median over seeds)" if len(ours.seeds) + len(other.seeds) > 2 else ""),
            *(_epochs(arm.epochs_to_target.center) for arm in (ours, other)),
            "",
        ),
        (
            "interval of these epochs over seeds",
            *(_over_seeds(arm.epochs_to_target, 1, None) for arm in (ours, other)),
            "",
        ),
    ]


def _unseen_rows(unseen: Unseen | None) -> list[tuple[str, ...]]:
    if unseen is None:
        return []
    accuracies = (_spread(accuracy, 100, 1) for accuracy in (unseen.pretrained, unseen.scratch))
    return [
        (
            f"accuracy on the {unseen.num_images:,} of them that pre-training has not seen (%)",
            *accuracies,
            f"{100 * unseen.gain:+.1f} points",
        ),
        ("95 % interval of that difference", "", "", _interval(unseen.gain_interval, "+.1f")),
    ]


def _three(ours: OverSeeds, other: OverSeeds, factor: float, digits: int) -> tuple[str, str, str]:
    """Both arms and the difference of their means."""
    difference = factor * (ours.center - other.center)
    return _spread(ours, factor, digits), _spread(other, factor, digits), f"{difference:+.{digits}f}"


def _spread(value: OverSeeds, factor: float, digits: int) -> str:
    sd = "" if value.sd is None else f" ± {factor * value.sd:.{digits}f}"
    return f"{factor * value.center:.{digits}f}{sd}"


def _interval(interval: Interval | None, form: str) -> str:
    return f"{100 * interval.low:{form}} to {100 * interval.high:{form}}" if interval else "none: all images alike"


def _epochs(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else "not reached"


def _over_seeds(value: OverSeeds | None, factor: float, digits: int | None) -> str:
    """The interval over seeds in words; without digits the numbers are epochs, which may not be reached."""
    if value is None or value.low is None or value.high is None:
        return "unknown: one number"
    low, high = (_epochs(end) if digits is None else f"{factor * end:.{digits}f}" for end in (value.low, value.high))
    kind = "95 % bootstrap" if value.kind == "bootstrap" else "least to greatest"
    reached = sum(map(math.isfinite, value.values))
    missed = "" if reached == len(value.values) else f", reached by {reached}"
    return f"{low} to {high} ({kind} of {len(value.values)}{missed})"


def _runs(comparison: Comparison) -> str:
    rows: list[list[str | Cell]] = []
    for row in comparison.table():
        numbers = [
            Cell("not reached", math.nan) if row[key] is None else Cell(f"{factor * row[key]:{form}}", float(row[key]))
            for key, _, factor, form in _RUN_COLUMNS
        ]
        rows.append([f"✓ {row['run']}" if row["chosen"] else row["run"], row["init"], row["recipe"], *numbers])
    head = ("run", "started from", "recipe", *(title for _, title, _, _ in _RUN_COLUMNS))
    marked = [row["chosen"] for row in comparison.table()]
    caption = "All runs; the answer is about those of the chosen recipes, marked ✓. A click on a title sorts."
    return table(caption, head, rows, marked, sortable=True)


def _classes(comparison: Comparison) -> str:
    names, labels = comparison.scratch[0].class_names, comparison.scratch[0].labels
    columns = [_recall(arm, names) for arm in comparison.chosen]
    columns += [np.array(list(f1_of_classes(arm).values())) for arm in comparison.chosen]
    gain = columns[2] - columns[3]
    rows: list[list[str | Cell]] = []
    for i, name in enumerate(names):
        count = int((labels == i).sum())
        numbers = [*(_percent(column[i], ".1f") for column in columns), _percent(gain[i], "+.1f")]
        rows.append([name, Cell(f"{count:,}", count), *numbers])
    arms = ("pre-trained", "scratch")
    head = (
        "class",
        "test images",
        *(f"found, {arm} (%)" for arm in arms),
        *(f"F1, {arm} (%)" for arm in arms),
        "gain in F1",
    )
    several = " Means over seeds." if max(map(len, comparison.chosen)) > 1 else ""
    return table(
        "Found: part of the class's test images that are recognised (recall). F1 counts false alarms too."
        f"{several} A click on a title sorts.",
        head,
        rows,
        sortable=True,
    )


def _percent(value: float, form: str) -> Cell:
    return Cell(NONE if math.isnan(value) else f"{100 * value:{form}}", float(value))


def _recall(arm: Sequence[Run], names: Sequence[str]) -> np.ndarray:
    """float (C,), mean over the seeds; NaN for a class without test images."""
    labels = arm[0].labels
    of_class = [labels == i for i in range(len(names))]
    return np.array(
        [np.mean([run.correct[rows].mean() for run in arm]) if rows.any() else math.nan for rows in of_class]
    )
