"""Sheets of pictures: reconstructions, mistakes, attention.

Shapes: n images, H W their sides, N = (H / P)² patches of P x P pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from mae_hf.figures import COLUMN, PAGE, for_paper, label_of, new_figure

Images = NDArray[np.uint8]  # (n, H, W, 3)
_GREY = 127
_ACROSS = 3  # mistakes beside each other
_SIDE = 0.93  # of a picture in a grid, as a share of its cell's width
_COLOURS = (*(f"C{number}" for number in range(7)), "black", "C8", "C9")  # of classes; C7 is grey, as no class is
_THUMBNAIL = 0.04  # side of a small picture, as a share of the map's


def hide_patches(images: Any, mask: Any, patch_size: int) -> Images:
    """Return a copy of images, arrays or CPU tensors of uint8 (n, H, W, 3), with masked patches in grey.

    The mask, (n, N), is 1 where a patch is masked, in rows from the top left, as ViTMAE returns it.
    """
    images, mask = np.array(images), np.asarray(mask)
    n, height, width, _ = images.shape
    grid = mask.reshape(n, height // patch_size, width // patch_size)
    hidden = grid.repeat(patch_size, axis=1).repeat(patch_size, axis=2) > 0
    images[hidden] = _GREY
    return images


@for_paper
def reconstruction_figure(original: Images, masked: Images, reconstructed: Images, title: str) -> Figure:
    """Return three rows of pictures: originals, images with masked patches in grey, and reconstructions."""
    rows = {"original": original, "masked": masked, "reconstruction": reconstructed}
    side = min(0.8, (PAGE - 0.2) / len(original))
    figure = Figure(figsize=(max(3.6, side * len(original) + 0.2), 3 * max(side, 0.75) + 0.4), layout="constrained")
    for panel, (name, images) in zip(figure.subplots(3, 1), rows.items(), strict=True):
        _show(panel, _strip(images))
        panel.set_ylabel(name)
    figure.suptitle(title)
    return figure


@for_paper
def over_time_figure(original: Images, masked: Images, reconstructed: Mapping[int, Images], title: str) -> Figure:
    """Return a row for each image: the original, the masked image, and its reconstructions by the step of training."""
    columns = {"original": original, "masked": masked}
    columns |= {f"step {step:,}": images for step, images in reconstructed.items()}
    side = (PAGE - 0.2) / 8  # with the most steps
    figure = Figure(figsize=(max(3.6, side * len(columns)), side * len(original) + 0.5), layout="compressed")
    for panel, (name, images) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        _show(panel, _strip(images.swapaxes(1, 2)).swapaxes(0, 1))
        panel.set_title(name)
    figure.suptitle(title)
    return figure


@for_paper
def mistakes_figure(mistakes: Mapping[str, tuple[Images, Sequence[str]]]) -> Figure:
    """Return misclassified images, a panel for each arm, with a text of up to four lines below each image.

    The number of images n may differ between the arms, and may be 0.
    """
    num_rows = max(1, *(-(-len(images) // _ACROSS) for images, _ in mistakes.values()))
    width = PAGE if len(mistakes) > 1 else PAGE / 2
    figure, panels = new_figure(len(mistakes), 1.55 * num_rows + 0.4, width=width)
    for panel, (arm, (images, texts)) in zip(panels, mistakes.items(), strict=True):
        rows = [slice(start, start + _ACROSS) for start in range(0, len(images), _ACROSS)]
        of_rows = [images[row] for row in rows], [texts[row] for row in rows]
        _show_grid(panel, *of_rows, (num_rows, _ACROSS), below=0.44)
        panel.set_title(arm if len(images) else f"{arm}: no mistakes")
    return figure


@for_paper
def neighbours_figure(images: NDArray[np.uint8], texts: Sequence[Sequence[str]], title: str) -> Figure:
    """Return a row for each of Q queries: the query in a frame, then its K neighbours, with a text below each image.

    The images are uint8 (Q, 1 + K, H, W, 3).
    """
    num_rows, num_columns = images.shape[:2]
    figure = Figure(figsize=(max(3.8, 1.2 * num_columns + 0.3), 1.5 * num_rows + 0.6), layout="compressed")
    panel = figure.subplots()
    cell_height = _show_grid(panel, images, texts, (num_rows, num_columns), below=0.25)
    for row in range(num_rows):
        panel.add_patch(Rectangle((0, row * cell_height), _SIDE, _SIDE, fill=False, edgecolor="#D55E00", linewidth=2))
    panel.set_xticks([_SIDE / 2, 1 + _SIDE / 2][:num_columns], ["query", "nearest first"][:num_columns])
    panel.set_title(title, pad=9)
    return figure


@for_paper
def thumbnails_figure(
    maps: Mapping[str, NDArray[Any]], images: Images, labels: NDArray[np.int64], class_names: Sequence[str]
) -> Figure:
    """Return t-SNE maps, (n, 2), with a picture of each image that covers no other picture; the other images are dots.

    Up to ten classes have colours; a label of -1 has none.
    """
    has_colours = 0 < len(class_names) <= len(_COLOURS)
    colours = [_COLOURS[label] if has_colours and label >= 0 else "0.7" for label in labels]
    figure, panels = new_figure(len(maps), PAGE + 0.4 / len(maps), across=1, width=PAGE)
    for panel, (name, points) in zip(panels, maps.items(), strict=True):
        points = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
        panel.scatter(points[:, 0], points[:, 1], c=colours, s=5, linewidths=0)
        shown = list[int]()
        for index, point in enumerate(points):
            if shown and np.abs(points[shown] - point).max(axis=1).min() <= 1.08 * _THUMBNAIL:
                continue
            shown.append(index)
            (left, right), (low, high) = ((value - _THUMBNAIL / 2, value + _THUMBNAIL / 2) for value in point)
            panel.imshow(images[index], extent=(left, right, low, high), interpolation="antialiased", zorder=2)
            frame = Rectangle((left, low), _THUMBNAIL, _THUMBNAIL, fill=False, edgecolor=colours[index], linewidth=1.2)
            panel.add_patch(frame).set_zorder(3)
        panel.set(title=name, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[], yticks=[], aspect="equal")
        panel.set(xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
    if has_colours:
        names = zip(_COLOURS, map(label_of, class_names), strict=False)
        handles = [Patch(color=colour, label=name) for colour, name in names]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    return figure


@for_paper
def attention_figure(rows: Sequence[tuple[str, Sequence[NDArray[Any]]]], columns: Sequence[str]) -> Figure:
    """Return rows of images, uint8 (H, W, 3), and heat maps of their patches, float (H / P, W / P), all on one scale.

    The heat maps are attention in multiples of an even spread. A row may be shorter than there are columns.
    """
    width = COLUMN if len(columns) <= 4 else PAGE
    height = (width - 0.3) / len(columns) * len(rows) + 0.9
    figure = Figure(figsize=(width, height), layout="compressed")
    names, of_rows = zip(*rows, strict=True)
    values = np.concatenate([shown.ravel() for row in of_rows for shown in row if shown.ndim == 2])
    # without a percentile, a few patches with most of the attention would leave the others black
    most = max(1.0, float(np.percentile(values, 99)))
    panel = figure.subplots()
    _show_grid(panel, of_rows, (), (len(rows), len(columns)), cmap="inferno", vmin=0, vmax=most)
    panel.set_xticks(np.arange(len(columns)) + _SIDE / 2, columns)
    panel.set_yticks(np.arange(len(rows)) + _SIDE / 2, names, rotation="vertical", va="center")
    bar = figure.colorbar(panel.images[-1], location="bottom", extend="max", fraction=0.05, aspect=40)
    bar.set_label("attention of the CLS token (1 = spread evenly)")
    return figure


def _strip(images: Images) -> Images:
    """Return the images beside each other with white gaps, uint8 (H, ..., 3)."""
    gap = max(1, images.shape[2] // 16)
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-gap]


def _show(panel: Axes, image: Images) -> None:
    panel.imshow(image, interpolation="nearest")
    _hide_frame(panel)


def _show_grid(
    panel: Axes, rows: Iterable[Any], texts: Iterable[Any], shape: tuple[int, int], below: float = 0.0, **shading: Any
) -> float:
    """Show rows of square pictures with texts below them, in a grid of `shape`: rows, columns.

    A cell is 1 wide, and leaves room below its picture, as a share of its width. One panel is two to three times as
    fast as a panel for each picture. Returns the cell's height.
    """
    height = 1 + below
    for number, pictures in enumerate(rows):
        top = number * height
        for left, picture in enumerate(pictures):
            extent = (left, left + _SIDE, top + _SIDE, top)
            panel.imshow(picture, extent=extent, interpolation="nearest", **shading)
    for number, of_row in enumerate(texts):
        for left, text in enumerate(of_row):
            x, y = left + _SIDE / 2, number * height + _SIDE + 0.04
            panel.text(x, y, text, linespacing=1.15, ha="center", va="top")
    panel.set(xlim=(-0.02, shape[1]), ylim=(shape[0] * height, -0.02), aspect="equal")
    panel.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    _hide_frame(panel)
    return height


def _hide_frame(panel: Axes) -> None:
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
