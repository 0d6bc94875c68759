"""The comparison as people read it: comparison.json, one self-contained index.html and a table of text."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from mae_hf.errors import require
from mae_hf.files import write_text
from mae_hf.report.comparison import Comparison
from mae_hf.report.networks import changed_encoders
from mae_hf.report.page import page
from mae_hf.report.pictures import draw_pictures
from mae_hf.report.results import f1_of_classes, scores_on_test

# key of `Comparison.table` -> title in the terminal
_COLUMNS = {
    "run": "run",
    "init": "started from",
    "test_accuracy": "accuracy",
    "test_f1": "macro-F1",
    "test_loss": "loss",
    "best_validation_accuracy": "best val",
    "best_epoch": "at epoch",
    "epochs_to_scratch_best": "epochs to scratch best",
}
_PERCENT = ("test_accuracy", "test_f1", "best_validation_accuracy")


def write_report(comparison: Comparison, output_dir: str | Path) -> Path:
    """Draws and writes everything into `output_dir`, `index.html` last, and returns that page's path.

    What cannot be drawn, because images or the pre-training run are no longer there, is left out; the page and one
    warning say so.

    Raises:
        ConfigError: `output_dir` is not a folder.
    """
    folder = Path(output_dir)
    require(not folder.exists() or folder.is_dir(), f"{folder} is not a folder: choose another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_pictures(comparison, folder)
    changed = changed_encoders(comparison.runs)
    for warning in [*changed, *filter(None, [comparison.has_choice and comparison.few_validation_images()])]:
        print(f"warning: {warning}", file=sys.stderr)
    notes = [*changed, *comparison.notes()]
    content = {
        "answer": comparison.answer(),
        "details": comparison.details(),
        "points": comparison.points,
        "results": comparison.results.to_json(),
        "runs": comparison.table(),
        "class_names": comparison.runs[0].class_names,
        "f1_per_class": {
            arm: {name: f1 for name, f1 in f1_of_classes(runs).items() if not math.isnan(f1)}
            for arm, runs in zip(comparison.arms, comparison.chosen, strict=True)
        },
        "confusion_matrix": {name: scores_on_test(run)["confusion_matrix"] for name, run in comparison.best.items()},
        "calibration_error": drawn.calibration_error,
        "trustworthiness": drawn.trustworthiness,
        "notes": [*notes, *drawn.notes],
    }
    write_text(folder / "comparison.json", json.dumps(content, indent=2) + "\n")
    write_text(folder / "index.html", page(comparison, drawn, notes, str(output_dir)))
    return folder / "index.html"


def text_table(comparison: Comparison) -> str:
    """The table for a terminal, a line per run; `*` marks the runs that the answer is about."""
    rows = [tuple(_COLUMNS.values())] + [
        ("* " * row["chosen"] + row["run"], *(_cell(row, key) for key in list(_COLUMNS)[1:]))
        for row in comparison.table()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if value is None:
        return "not reached"
    if key in _PERCENT:
        return f"{100 * value:.2f}"
    return f"{value:.3f}" if key == "test_loss" else f"{value:g}" if isinstance(value, float) else str(value)
