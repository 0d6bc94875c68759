"""The comparison as people read it: comparison.json, one self-contained index.html and a table of text."""

import json
import math
import sys
from pathlib import Path

from mae_hf.errors import require
from mae_hf.files import write_text
from mae_hf.report.comparison import Comparison
from mae_hf.report.networks import changed_encoders
from mae_hf.report.page import page
from mae_hf.report.pictures import draw_pictures
from mae_hf.report.results import f1_of_classes, scores_on_test


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
    few = comparison.few_validation_images() if comparison.has_choice else None
    for warning in [*changed, few] if few else changed:
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
    """Return the table for a terminal, a line per run; `*` marks the runs that the answer is about."""
    titles = ("accuracy", "macro-F1", "loss", "best val", "at epoch", "epochs to scratch best")
    rows = [("run", "started from", *titles)]
    for row in comparison.table():
        accuracy, f1, best = (
            f"{100 * row[key]:.2f}" for key in ("test_accuracy", "test_f1", "best_validation_accuracy")
        )
        reached = row["epochs_to_scratch_best"]
        epochs = (f"{row['best_epoch']:g}", "not reached" if reached is None else f"{reached:g}")
        name = f"{'* ' if row['chosen'] else ''}{row['run']}"
        rows.append((name, row["init"], accuracy, f1, f"{row['test_loss']:.3f}", best, *epochs))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
