"""The report as one HTML page. `report.html` holds its text, style and script; everything here is its data."""

import base64
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2

from mae_hf.report import background, tables
from mae_hf.report.comparison import Comparison
from mae_hf.report.pictures import Pictures
from mae_hf.training.provenance import find_provenances


def page(comparison: Comparison, drawn: Pictures, notes: Sequence[str], output_dir: str) -> str:
    """Return the whole report, with pictures, style and script inside, so that it requests nothing.

    The template escapes every text that it inserts.

    Args:
        comparison: the runs and their results.
        drawn: its pictures.
        notes: what a reader must know to judge the numbers.
        output_dir: where the report goes, as the command names it.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"pieces": _pieces, "base64": _base64}
    environment.tests["nan"] = math.isnan
    template = environment.from_string(files("mae_hf.report").joinpath("report.html").read_text(encoding="utf-8"))
    origins = find_provenances([run.config.model.init for run in comparison.runs if not run.from_scratch])
    differing, settings = background.recipe_tables(comparison)
    machines, versions = background.environment_table(comparison, origins)
    return template.render(
        comparison=comparison,
        drawn=drawn,
        notes=notes,
        tables=tables,
        data=background.data_table(comparison, origins),
        leakage_notes=background.leakage_notes(comparison, origins),
        leakage=background.leakage_tables(origins),
        differing=differing,
        settings=settings,
        machines=machines,
        versions=versions,
        commands=background.commands(comparison, origins, output_dir),
    )


def _base64(path: Path) -> str:
    """The content of a file."""
    return base64.b64encode(path.read_bytes()).decode()


def _pieces(text: str) -> list[str]:
    """The text, cut where a long path or name may break into the next line."""
    return re.split(r"(?<=[/._])(?=[^\W\d])", text)
