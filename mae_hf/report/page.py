"""The report: comparison.json, one self-contained HTML page, and a table of text.

`report.html` holds the text and tables of the page; everything here is their data.
"""

import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined

from mae_hf.config.commands import CompareFiguresConfig
from mae_hf.config.parse import command_line, to_flags
from mae_hf.evaluation.statistics import Interval, Spread
from mae_hf.figures import data_url
from mae_hf.files import write_json, write_text
from mae_hf.report.comparison import Comparison, spread_text
from mae_hf.report.networks import changed_encoders
from mae_hf.report.pictures import Pictures, draw_pictures
from mae_hf.report.recipes import Recipe, f1_of_classes, scores_on_test
from mae_hf.training.provenance import RunRecord


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
    for warning in filter(None, [*drawn.notes, *changed, few]):
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
    write_json(folder / "comparison.json", content)
    write_text(folder / "index.html", page(comparison, drawn, notes))
    return folder / "index.html"


def page(comparison: Comparison, drawn: Pictures, notes: Sequence[str]) -> str:
    """Return the whole report, with pictures, style and script inside, so that it requests nothing.

    The template escapes every text that it inserts. A reader needs the notes to judge the numbers.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.loader = PackageLoader("mae_hf.report", ".")
    environment.filters |= _FILTERS
    origins = [origin for origin in comparison.origins if origin.record != RunRecord()]
    records = {f"pre-training of {origin.init}": origin.record for origin in origins}
    records |= {str(run.path): run.record for run in comparison.runs}
    names = comparison.runs[0].class_names
    counts = np.bincount(comparison.runs[0].test.labels, minlength=len(names))
    settings = [dict(run.settings) for run in comparison.best.values()]  # an arm may not have one of another arm
    versions = {", ".join(f"{name} {version}" for name, version in it.versions.items()) for it in records.values()}
    return environment.get_template("report.html").render(
        comparison=comparison,
        arms=list(comparison.arms),
        drawn=drawn,
        notes=notes,
        num_test_images=dict(zip(names, counts.tolist(), strict=True)),
        recall=[_recall_of_classes(arm) for arm in comparison.chosen.values()],
        f1=[f1_of_classes(arm) for arm in comparison.chosen.values()],
        settings={key: [arm.get(key, Undefined()) for arm in settings] for of_one in settings for key in of_one},
        labelled_duplicates=_labelled_duplicates(comparison),
        records=records,
        versions=sorted(versions - {""}),
        commands=_commands(comparison, drawn),
    )


def text_table(comparison: Comparison) -> str:
    """Return the table for a terminal, a line per run; `*` marks the runs that the answer is about."""
    texts = ["arm"] * comparison.chooses_arm + ["run", "init"]
    forms: dict[str, tuple[Any, ...]] = {"test_accuracy": (".2f", 100), "test_f1": (".2f", 100), "test_loss": (".3f",)}
    forms |= {"best_validation_accuracy": (".2f", 100), "best_epoch": ("g",)}
    titles = [*texts[:-1], "started from", "accuracy", "macro-F1", "loss", "best val", "at epoch"]
    if comparison.results.target is not None:
        titles, forms = [*titles, "epochs to scratch best"], forms | {"epochs_to_scratch_best": ("g",)}
    rows = [titles]
    for row in comparison.table():
        cells = [row[key] for key in texts] + [_number(row[key], *form)[0] for key, form in forms.items()]
        rows.append([f"* {cells[0]}" if row["chosen"] else cells[0], *cells[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{'<' if number < len(texts) else '>'}{width}}}" for number, width in enumerate(widths))
    head, *lines = (form.format(*row) for row in rows)
    return "\n".join([head, "-" * len(head), *lines])


def _labelled_duplicates(comparison: Comparison) -> tuple[int, int] | None:
    """How many labelled training images duplicate how many test images; None where no audit has found any."""
    sources = comparison.runs[0].config.data.sources
    for audit in (origin.audit for origin in comparison.origins if origin.audit):
        pairs = [pair for pair in audit.pairs if pair.source == pair.against in sources]
        if own := [pair for pair in pairs if (pair.split, pair.against_split) == ("train", "test")]:
            return len({pair.row for pair in own}), len({pair.against_row for pair in own})
    return None


def _recall_of_classes(runs: Recipe) -> dict[str, float]:
    """The share of each class that is recognised, the mean over runs; NaN for a class without test images."""
    matrix = np.mean([scores_on_test(run)["confusion_matrix"] for run in runs], axis=0)
    with np.errstate(invalid="ignore"):
        return dict(zip(runs[0].class_names, np.diag(matrix) / matrix.sum(axis=1), strict=True))


def _commands(comparison: Comparison, drawn: Pictures) -> list[str]:
    """The command lines that made all of it, in their order."""
    lines = [_launch(origin.record) for origin in comparison.origins if origin.record.command]
    for path, record in {run.path: run.record for run in comparison.runs}.items():  # a folder may hold several probes
        lines.append(_launch(record) if record.command else f"# {path}: its command is unknown")
    paths = {name: list(dict.fromkeys(str(run.path) for run in runs)) for name, runs in comparison.arms.items()}
    if comparison.chooses_arm:
        arms = [word for name, of_arm in paths.items() for word in ("--arm", f"{name}={','.join(of_arm)}")]
    else:
        pretrained, scratch = paths.values()
        arms = ["--pretrained", *pretrained, "--scratch", *scratch]
    words = [*arms, *to_flags(drawn.settings), "--output_dir", str(drawn.folder)]
    return [*lines, command_line("compare", words)]


def _launch(record: RunRecord) -> str:
    """The command of a run, with the precision, processes and strategy that `accelerate launch` had."""
    words = ["accelerate", "launch"]
    if record.strategy == "FSDP":
        words += ["--config_file", "configs/accelerate/fsdp2.yaml"]
    elif record.strategy != "NO":
        words = [*(["ACCELERATE_USE_CPU=true"] if record.strategy == "MULTI_CPU" else []), *words, "--multi_gpu"]
    words += ["--mixed_precision", record.mixed_precision] if record.mixed_precision else []
    words += ["--num_processes", str(record.num_processes)] if record.num_processes else []
    where = f" # on each of {record.num_machines} machines, with --num_machines, --machine_rank and --main_process_ip"
    return f"{shlex.join(words)} {record.command}{where if record.num_machines > 1 else ''}"


def _number(value: float | None, form: str = ",", factor: float = 1) -> tuple[str, object]:
    """The text of a number, and the number to sort by. Only an epoch is infinite."""
    if value is None or math.isnan(value):
        return "–", ""
    return (f"{factor * value:{form}}", value) if math.isfinite(value) else ("not reached", "")


def _interval(value: Interval | Spread | None, form: str = ".1f", factor: float = 100) -> str:
    """The ends of an interval over images or over runs, by default in per cent, or why it has none."""
    if isinstance(value, Spread) and len(value.values) == 1:
        return "unknown: one number"
    if value is None or value.low is None:
        return "none: all alike" if value else "none: all images alike"
    return " to ".join(_number(end, form, factor)[0] for end in (value.low, value.high))


def _range_of_epochs(value: Spread | None) -> str:
    if value is None:
        return "–"
    reached = f", reached by {sum(map(math.isfinite, value.values))} of {len(value.values)}"
    return _interval(value, "g", 1) + (reached if value.high == math.inf else "")


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _minutes(record: RunRecord) -> str:
    """From the first start to the end; an interrupted run counts its pause."""
    try:
        seconds = (datetime.fromisoformat(str(record.end)) - datetime.fromisoformat(str(record.start))).total_seconds()
    except (TypeError, ValueError):
        return "unknown"
    return f"{seconds / 60:.1f}"


_FILTERS: dict[str, Callable[..., Any]] = {
    "data_url": data_url,
    "any_number": lambda texts: any(re.search(r"\d", text) for text in texts),
    "pieces": lambda text: re.split(r"(?<=[/._])(?=[^\W\d])", text),  # a long path or name may break between them
    "thousands": lambda number: "unknown" if number is None else f"{number:,}",
    "number": _number,
    "spread": lambda value, *form: spread_text(value, *form) if value else "–",
    "interval": _interval,
    "median_epoch": lambda value: _number(value and value.center, "g")[0],
    "kind": lambda run: f"probe {run.probe}" if run.probe else "fine-tuning",
    "shape": "{num_hidden_layers} x {hidden_size}, patches of {patch_size}, images of {image_size}".format_map,
    "seeds": lambda seeds: ", ".join(map(str, sorted(set(seeds)))) or "–",
    "square": lambda side: f"{side} x {side} pixels",
    "range_of_epochs": _range_of_epochs,
    "setting": _setting,
    "precision": lambda name: "fp32" if name == "no" else name or "unknown",
    "commit": lambda commit: re.sub("^(.{12})[0-9a-f]*", r"\1", commit or "unknown"),  # its -dirty, too
    "minutes": _minutes,
}
