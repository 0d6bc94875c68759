"""The comparison as people read it: comparison.json, one self-contained index.html and a table of text."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

from mae_hf.config.commands import CompareFiguresConfig
from mae_hf.files import write_text
from mae_hf.report.comparison import Comparison
from mae_hf.report.networks import changed_encoders
from mae_hf.report.page import page
from mae_hf.report.pictures import draw_pictures
from mae_hf.report.recipes import f1_of_classes, scores_on_test


def write_report(comparison: Comparison, output_dir: str | Path, figures: CompareFiguresConfig | None = None) -> Path:
    """Draw and write everything into `output_dir`, `index.html` last, and return that page's path.

    What cannot be drawn, because images or the pre-training run are missing, is left out; the page and a warning say
    so.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_pictures(comparison, folder, figures)
    changed = changed_encoders(comparison.runs)
    few = comparison.few_validation_images() if comparison.has_choice else None
    for warning in [*changed, few] if few else changed:
        print(f"warning: {warning}", file=sys.stderr)
    notes = [*changed, *comparison.notes()]
    content = {
        "answer": comparison.answer(),
        "details": comparison.details(),
        "points": 100 * comparison.results.gain,
        "results": asdict(comparison.results),
        "runs": comparison.table(),
        "class_names": comparison.runs[0].class_names,
        "f1_per_class": {
            arm: {name: f1 for name, f1 in f1_of_classes(runs).items() if not math.isnan(f1)}
            for arm, runs in comparison.chosen.items()
        },
        "confusion_matrix": {name: scores_on_test(run)["confusion_matrix"] for name, run in comparison.best.items()},
        "calibration_error": drawn.calibration_error,
        "knn_accuracy": drawn.knn_accuracy,
        "notes": [*notes, *drawn.notes],
    }
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)  # JSON has no word for infinity
    write_text(folder / "comparison.json", json.dumps(content, indent=2) + "\n")
    write_text(folder / "index.html", page(comparison, drawn, notes, str(output_dir)))
    return folder / "index.html"


def text_table(comparison: Comparison) -> str:
    """Return the table for a terminal, a line per run; `*` marks the runs that the answer is about."""
    has_target = comparison.results.target is not None
    titles = ["arm"] * comparison.chooses_arm + ["run", "started from"]
    num_texts = len(titles)
    rows = [[*titles, "accuracy", "macro-F1", "loss", "best val", "at epoch", *["epochs to scratch best"] * has_target]]
    for row in comparison.table():
        percents = [f"{100 * row[key]:.2f}" for key in ("test_accuracy", "test_f1", "best_validation_accuracy")]
        reached = row["epochs_to_scratch_best"]
        epochs = "–" if reached is None else f"{reached:g}" if math.isfinite(reached) else "not reached"
        at_epoch = "–" if row["best_epoch"] is None else f"{row['best_epoch']:g}"
        texts = [row["arm"]] * comparison.chooses_arm + [row["run"], row["init"]]
        texts[0] = f"* {texts[0]}" if row["chosen"] else texts[0]
        numbers = [*percents[:2], f"{row['test_loss']:.3f}", percents[2], at_epoch, *[epochs] * has_target]
        rows.append([*texts, *numbers])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{'<' if number < num_texts else '>'}{width}}}" for number, width in enumerate(widths))
    head, *lines = (form.format(*row) for row in rows)
    return "\n".join([head, "-" * len(head), *lines])
