"""Sheets of pictures: reconstructions, mistakes, attention.

Shapes: n images, H W their sides, N = (H / P)² patches of P x P pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # (n, H, W, 3)
_GREY = 127
_ACROSS = 3  # mistakes beside each other


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


def reconstruction_figure(original: Images, masked: Images, reconstructed: Images, title: str) -> Figure:
    """Return three rows of pictures: originals, images with masked patches in grey, and reconstructions."""
    rows = {"original": original, "masked": masked, "reconstruction": reconstructed}
    figure = Figure(figsize=(max(4.5, 1.2 * len(original) + 0.5), 4.2), layout="constrained")
    for panel, (name, images) in zip(figure.subplots(3, 1), rows.items(), strict=True):
        _show(panel, _strip(images))
        panel.set_ylabel(name, fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure


def over_time_figure(original: Images, masked: Images, reconstructed: Mapping[int, Images], title: str) -> Figure:
    """Return a row for each image: the original, the masked image, and its reconstructions by the step of training."""
    columns = {"original": original, "masked": masked}
    columns |= {f"step {step:,}": images for step, images in reconstructed.items()}
    figure = Figure(figsize=(max(6.5, 1.15 * len(columns)), 1.15 * len(original) + 0.9), layout="compressed")
    for panel, (name, images) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        _show(panel, _strip(images.swapaxes(1, 2)).swapaxes(0, 1))
        panel.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def mistakes_figure(mistakes: Mapping[str, tuple[Images, Sequence[str]]], title: str) -> Figure:
    """Return misclassified images, a block for each arm, with a text of up to four lines below each image.

    The number of images n may differ between the arms, and may be 0.
    """
    num_rows = max(1, *(-(-len(images) // _ACROSS) for images, _ in mistakes.values()))
    across = min(2, len(mistakes))
    down = -(-len(mistakes) // across)
    size = (_ACROSS * 1.5 * across + 0.4, (1.9 * num_rows + 0.8) * down + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    blocks = figure.subfigures(down, across, wspace=0.06, squeeze=False).ravel()
    for block, (arm, (images, texts)) in zip(blocks, mistakes.items(), strict=False):
        panels = block.subplots(num_rows, _ACROSS, squeeze=False).ravel()
        for panel, image, text in zip(panels, images, texts, strict=False):
            _show(panel, image)
            panel.set_xlabel(text, fontsize=7, linespacing=1.15)
        for panel in panels[len(images) :]:
            panel.set_axis_off()
        block.suptitle(arm if len(images) else f"{arm}: no mistakes", fontsize=11)
    figure.suptitle(title, fontsize=12)
    return figure


def attention_figure(rows: Sequence[tuple[str, Images]], maps: Mapping[str, NDArray[Any]], title: str) -> Figure:
    """Return rows with an image, uint8 (H, W, 3), beside heat maps of its patches, all on one scale.

    A column has a map for each row, float (len(rows), H / P, W / P): attention in multiples of an even spread.
    """
    side = 1.5 if len(maps) <= 6 else 1.0  # inches
    figure = Figure(figsize=(side * (1 + len(maps)) + 0.4, side * len(rows) + 1.6), layout="compressed")
    panels = figure.subplots(len(rows), 1 + len(maps), squeeze=False)
    # without a percentile, a few patches with most of the attention would leave the others black
    most = max(1.0, float(np.percentile(np.stack(list(maps.values())), 99)))
    for row, (name, image) in enumerate(rows):
        _show(panels[row, 0], image)
        panels[row, 0].set_ylabel(name, fontsize=8)
        for panel, heat in zip(panels[row, 1:], maps.values(), strict=True):
            shading = panel.imshow(heat[row], cmap="inferno", vmin=0, vmax=most, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
    for panel, column in zip(panels[0], ("image", *maps), strict=True):
        panel.set_title(column, fontsize=8)
    bar = figure.colorbar(shading, ax=panels, location="bottom", extend="max", fraction=0.05, aspect=40)
    bar.set_label("attention of the CLS token (1 = spread evenly)")
    figure.suptitle(title, fontsize=11)
    return figure


def _strip(images: Images) -> Images:
    """Return the images beside each other with white gaps, uint8 (H, ..., 3)."""
    gap = max(1, images.shape[2] // 16)
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-gap]


def _show(panel: Axes, image: Images) -> None:
    panel.imshow(image, interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
