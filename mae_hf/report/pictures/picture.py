"""What the pictures of a report are."""

from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from mae_hf import figures
from mae_hf.report.results import scores_on_test
from mae_hf.training.finished_runs import Run


@dataclass(frozen=True)
class Picture:
    """A picture of the report."""

    path: Path  # its PNG file
    heading: str  # above it
    caption: str  # what it shows and how to read it; also its text for those who cannot see it


@dataclass(frozen=True)
class Pictures:
    """The pictures of a comparison, in the order of the report."""

    folder: Path  # of their files
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be drawn, and why
    trustworthiness: dict[str, float] = field(default_factory=dict)  # of the t-SNE maps that were drawn, by network
    calibration_error: dict[str, float] = field(default_factory=dict)  # expected error on test images, 0 to 1, by arm

    def add(self, figure: Figure, name: str, heading: str, caption: str) -> None:
        """Save a figure as the next picture."""
        self.pictures.append(Picture(figures.save(figure, self.folder / f"{name}.png"), heading, caption))


def panel_title(arm: str, run: Run) -> str:
    """Return the title of a panel that shows one run of an arm."""
    return f"{arm}\n{run.path.name}, {100 * scores_on_test(run)['accuracy']:.1f} % accuracy"
