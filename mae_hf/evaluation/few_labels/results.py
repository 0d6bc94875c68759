"""The results of a folder: a line and the predictions of each measurement, and their summary."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from mae_hf import figures
from mae_hf.data.dataset import ImageSet
from mae_hf.errors import require
from mae_hf.evaluation.probing import scores_of
from mae_hf.figures import charts
from mae_hf.files import write_json
from mae_hf.training.predictions import write_predictions

KEY = ("label_set", "arm", "method", "pooling")
SCORES = ("accuracy", "f1", "unseen_accuracy", "unseen_f1")  # the last two if it is known which images were seen
TITLES = {"knn": "kNN on frozen features", "linear": "linear probe on frozen features", "finetune": "fine-tuning"}
# Okabe and Ito's colours; in grey, arms differ by marker and poolings by line and filling.
_ARMS = {"model": ("pre-trained", "#0072B2", "o"), "scratch": ("random start", "#D55E00", "s")}
_POOLINGS = {"cls": (", CLS", "-", True), "mean": (", mean", "--", False), "": ("", "-", True)}


class Measurements:
    """The lines of results.jsonl and the files in predictions/, in one folder.

    A line belongs to one label set, arm, method and pooling. A last line that a killed run left incomplete is dropped.
    `seen` is bool (n,), whether pre-training has seen each of the n test images; None if that is unknown. All lines are
    of the same `inputs`, by name: the model, the images and the precision. ConfigError names changed inputs.
    """

    def __init__(self, folder: Path, test: ImageSet, seen: NDArray[np.bool_] | None, inputs: dict[str, Any]) -> None:
        file = folder / "inputs.json"
        before = json.loads(file.read_text()) if file.exists() else inputs
        changed = [f"{key}: {before.get(key)} -> {value}" for key, value in inputs.items() if before.get(key) != value]
        problem = f"{folder} holds results of other inputs ({'; '.join(changed)})"
        require(not changed, f"{problem}: choose another --output_dir")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, inputs)
        self._folder, self._path, self._test, self._seen = folder, folder / "results.jsonl", test, seen
        text = self._path.read_text() if self._path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._path.write_text(whole)
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def has(self, line: dict[str, Any]) -> bool:
        """Return whether this was measured."""
        return any(all(known[key] == line[key] for key in KEY) for known in self.lines)

    def add(self, line: dict[str, Any], probabilities: NDArray[np.floating]) -> None:
        """Write the predictions of a measurement, float (n, C), then its line, to which the scores are added."""
        name = "-".join(str(line[key]) for key in KEY if line[key] is not None)
        write_predictions(self._folder / "predictions" / f"{name}.parquet", self._test, probabilities, self._seen)
        self.lines.append(line | scores_of(probabilities, self._test.labels, self._test.class_names, self._seen))
        with self._path.open("a") as file:  # to which another command may add, too
            file.write(json.dumps(self.lines[-1]) + "\n")


def write_summary(folder: Path, lines: Sequence[dict[str, Any]], about: dict[str, Any], form: str = "png") -> str:
    """Write summary.json, with `about` besides the results, and few_labels.png or .svg; return the table to print."""
    rows = summarize(lines)
    write_json(folder / "summary.json", {**about, "results": rows})
    figures.save(few_labels_figure(rows, lines, about["protocol"]), folder / f"few_labels.{form}")
    return f"{summary_text(rows)}\nmean ± standard deviation over the label sets, in per cent; {about['protocol']}"


def summarize(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over the label sets of each budget (or all folds), arm, method and pooling.

    A row has `n` label sets, `num_labels` (mean), and for each of `SCORES` that all lines have `NAME_mean` and
    `NAME_sd`, the sample standard deviation, None for a single set. Folds have the `fraction` None.
    """
    table = pd.DataFrame(lines)
    names = [name for name in SCORES if name in table and table[name].notna().all()]
    means = {f"{name}_mean": (name, "mean") for name in names}
    deviations = {f"{name}_sd": (name, "std") for name in names}
    groups = table.groupby(["fraction", *KEY[1:]], dropna=False)
    rows = groups.agg(n=("num_labels", "size"), num_labels=("num_labels", "mean"), **means, **deviations).reset_index()
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def summary_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the summary for the console, in per cent."""
    names = {"accuracy": "accuracy", "f1": "macro-F1"}
    if any(row.get("unseen_accuracy_mean", row["accuracy_mean"]) != row["accuracy_mean"] for row in rows):
        names["unseen_accuracy"] = "acc. unseen"
    table = [
        {
            "labels": f"{row['num_labels']:.0f}",
            "part": "fold" if row["fraction"] is None else f"{100 * row['fraction']:g} %",
            **{key: row[key] or "-" for key in ("arm", "method", "pooling")},
            **{title: _percent(row[f"{name}_mean"], row[f"{name}_sd"]) for name, title in names.items()},
            "sets": row["n"],
        }
        for row in rows
    ]
    return pd.DataFrame(table).to_string(index=False)


def _percent(mean: float, sd: float | None) -> str:
    return f"{100 * mean:.2f}" + (f" ± {100 * sd:.2f}" if sd is not None else "")


@figures.for_paper
def few_labels_figure(rows: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]], title: str) -> Figure:
    """Return test accuracy, mean and standard deviation over label sets: of folds, each a point, or by budget."""
    if rows[0]["fraction"] is not None:
        summary = pd.DataFrame(rows).astype({"accuracy_sd": float})
        return _budgets_figure(summary.fillna({"pooling": "", "accuracy_sd": 0.0}), title)
    folds = {}
    singles = pd.DataFrame(lines).fillna({"pooling": ""}).groupby(["arm", "method", "pooling"])["accuracy"]
    for (arm, method, pooling), values in singles:
        ends = values.mean() + np.array([-1, 1]) * (values.std() if len(values) > 1 else 0)
        folds[f"{method}, {_look(arm, pooling)['label']}"] = values.tolist(), ends
    figure = charts.intervals_figure(folds)
    figure.suptitle(f"{title}\npoints: folds; bar and line: mean ± standard deviation", wrap=True)
    figure.set_figheight(figure.get_figheight() + 0.6)
    return figure


def _budgets_figure(summary: pd.DataFrame, title: str) -> Figure:
    methods = [method for method in TITLES if (summary["method"] == method).any()]
    figure = Figure(figsize=(max(figures.COLUMN, 2.3 * len(methods)), 3.0), layout="constrained")
    panels = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    for panel, method in zip(panels, methods, strict=True):
        of_method = summary[summary["method"] == method]
        for (arm, pooling), group in of_method.groupby(["arm", "pooling"]):
            means, deviations = 100 * group["accuracy_mean"], 100 * group["accuracy_sd"]
            panel.errorbar(group["num_labels"], means, deviations, capsize=4, **_look(arm, pooling))
        parts = of_method.groupby("num_labels")["fraction"].unique()  # 1 and 5 % of few images can be the same number
        ticks = {n: f"{n:.0f}\n{', '.join(f'{100 * part:g}' for part in of_n)} %" for n, of_n in parts.items()}
        panel.set(xscale="log", xlabel="labels (number and part; log scale)")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(list(ticks), list(ticks.values()))
        panel.set_title(TITLES[method])
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy (%), mean ± sd")
    legends = [panel.get_legend_handles_labels() for panel in panels]
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title, wrap=True)
    return figure


def _look(arm: str, pooling: str) -> dict[str, Any]:
    (name, color, marker), (suffix, linestyle, is_filled) = _ARMS[arm], _POOLINGS[pooling]
    look = {"color": color, "marker": marker, "linestyle": linestyle, "label": name + suffix}
    return look | {"markerfacecolor": color if is_filled else "white"}
