"""What a picture of the report is, and what the arms are called in all of them."""

import dataclasses
from pathlib import Path

from mae_hf.comparison import Comparison
from mae_hf.runs import Run

PRETRAINED, SCRATCH = "MAE pre-trained", "from scratch"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Args:
        path: its PNG file.
        heading: above it.
        caption: what it shows and how to read it; also its text for those who cannot see it.
    """

    path: Path
    heading: str
    caption: str


def arms(comparison: Comparison) -> dict[str, Run]:
    """The run that speaks for each arm, by the arm's name."""
    return {PRETRAINED: comparison.pretrained[0], SCRATCH: comparison.scratch[0]}
