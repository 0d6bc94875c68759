"""The reconstruction picture: held-out images, what the encoder saw of them, and what the decoder made of it."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from mae_hf.config import DataConfig
from mae_hf.data.images import ImageSet
from mae_hf.evaluation.inference import fixed_noise, pixel_values_of
from mae_hf.figures import hide_patches
from mae_hf.figures import reconstruction_figure as draw
from mae_hf.models.mae import MaskedAutoencoder, reconstruct

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.no_grad()
def reconstruction_figure(
    model: MaskedAutoencoder, images: ImageSet, data: DataConfig, title: str, num_images: int = 8
) -> "Figure":
    """Three rows for the first images of a set, with the masks of the held-out loss: original, masked, reconstruction.

    Args:
        model: the masked autoencoder, not wrapped for training.
        images: the held-out images.
        title: what the picture shows; the statistics that un-normalised the patches are added to it.
    """
    rows = np.arange(min(num_images, len(images)))
    device = next(model.parameters()).device
    pixel_values = pixel_values_of(images, rows, data, device)
    noise = fixed_noise(rows, model.decoder.decoder_pos_embed.shape[1] - 1, device)
    predicted, mask = reconstruct(model, pixel_values, noise)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (data.image_mean, data.image_std))
    pixels = ((predicted.float() * std + mean) * 255).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    originals = images.batch(rows).numpy()
    masked = hide_patches(originals, mask.cpu().numpy(), model.config.patch_size)
    if model.config.norm_pix_loss:
        title += " (each patch un-normalised with its true mean and variance)"
    return draw(originals, masked, pixels, title)
