"""Two arms with real images and weights, for the tests of what is drawn and written about them."""

from pathlib import Path

import pytest
from run_folders import write_arms

from mae_hf.report.comparison import Comparison, compare_runs


@pytest.fixture
def runs(tmp_path: Path, image_folder: Path) -> tuple[Path, Path, Path]:
    """A pre-training run with an encoder and two pictures, a run that started from it and one from scratch."""
    return write_arms(tmp_path, image_folder)


@pytest.fixture
def comparison(runs: tuple[Path, Path, Path]) -> Comparison:
    """The two arms of `runs`."""
    return compare_runs([runs[1]], [runs[2]])
