"""The pictures of a comparison, saved as PNG, each with a heading and a caption."""

import sys
from pathlib import Path

from mae_hf.errors import ConfigError
from mae_hf.report import networks
from mae_hf.report.comparison import PRETRAINED_ARM, SCRATCH_ARM, Comparison
from mae_hf.report.pictures.from_files import draw_reconstructions, draw_reliability, draw_scores
from mae_hf.report.pictures.from_images import draw_attention, draw_maps, draw_mistakes
from mae_hf.report.pictures.picture import Picture, Pictures

__all__ = ["Picture", "Pictures", "draw_pictures"]

_FILES = (
    *("curves", "confusion", "f1_per_class", "reliability", "mistakes", "embedding", "embedding_umap"),
    *("attention", "attention_heads", "reconstruction"),
)


def draw_pictures(comparison: Comparison, folder: Path) -> Pictures:
    """Draw everything into an existing folder.

    A picture whose images, encoder or pre-training run is missing is left out, with a warning.
    """
    for name in _FILES:  # an older report may have pictures that this one leaves out
        (folder / f"{name}.png").unlink(missing_ok=True)
    drawn = Pictures(folder)
    draw_scores(comparison, drawn)
    draw_reliability(comparison, drawn)
    try:
        images = networks.open_test_images(comparison.best[SCRATCH_ARM])
    except ConfigError as error:
        drawn.notes.append(f"No t-SNE map, no mistakes and no attention: {error}")
    else:
        draw_mistakes(comparison, images, drawn)
        opened, missing = networks.open_networks(comparison)
        drawn.notes.extend(f"{name} is not drawn: {reason}" for name, reason in missing.items())
        draw_maps(opened, images, drawn)
        draw_attention(opened, images, drawn)
    draw_reconstructions(comparison.best[PRETRAINED_ARM], drawn)
    for note in drawn.notes:
        print(f"warning: {note}", file=sys.stderr)
    return drawn
