"""The figures: `charts` draws numbers, `sheets` draws images, `save` writes a figure.

Every function returns a new `Figure`, without pyplot and its global state. All figures are readable in grey: what
differs in colour also differs in line style, marker, hatch or lightness.
"""

import os
import warnings
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mae_hf.errors import clean
from mae_hf.files import write_file


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as a PNG, which is whole or missing, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of names in a script without letters here
        write_file(path, lambda file: figure.savefig(file, format="png", dpi=130, facecolor="white"))
    return path


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as pixels for a screen, uint8 (H, W, 3)."""
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
