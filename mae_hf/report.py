"""The comparison as people read it: comparison.json, one self-contained index.html and a table of text."""

import base64
import json
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from mae_hf.checkpoint import write_text
from mae_hf.comparison import Comparison
from mae_hf.config import require
from mae_hf.pictures import Pictures, arms, draw_pictures

_COLUMNS = {
    "run": "run",
    "init": "started from",
    "test_accuracy": "test accuracy (%)",
    "test_f1": "test macro-F1 (%)",
    "test_loss": "test loss",
    "best_validation_accuracy": "best validation accuracy (%)",
    "best_epoch": "best epoch",
    "epochs_to_scratch_best": "epochs to scratch's best validation",
    "seed": "seed",
    "num_parameters": "parameters",
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
    content = {
        "answer": comparison.answer(),
        "points": comparison.points,
        "runs": comparison.table(),
        "class_names": comparison.scratch[0].class_names,
        "f1_per_class": {name: run.scores["f1_per_class"] for name, run in arms(comparison).items()},
        "confusion_matrix": {name: run.scores["confusion_matrix"] for name, run in arms(comparison).items()},
        "trustworthiness": drawn.trustworthiness,
        "notes": drawn.notes,
    }
    write_text(folder / "comparison.json", json.dumps(content, indent=2) + "\n")
    write_text(folder / "index.html", page(comparison, drawn))
    return folder / "index.html"


def text_table(comparison: Comparison) -> str:
    """The table for a terminal, a line per run; `*` marks the runs that the answer is about."""
    short = ("run", "started from", "accuracy", "macro-F1", "loss", "best val", "at epoch", "epochs to scratch best")
    rows = [short] + [
        ("* " * row["chosen"] + row["run"], *(_cell(row, key) for key in list(_COLUMNS)[1 : len(short)]))
        for row in comparison.table()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(short))]
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
        return "not reached" if key == "epochs_to_scratch_best" else "unknown"
    if key in _PERCENT:
        return f"{100 * value:.2f}"
    if key == "num_parameters":
        return f"{value:,}"
    return f"{value:.3f}" if key == "test_loss" else f"{value:g}" if isinstance(value, float) else str(value)


def page(comparison: Comparison, drawn: Pictures) -> str:
    """The whole report as one HTML page: pictures inside, no scripts, no requests."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in _COLUMNS.values())
    body = "".join(
        f"<tr{' class=chosen' if row['chosen'] else ''}>"
        + "".join(f"<td>{escape(_cell(row, key))}</td>" for key in _COLUMNS)
        + "</tr>"
        for row in comparison.table()
    )
    sections = "".join(
        f"<section><h2>{escape(picture.heading)}</h2><figure>"
        f'<img alt="{escape(picture.caption)}" src="data:image/png;base64,{_base64(picture.path)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure></section>"
        for picture in drawn.pictures
    )
    commands = "".join(
        f"<li><code>{escape(str(run.record.get('command', run.path)))}</code></li>" for run in comparison.runs
    )
    template = Template(files("mae_hf").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        answer=escape(comparison.answer()),
        selection=escape(_selection_note(comparison)),
        head=head,
        body=body,
        sections=sections,
        notes="".join(f"<p>{escape(note)}</p>" for note in drawn.notes),
        commands=commands,
        versions=escape(", ".join(" ".join(item) for item in comparison.scratch[0].record.get("versions", {}).items())),
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _selection_note(comparison: Comparison) -> str:
    parts = []
    for name, arm in (("Pre-trained", comparison.pretrained), ("From scratch", comparison.scratch)):
        accuracies = [100 * run.scores["accuracy"] for run in arm]
        if len(arm) > 1:
            parts.append(
                f"{name}: of {len(arm)} runs, the one with the best validation accuracy speaks for all; their test "
                f"accuracies lie between {min(accuracies):.1f} and {max(accuracies):.1f} %, mean "
                f"{np.mean(accuracies):.1f} %."
            )
        else:
            parts.append(f"{name}: a single run, so its spread over seeds is unknown.")
    return " ".join(parts)
