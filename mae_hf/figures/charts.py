"""Charts of numbers: curves, confusion matrices, F1 per class, reliability and feature maps.

Shapes: n images, C classes, M bins of the confidence.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mae_hf.figures import COLUMN, PAGE, for_paper, label_of, new_figure

Arms = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]  # name -> runs -> lines of metrics.jsonl
# Okabe and Ito's palette, which colour-blind people can tell apart; one entry for each arm.
_ARM_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "v"},
    {"color": "#E69F00", "linestyle": (0, (8, 2)), "marker": "D"},
    {"color": "#56B4E9", "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "P"},
    {"color": "#000000", "linestyle": (0, (1, 3)), "marker": "X"},
    {"color": "#8C6D31", "linestyle": (0, (5, 4)), "marker": "*"},
)
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "ooo", "+++")
_MARKERS = "osv^D*PX<>"
_DOTS: dict[str, Any] = {"s": 5, "linewidths": 0.2, "edgecolors": "black", "alpha": 0.85}
_LETTER, _LINE = 0.052, 0.115  # inches that a letter takes, and a line of text
_ENOUGH: dict[str, Any] = {"facecolor": "#7FB3D9", "hatch": ""}
_TOO_FEW: dict[str, Any] = {"facecolor": "white", "hatch": "...."}
_FEW = 10  # images; the accuracy of a bin with fewer says little

# metrics.jsonl key -> axis label
FINETUNING = {
    "eval/accuracy": "validation accuracy (%)",
    "eval/f1": "validation macro-F1 (%)",
    "train/loss": "training loss (nats)",
    "eval/loss": "validation loss (nats)",
}
PRETRAINING = {"train/loss": "training loss", "eval/loss": "held-out loss"}


@for_paper
def curves_figure(
    arms: Arms, target: float | None = None, others: Arms | None = None, panels: Mapping[str, str] = FINETUNING
) -> Figure:
    """Return a panel against epochs for each of `panels` that any run has, by default accuracy, F1 and losses.

    The first run of each arm is drawn bold, the runs of `others` grey and dash-dotted. A dotted line marks the target,
    an accuracy in [0, 1].
    """
    present = [key for key in panels if any(key in line for runs in arms.values() for run in runs for line in run)]
    figure, axes = new_figure(len(present), 1.35)
    for panel, key in zip(axes, present, strict=True):
        _draw_curves(panel, arms, others or {}, key, factor=100 if "(%)" in panels[key] else 1)
        if key == "eval/accuracy" and target is not None:
            panel.axhline(100 * target, color="0.3", linestyle=":", label=f"scratch's best, {100 * target:.1f} %")
        panel.set(xlabel="epoch", ylabel=panels[key].replace(" ", "\n", 1))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    _legend_below(figure, *axes[0].get_legend_handles_labels())
    return figure


def _draw_curves(panel: Axes, arms: Arms, others: Arms, key: str, factor: float) -> None:
    grey = {"color": "0.5", "linestyle": "-.", "linewidth": 0.7, "markersize": 1.5, "zorder": 1}
    for runs_of, suffix, overrides in ((arms, "", {}), (others, ", other recipes", grey)):
        for style, (arm, runs) in zip(itertools.cycle(_ARM_STYLES), runs_of.items(), strict=False):
            for number, run in enumerate(runs):
                points = [(line["epoch"], factor * line[key]) for line in run if key in line]
                look = style | {"linewidth": 0.7, "markersize": 0, "alpha": 0.8, "markevery": max(1, len(points) // 12)}
                if number == 0:
                    look |= {"linewidth": 1.2, "markersize": 3, "alpha": 1.0, "label": label_of(arm, 40) + suffix}
                panel.plot(*zip(*points, strict=True) if points else ([], []), **look | overrides)


@for_paper
def confusion_figure(matrices: Mapping[str, Sequence[Sequence[int]]], class_names: Sequence[str]) -> Figure:
    """Return confusion matrices of counts, (C, C), shaded by the share of the row (the true class).

    Each has its own scale of shades. The counts are written into the cells if there is room.
    """
    num_classes, names = len(class_names), [label_of(name) for name in class_names]
    longest = _LETTER * max(map(len, names))  # inches of the labels at the left and below
    margin = longest + 0.95  # with axis labels and colour bar
    width = COLUMN if _LINE * num_classes + margin <= COLUMN else PAGE
    side = min(width - margin, max(1.2, 0.25 * num_classes))
    figure, panels = new_figure(len(matrices), side + longest + 0.6, across=1, width=width)
    figure.set_layout_engine("compressed")
    ticks = range(num_classes)[:: math.ceil(_LINE * num_classes / side)]
    labels = [names[tick] for tick in ticks]
    for panel, (name, counts) in zip(panels, matrices.items(), strict=True):
        matrix = np.asarray(counts)
        parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        shading = panel.imshow(parts, cmap="Blues", vmin=0, vmax=parts.max() or 1)
        if side / num_classes >= max(_LINE, _LETTER * len(str(matrix.max()))):
            for (row, column), count in np.ndenumerate(matrix):
                color = "white" if parts[row, column] > parts.max() / 2 else "0.15"
                panel.text(column, row, str(count) if count else "", ha="center", va="center", color=color)
        panel.set_xticks(ticks, labels, rotation=90)
        panel.set_yticks(ticks, labels)
        panel.set(title=name, xlabel="predicted class", ylabel="true class")
        figure.colorbar(shading, ax=panel, label="share of the true class")
    return figure


@for_paper
def bars_figure(f1_by_name: Mapping[str, Mapping[str, float]]) -> Figure:
    """Return a bar for each arm and class. F1 is in [0, 1], and NaN for a class without test images."""
    class_names = list(next(iter(f1_by_name.values())))
    height = max(0.28, 0.13 * len(f1_by_name))  # inches of a class
    figure, (panel,) = new_figure(1, height * len(class_names) + 0.4)
    width = 0.8 / len(f1_by_name)
    for number, (name, scores) in enumerate(f1_by_name.items()):
        percents = [100 * scores[class_name] for class_name in class_names]
        places = np.arange(len(class_names)) + (number - (len(f1_by_name) - 1) / 2) * width
        number %= len(_ARM_STYLES)
        look = {"color": _ARM_STYLES[number]["color"], "hatch": _HATCHES[number], "edgecolor": "white"}
        bars = panel.barh(places, np.nan_to_num(percents), width, label=label_of(name, 40), **look)
        labels = ["no test images" if math.isnan(percent) else f"{percent:.0f}" for percent in percents]
        panel.bar_label(bars, labels, padding=2)
    panel.set_yticks(range(len(class_names)), [label_of(name) for name in class_names])
    panel.set(xlabel="test F1 (%)", ylabel="class", xlim=(0, 110), xticks=range(0, 101, 20))
    panel.set_ylim(len(class_names) - 0.5, -0.5)  # the first class at the top
    panel.spines[["top", "right"]].set_visible(False)
    _legend_below(figure, *panel.get_legend_handles_labels())
    return figure


@for_paper
def intervals_figure(arms: Mapping[str, tuple[Sequence[float], tuple[float, float] | None]]) -> Figure:
    """Return a bar for each arm, the first at the top, with its interval and a point for each run or encoder.

    Accuracies are in [0, 1]. The bar ends at the mean. An interval is None if it is unknown.
    """
    figure, (panel,) = new_figure(1, 0.36 * len(arms) + 0.5)
    for row, (style, (values, interval)) in enumerate(zip(itertools.cycle(_ARM_STYLES), arms.values(), strict=False)):
        percents, text = 100 * np.asarray(values), f"{100 * np.mean(values):.1f}"
        panel.barh(row, percents.mean(), 0.7, color=style["color"], alpha=0.45)
        if len(percents) > 1:
            panel.plot(percents, np.full(len(percents), row - 0.2), style["marker"], color=style["color"])
        if interval is not None:
            low, high = 100 * np.asarray(interval)
            panel.plot((low, high), (row, row), "|-", color="black", linewidth=0.9, markersize=5)
            text += f"\n({low:.1f} to {high:.1f})"
        panel.annotate(text, (1.02, row), xycoords=("axes fraction", "data"), va="center")
    panel.set_yticks(range(len(arms)), [fill(label_of(name, 40), 22) for name in arms])
    panel.set(xlabel="test accuracy (%)", xlim=(0, 100), ylim=(len(arms) - 0.5, -0.5))
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


@for_paper
def reliability_figure(bins_by_name: Mapping[str, Sequence[NDArray[Any]]]) -> Figure:
    """Return accuracy against confidence, above a histogram of the confidence.

    Each panel shows counts, mean confidences and accuracies of M bins of equal width, each (M,), without empty bins.
    """
    across = min(2, len(bins_by_name))
    down = -(-len(bins_by_name) // across)
    figure = Figure(figsize=(COLUMN, 2.5 * down), layout="constrained")
    grid = figure.add_gridspec(2 * down, across, height_ratios=(2, 1) * down)
    most = max(int(counts.max()) for counts, _, _ in bins_by_name.values())
    for number, (name, (counts, confidence, accuracy)) in enumerate(bins_by_name.items()):
        row, column = divmod(number, across)
        upper = figure.add_subplot(grid[2 * row, column])
        lower = figure.add_subplot(grid[2 * row + 1, column], sharex=upper)
        width = 1 / len(counts)
        left = np.arange(len(counts)) * width
        for chosen, look in ((counts >= _FEW, _ENOUGH), ((counts > 0) & (counts < _FEW), _TOO_FEW)):
            upper.bar(left[chosen], accuracy[chosen], width, align="edge", edgecolor="0.2", linewidth=0.5, **look)
            lower.bar(left[chosen], counts[chosen], width, align="edge", edgecolor="0.2", linewidth=0.5, **look)
        upper.plot((0, 1), (0, 1), color="0.2", linestyle="--", linewidth=0.8)
        filled = counts > 0
        upper.plot(confidence[filled], accuracy[filled], "o", color="black", markersize=2)
        upper.set(title=name, ylabel="" if column else "accuracy", xlim=(0, 1), ylim=(0, 1.03))
        upper.tick_params(labelbottom=False)
        # 0.5 below, so that a bin with a single image shows on a logarithmic axis
        lower.set(xlabel="confidence", ylabel="" if column else "images", yscale="log", ylim=(0.5, 2 * most))
        lower.yaxis.set_major_formatter("{x:,.0f}")
    handles = [*(Patch(edgecolor="0.2", **look) for look in (_ENOUGH, _TOO_FEW)), *upper.lines]
    names = ["accuracy", f"accuracy of fewer than {_FEW} images", "perfect calibration", "at the bin's mean confidence"]
    _legend_below(figure, handles, names)
    return figure


@for_paper
def map_figure(
    maps: Mapping[str, NDArray[Any]], labels: NDArray[Any], class_names: Sequence[str], method: str
) -> Figure:
    """Return maps (n, 2) of the same n images, with a colour and a marker for each class.

    The axes are named after the method, such as `t-SNE`.
    """
    figure, panels = new_figure(len(maps), 1.95)
    for panel, (name, points) in zip(panels, maps.items(), strict=True):
        for index, class_name in enumerate(class_names):
            # After ten classes the colours begin again: shifted, so that no two classes share both.
            look = _DOTS | {"color": f"C{index % 10}", "marker": _MARKERS[(index + index // 10) % len(_MARKERS)]}
            panel.scatter(*points[labels == index].T, label=label_of(class_name), **look)
        panel.set(title=name, xlabel=f"{method} 1 (no unit)", ylabel=f"{method} 2 (no unit)", xticks=[], yticks=[])
    _legend_below(figure, *panels[0].get_legend_handles_labels())
    return figure


def _legend_below(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Add a legend below the panels, with as many columns as fit, and no name alone in its last row."""
    width = _LETTER * max(map(len, names), default=1) + 0.38  # inches of a name with its sign
    num_rows = math.ceil(len(names) / max(1, int(figure.get_figwidth() / width)))
    columns = math.ceil(len(names) / max(1, num_rows))
    spaces = {"columnspacing": 0.8, "handletextpad": 0.5, "handlelength": 1.8}
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, **spaces)
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.15 * num_rows)
