"""Draw how a masked autoencoder reconstructs masked patches: original, masked, reconstruction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_hf import figures
from mae_hf.config.commands import ReconstructConfig
from mae_hf.data.dataset import load_image_files, load_pretraining_images
from mae_hf.data.locations import are_files
from mae_hf.evaluation.reconstruction import draw_reconstructions
from mae_hf.models.io import prepared_as
from mae_hf.models.mae import MaskedAutoencoder


def reconstruct(config: ReconstructConfig, images: Sequence[Any] = ()) -> None:
    """Draw reconstructions into a PNG file: of these images, or the ones that the config names."""
    model = MaskedAutoencoder.from_pretrained(config.model).eval()
    data = prepared_as(config.model, config.data)
    if len(images) or are_files(data.sources):
        batch = load_image_files(images or data.sources, model.config.image_size, data)
    else:  # images that pre-training with this source holds out
        _, held_out = load_pretraining_images(data, model.config.image_size)
        batch = held_out.batch(range(min(config.num_images, len(held_out))))
    figure = draw_reconstructions(model, batch, data, title=figures.label_of(config.model, 60))
    print(f"{len(batch)} images in {figures.save(figure, Path(config.output).expanduser())}")
