"""The figures: `charts` draws numbers, `sheets` draws images, `save` writes a figure.

Every function returns a new `Figure`, without pyplot and its global state. All figures are readable in grey: what
differs in colour also differs in line style, marker, hatch or lightness. Their sizes fit a paper.
"""

import base64
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mae_hf.errors import clean
from mae_hf.files import write_file

COLUMN, PAGE = 3.3, 6.9  # inches: the width of a column, and of a page of two, in a paper
# Decorates functions that draw or save a figure: matplotlib reads the sizes of texts in both. A font of 7 points is
# readable if a paper shows the figure unscaled. The salt makes equal figures equal files.
for_paper = rc_context(
    {
        "font.size": 7,
        "axes.titlesize": "medium",
        "figure.titlesize": "medium",
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.2,
        "lines.markersize": 3,
        "hatch.linewidth": 0.5,
        "savefig.dpi": 300,
        "savefig.facecolor": "white",
        "svg.hashsalt": "mae_hf",
    }
)


def new_figure(num_panels: int, height: float, across: int = 2, width: float = COLUMN) -> tuple[Figure, NDArray[Any]]:
    """Return a figure and its panels, in rows of up to `across`, each `height` inches high."""
    across = min(across, num_panels)
    down = -(-num_panels // across)
    figure = Figure(figsize=(width, down * height), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for empty in panels[num_panels:]:
        empty.remove()
    return figure, panels[:num_panels]


@for_paper
def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as a PNG or SVG, by the ending of `path`, which is whole or missing, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    form = path.suffix.removeprefix(".").lower()
    metadata = {"Date": None} if form == "svg" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of names in a script that the font lacks
        write_file(path, lambda file: figure.savefig(file, format=form, metadata=metadata))
    return path


def data_url(path: Path) -> str:
    """Return a saved figure as the address of an image in a page."""
    kind = "svg+xml" if path.suffix.lower() == ".svg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


@for_paper
def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as pixels for a screen, uint8 (H, W, 3)."""
    figure.set_dpi(200)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def file_label(file: str, length: int = 24) -> str:
    """Return the end of a file's name, which tells files apart better than its start, as a label like `label_of`."""
    name = clean(file.rpartition("/")[2])
    return label_of(name if len(name) <= length else f"…{name[1 - length :]}", length)


def label_of(name: str, length: int = 24) -> str:
    """Return a class name as a label of up to `length` characters, which matplotlib neither hides nor reads as math."""
    name = name if len(name) <= length else f"{name[: length - 1].rstrip()}…"
    if name.startswith("_"):  # matplotlib leaves such labels out of legends
        name = f" {name}"
    return name.replace("$", r"\$")
