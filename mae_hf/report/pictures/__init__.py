"""The pictures of a comparison, saved as PNG, each with a heading and a caption."""

import dataclasses
import sys
from pathlib import Path

from mae_hf.errors import ConfigError
from mae_hf.report import networks
from mae_hf.report.comparison import PRETRAINED_ARM, SCRATCH_ARM, Comparison
from mae_hf.report.pictures.from_files import draw_reconstructions, draw_reliability, draw_scores
from mae_hf.report.pictures.from_images import draw_attention, draw_maps, draw_mistakes
from mae_hf.report.pictures.picture import Picture

__all__ = ["Picture", "Pictures", "draw_pictures"]

_FILES = (
    *("curves", "confusion", "f1_per_class", "reliability", "mistakes", "embedding", "embedding_umap"),
    *("attention", "attention_heads", "reconstruction"),
)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """All pictures of a comparison."""

    pictures: list[Picture]  # in the order of the report
    notes: list[str]  # what could not be drawn, and why
    trustworthiness: dict[str, float]  # of the t-SNE maps, by network; empty where there are none
    calibration_error: dict[str, float]  # expected calibration error on the test images, 0 to 1, by arm


def draw_pictures(comparison: Comparison, folder: Path) -> Pictures:
    """Draw everything into an existing folder.

    A picture whose images, encoder or pre-training run is missing is left out, with a warning.
    """
    for name in _FILES:  # an older report may have pictures that this one leaves out
        (folder / f"{name}.png").unlink(missing_ok=True)
    pictures = draw_scores(comparison, folder)
    notes: list[str] = []
    probabilities = {arm: run.test.probabilities for arm, run in comparison.best.items()}
    picture, calibration_error = draw_reliability(comparison, probabilities, folder)
    pictures.append(picture)
    trust: dict[str, float] = {}
    try:
        images = networks.open_test_images(comparison.best[SCRATCH_ARM])
    except ConfigError as error:
        notes.append(f"No t-SNE map, no mistakes and no attention: {error}")
    else:
        pictures.append(draw_mistakes(comparison, probabilities, images, folder))
        opened, missing = networks.open_networks(comparison)
        notes += [f"{name} is not drawn: {reason}" for name, reason in missing.items()]
        drawn, trust = draw_maps(opened, images, folder, notes)
        pictures += drawn + draw_attention(opened, images, folder, notes)
    pictures += draw_reconstructions(comparison.best[PRETRAINED_ARM], folder, notes)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    return Pictures(pictures, notes, trust, calibration_error)
