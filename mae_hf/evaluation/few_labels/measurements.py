"""What was measured, line by line, with its predictions; a later run reads it and continues.

Shapes: n test images, C classes.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_hf import figures
from mae_hf.errors import require
from mae_hf.evaluation.few_labels.curves import few_labels_figure
from mae_hf.evaluation.metrics import unseen_metrics
from mae_hf.evaluation.probing import scores_of
from mae_hf.files import write_json
from mae_hf.training.predictions import write_predictions

KEY = ("label_set", "arm", "method", "pooling")
GROUP = ("fraction", "arm", "method", "pooling")
SCORES = ("accuracy", "f1", "unseen_accuracy", "unseen_f1")  # the last two if it is known which images were seen


@dataclass(eq=False)
class Measurements:
    """The measurements of a folder: lines of results.jsonl, and files in predictions/.

    A line belongs to one label set, arm, method and pooling. A last line that a killed run left incomplete is dropped.
    """

    folder: Path
    labels: NDArray[np.int64]  # (n,), the classes of the test images
    class_names: Sequence[str]  # the C classes
    seen: NDArray[np.bool_] | None  # (n,), whether pre-training has seen each test image; None if that is unknown
    lines: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self._path = self.folder / "results.jsonl"
        text = self._path.read_text() if self._path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._path.write_text(whole)
        self.lines = [json.loads(line) for line in whole.splitlines()]

    def has(self, label_set: str, arm: str, method: str, pooling: str | None) -> bool:
        """Return whether this was measured."""
        return any(tuple(line[key] for key in KEY) == (label_set, arm, method, pooling) for line in self.lines)

    def add(self, line: dict[str, Any], probabilities: NDArray[np.floating]) -> None:
        """Score a measurement on all test images and on the unseen ones, and write its predictions, then its line.

        Args:
            line: what is known about it, without scores.
            probabilities: (n, C), of the test images.
        """
        name = "-".join(str(line[key]) for key in KEY if line[key] is not None)
        write_predictions(self.folder / "predictions" / f"{name}.parquet", self.labels, probabilities, self.seen)
        unseen = unseen_metrics(probabilities, self.labels, self.class_names, self.seen)
        line = line | scores_of(probabilities, self.labels, self.class_names)
        line |= {f"unseen_{key}": unseen[f"test_unseen/{key}"] for key in ("accuracy", "f1") if len(unseen) > 1}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)


def check_inputs(path: Path, inputs: dict[str, Any]) -> None:
    """Check that all results of a folder come from one model, one set of images, one precision and one recipe.

    Args:
        path: the JSON file with the inputs of the folder; written if it is missing.
        inputs: what the results depend on, by name; a name that either side lacks is not compared.

    Raises:
        ConfigError: an input has changed; it is named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    changed = [f"{name}: {known[name]} -> {value}" for name, value in inputs.items() if known.get(name, value) != value]
    require(
        not changed,
        f"{path.parent} holds results of other inputs ({'; '.join(changed)}): choose another --output_dir",
    )
    write_json(path, known | inputs)


def write_summary(folder: Path, lines: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """Write summary.json and few_labels.png, and return the table for the console.

    Args:
        folder: where they go.
        lines: the measurements.
        about: what summary.json says besides `results`; its `protocol` is also the title of the picture.
    """
    rows = summarize(lines)
    write_json(folder / "summary.json", {**about, "results": rows})
    figures.save(few_labels_figure(rows, lines, about["protocol"]), folder / "few_labels.png")
    return f"{summary_text(rows)}\nmean ± standard deviation over the label sets, in per cent; {about['protocol']}"


def summarize(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over the label sets of each budget (or all folds), arm, method and pooling.

    Returns:
        A group a row, budgets ascending: `n` label sets, `num_labels` (mean), and for each of `SCORES` that is known
        `NAME_mean` and `NAME_sd`, the sample standard deviation, None for a single set.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in GROUP), []).append(line)
    rows = []
    for key, members in sorted(groups.items(), key=lambda item: (item[0][0] or 0.0, *map(str, item[0][1:]))):
        row = dict(zip(GROUP, key, strict=True))
        row |= {"n": len(members), "num_labels": statistics.fmean(member["num_labels"] for member in members)}
        for name in (name for name in SCORES if all(name in member for member in members)):
            values = [member[name] for member in members]
            row[f"{name}_mean"] = statistics.fmean(values)
            row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def summary_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the summary for the console, in per cent."""
    has_seen = any(row.get("unseen_accuracy_mean", row["accuracy_mean"]) != row["accuracy_mean"] for row in rows)
    names = {"accuracy": "accuracy", "f1": "macro-F1"} | ({"unseen_accuracy": "acc. unseen"} if has_seen else {})
    titles = " ".join(f"{title:>15}" for title in names.values())
    lines = [f"{'labels':>8} {'part':>6} {'arm':8} {'method':9} {'pooling':8} {titles}  sets"]
    for row in rows:
        scores = " ".join(f"{_percent(row[f'{name}_mean'], row[f'{name}_sd']):>15}" for name in names)
        part = "fold" if row["fraction"] is None else f"{100 * row['fraction']:g} %"
        lines.append(
            f"{row['num_labels']:8.0f} {part:>6} {row['arm']:8} {row['method']:9} {row['pooling'] or '-':8} "
            f"{scores}  {row['n']}"
        )
    return "\n".join(lines)


def _percent(mean: float, sd: float | None) -> str:
    return f"{100 * mean:.2f}" + (f" ± {100 * sd:.2f}" if sd is not None else "")
