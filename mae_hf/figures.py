"""The pictures: reconstructions, curves, confusion matrices, feature maps and F1 per class.

Every function returns a `Figure` of its own, without pyplot and its global state; `save` writes it. All are readable in
grey: arms differ in line style, marker or hatch as well as in colour.

Shapes: n images, H W their sides, N = (H / P)² patches of P x P pixels.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind people can tell apart; one entry for each arm.
_ARM_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
)
_HATCHES = ("", "///")
_MARKERS = "osv^D*PX<>"
_GREY = 127
_MAX_COUNTS = 20  # with more classes the counts in a confusion matrix are too small to read

# metrics.jsonl key -> axis label, factor
_PANELS = {
    "eval/accuracy": ("validation accuracy (%)", 100.0),
    "eval/f1": ("validation macro-F1 (%)", 100.0),
    "train/loss": ("training loss", 1.0),
    "eval/loss": ("validation loss", 1.0),
}


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes `figure` as a PNG and returns its path; a reader never sees half of a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(beside, format="png", dpi=130, facecolor="white")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def hide_patches(images: Any, mask: Any, patch_size: int) -> np.ndarray:
    """The images with their hidden patches in grey, for the middle row of `reconstruction_figure`.

    Args:
        images: uint8 (n, H, W, 3), array or CPU tensor.
        mask: (n, N), 1 = hidden, 0 = visible, patches in rows from the top left, as ViTMAE returns it.
        patch_size: side of a patch in pixels.

    Returns:
        uint8 (n, H, W, 3), a copy.
    """
    images, mask = np.array(images), np.asarray(mask)
    n, height, width, _ = images.shape
    grid = mask.reshape(n, height // patch_size, width // patch_size)
    hidden = grid.repeat(patch_size, axis=1).repeat(patch_size, axis=2) > 0
    images[hidden] = _GREY
    return images


def reconstruction_figure(original: np.ndarray, masked: np.ndarray, reconstructed: np.ndarray, title: str) -> Figure:
    """Three rows of pictures: the originals, what the encoder saw, and the reconstructions.

    Args:
        original: uint8 (n, H, W, 3).
        masked: uint8 (n, H, W, 3), hidden patches in grey.
        reconstructed: uint8 (n, H, W, 3).
        title: what was hidden and what the reconstructions hold, for example whether the visible patches were pasted.
    """
    rows = {"original": original, "masked": masked, "reconstruction": reconstructed}
    n, height, width, _ = original.shape
    figure = Figure(figsize=(max(4.5, 1.2 * n + 0.5), 4.2), layout="constrained")
    for place, (name, images) in zip(figure.subplots(3, 1), rows.items(), strict=True):
        gap = max(1, width // 16)
        strip = np.full((height, n * (width + gap) - gap, 3), 255, np.uint8)
        for column, image in enumerate(images):
            strip[:, column * (width + gap) : column * (width + gap) + width] = image
        place.imshow(strip, interpolation="nearest")
        place.set(xticks=[], yticks=[])
        place.set_ylabel(name, fontsize=10)
        place.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return figure


def curves_figure(
    arms: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    title: str,
    keys: Sequence[str] = tuple(_PANELS),
    target: float | None = None,
) -> Figure:
    """Curves against epochs, a panel for each key that any run has.

    Args:
        arms: up to two arms, name -> runs -> lines of metrics.jsonl. The first run of an arm is drawn bold, the
            others thin.
        title: above all panels.
        keys: keys of metrics.jsonl, a panel each.
        target: accuracy in [0, 1] at which a dotted line is drawn in the panel of `eval/accuracy`.

    Raises:
        ValueError: no run has any of the keys.
    """
    present = [key for key in keys if any(key in line for runs in arms.values() for run in runs for line in run)]
    if not present:
        raise ValueError(f"none of the runs has any of {', '.join(keys)}: there are no curves to draw")
    columns = min(2, len(present))
    num_rows = -(-len(present) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.2 * num_rows + 0.8), layout="constrained")
    panels = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for panel, key in zip(panels, present, strict=False):
        label, factor = _PANELS.get(key, (key, 1.0))
        _draw_curves(panel, arms, key, factor)
        if key == "eval/accuracy" and target is not None:
            panel.axhline(100 * target, color="0.3", linestyle=":", linewidth=1.2, label="best from scratch")
        panel.set(xlabel="epoch", ylabel=label)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(present) :]:  # the places that are left over when the keys are odd in number
        panel.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title, fontsize=12)
    return figure


def _draw_curves(
    panel: Axes, arms: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], key: str, factor: float
) -> None:
    for style, (arm, runs) in zip(_ARM_STYLES, arms.items(), strict=False):
        for number, run in enumerate(runs):
            points = [(line["epoch"], factor * line[key]) for line in run if key in line]
            first = number == 0
            panel.plot(
                *zip(*points, strict=True) if points else ([], []),
                **style,
                linewidth=1.8 if first else 0.8,
                alpha=1.0 if first else 0.6,
                markersize=4 if first else 0,
                markevery=max(1, len(points) // 12),
                label=arm if first else None,
            )


def confusion_figure(matrices: Mapping[str, Sequence[Sequence[int]]], class_names: Sequence[str], title: str) -> Figure:
    """Confusion matrices side by side: counts in the cells, shaded by their part of the row.

    Args:
        matrices: name -> counts, (num_classes, num_classes); row: true class, column: predicted.
        class_names: the name of each class.
        title: above all matrices.
    """
    num_classes = len(class_names)
    side = min(9.0, max(3.4, 0.46 * num_classes + 1.4))
    figure = Figure(figsize=(side * len(matrices) + 0.9, side + 0.5), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for panel, (name, counts) in zip(panels, matrices.items(), strict=True):
        matrix = np.asarray(counts)
        parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        shading = panel.imshow(parts, cmap="Blues", vmin=0, vmax=1)
        if num_classes <= _MAX_COUNTS:
            for (row, column), count in np.ndenumerate(matrix):
                color = "white" if parts[row, column] > 0.5 else "0.15"
                panel.text(column, row, str(count), ha="center", va="center", color=color, fontsize=7)
        panel.set_xticks(range(num_classes), class_names, rotation=90, fontsize=8)
        panel.set_yticks(range(num_classes), class_names, fontsize=8)
        panel.set_title(name, fontsize=10)
        panel.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(shading, ax=list(panels), label="part of the true class", shrink=0.8)
    figure.suptitle(title, fontsize=12)
    return figure


def embedding_figure(
    points_by_name: Mapping[str, np.ndarray],
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """Two-dimensional maps of the same images side by side, a colour and a marker for each class.

    Args:
        points_by_name: title of the map (with its trustworthiness) -> float (n, 2).
        labels: int (n,), classes of the images.
        class_names: the name of each class.
        title: above all maps.
    """
    figure = Figure(figsize=(5.2 * len(points_by_name), 5.9), layout="constrained")
    panels = figure.subplots(1, len(points_by_name), squeeze=False)[0]
    for panel, (name, points) in zip(panels, points_by_name.items(), strict=True):
        for index, class_name in enumerate(class_names):
            of_class = points[labels == index]
            panel.scatter(
                of_class[:, 0],
                of_class[:, 1],
                s=18,
                color=f"C{index % 10}",
                # After ten classes the colours begin again: shifted, so that no two classes share both.
                marker=_MARKERS[(index + index // 10) % len(_MARKERS)],
                linewidths=0.3,
                edgecolors="black",
                alpha=0.85,
                label=class_name,
            )
        panel.set_title(name, fontsize=10)
        panel.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5 * len(points_by_name), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12)
    return figure


def bars_figure(f1_by_name: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """F1 of each class, a bar for each arm.

    Args:
        f1_by_name: up to two arms, name -> class name -> F1 in [0, 1].
        title: above the bars.
    """
    class_names = list(next(iter(f1_by_name.values())))
    figure = Figure(figsize=(max(5.5, 0.85 * len(class_names) + 1.5), 3.8), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / len(f1_by_name)
    for number, (name, scores) in enumerate(f1_by_name.items()):
        bars = panel.bar(
            np.arange(len(class_names)) + (number - (len(f1_by_name) - 1) / 2) * width,
            [100 * scores[class_name] for class_name in class_names],
            width,
            color=_ARM_STYLES[number]["color"],
            hatch=_HATCHES[number],
            edgecolor="white",
            label=name,
        )
        panel.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
    panel.set_xticks(range(len(class_names)), class_names, rotation=30 if len(class_names) <= 12 else 90)
    panel.set(ylabel="test F1 (%)", xlabel="class", ylim=(0, 108), yticks=range(0, 101, 20))
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(f1_by_name), frameon=False)
    figure.suptitle(title, fontsize=12)
    return figure
