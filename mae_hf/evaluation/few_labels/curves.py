"""The picture of a few-label protocol: accuracy against the number of labels, or by fold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

TITLES = {"knn": "kNN on frozen features", "linear": "linear probe on frozen features", "finetune": "fine-tuning"}
# Okabe and Ito's colours; in grey, arms differ by marker and poolings by line and filling.
_ARMS = {"model": ("pre-trained", "#0072B2", "o"), "scratch": ("random start", "#D55E00", "s")}
_POOLINGS = {"cls": (", CLS", "-", True), "mean": (", mean", "--", False), None: ("", "-", True)}


def few_labels_figure(rows: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]], title: str) -> Figure:
    """Return test accuracy by method: mean and standard deviation over label sets, and every single set.

    Args:
        rows: the summary of `lines`; with budgets, a `fraction` in each, else one group of folds.
        lines: the measurements.
        title: what the label sets are, and whether they are official.
    """
    methods = [method for method in TITLES if any(row["method"] == method for row in rows)]
    figure = Figure(figsize=(max(6.4, 4.4 * len(methods)), 4.6), layout="constrained")
    panels = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    is_folds = all(row["fraction"] is None for row in rows)
    for panel, method in zip(panels, methods, strict=True):
        of_method = [row for row in rows if row["method"] == method]
        arms = sorted({(row["arm"], row["pooling"]) for row in of_method}, key=str)
        looks = [_look(*arm) for arm in arms]
        for position, (arm, look) in enumerate(zip(arms, looks, strict=True)):
            group = [row for row in of_method if (row["arm"], row["pooling"]) == arm]
            means, places = [100 * row["accuracy_mean"] for row in group], [row["num_labels"] for row in group]
            if is_folds:
                singles = [line for line in lines if (line["method"], line["arm"], line["pooling"]) == (method, *arm)]
                _draw_folds(panel, position, means[0], [100 * line["accuracy"] for line in singles], look)
                places = [position]
            panel.errorbar(places, means, [100 * (row["accuracy_sd"] or 0.0) for row in group], capsize=4, **look)
        if is_folds:
            panel.set_xticks(range(len(arms)), [look["label"].replace(", ", "\n") for look in looks], fontsize=9)
            panel.set_xlim(-0.6, len(arms) - 0.4)
            panel.set_xlabel("small: single folds")
        else:
            _label_budgets(panel, of_method)
        panel.set_title(TITLES[method], fontsize=10)
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy (%), mean ± standard deviation")
    if not is_folds:
        legends = [panel.get_legend_handles_labels() for panel in panels]
        handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(title, fontsize=11, wrap=True)
    return figure


def _look(arm: str, pooling: str | None) -> dict[str, Any]:
    """Return how matplotlib draws and names an arm with a pooling."""
    name, color, marker = _ARMS[arm]
    suffix, linestyle, is_filled = _POOLINGS[pooling]
    look = {"color": color, "marker": marker, "linestyle": linestyle, "label": name + suffix}
    return look | {"markerfacecolor": color if is_filled else "white"}


def _draw_folds(panel: Axes, position: int, mean: float, folds: Sequence[float], look: dict[str, Any]) -> None:
    """Draw the accuracy of each fold to the right of the mean, which is written to its left."""
    spread = position + 0.25 + 0.02 * np.arange(len(folds)) / max(1, len(folds) / 5)
    panel.plot(spread, folds, look["marker"], markersize=3, color=look["color"], alpha=0.6)
    offset: dict[str, Any] = {"xytext": (-7, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    panel.annotate(f"{mean:.1f}", (position, mean), fontsize=8, **offset)


def _label_budgets(panel: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Draw a tick at each budget: the number of labels, and their share of all labels."""
    parts: dict[float, dict[str, None]] = {}  # 1 and 5 % of few images can be the same number
    for row in rows:
        parts.setdefault(row["num_labels"], {})[f"{100 * row['fraction']:g}"] = None
    ticks = {n: f"{n:.0f}\n{', '.join(of_n)} %" for n, of_n in parts.items()}
    panel.set_xscale("log")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
    panel.set_xlabel("labels (number and part; log scale)")
