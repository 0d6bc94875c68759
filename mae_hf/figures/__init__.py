"""The figures: `charts` draws numbers, `sheets` pictures, `pairs` those of an audit; `save` writes any of them.

Every function returns a `Figure` of its own, without pyplot and its global state. All are readable in grey: what
differs in colour differs in line style, marker, hatch or lightness as well.
"""

import os
from pathlib import Path

from matplotlib.figure import Figure

from mae_hf.files import write_file


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes `figure` as a PNG and returns its path; a reader never sees half of a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=130, facecolor="white"))
    return path


def label_of(name: str, length: int = 24) -> str:
    """A class name as a label: at most `length` characters, and nothing in it is read as mathematics or hidden."""
    name = name if len(name) <= length else f"{name[: length - 1].rstrip()}…"
    name = f" {name}" if name.startswith("_") else name  # matplotlib leaves such labels out of legends
    return name.replace("$", r"\$")
