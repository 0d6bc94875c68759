"""What a picture of the report is, and whose pictures are drawn."""

import dataclasses
from pathlib import Path

from mae_hf.report.results import scores_on_test
from mae_hf.training.finished_runs import Run


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the report."""

    path: Path  # its PNG file
    heading: str  # above it
    caption: str  # what it shows and how to read it; also its text for those who cannot see it


def panel_title(arm: str, run: Run) -> str:
    """Return the title of a panel that shows one run of an arm."""
    return f"{arm}\n{run.path.name}, {100 * scores_on_test(run)['accuracy']:.1f} % accuracy"
