"""The reconstruction picture: images, what the encoder saw of them, and what the decoder made of it."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mae_hf import figures
from mae_hf.config import DataConfig
from mae_hf.data.augment import normalize, to_pixels
from mae_hf.evaluation.inference import fixed_noise
from mae_hf.models.mae import MaskedAutoencoder, reconstruct


@torch.no_grad()
def draw_reconstructions(model: MaskedAutoencoder, images: Tensor, data: DataConfig, title: str) -> Figure:
    """Three rows: original, masked, reconstruction; with the fixed masks that held-out images have.

    Args:
        model: the masked autoencoder, not wrapped for training, in eval mode.
        images: uint8 (B, S, S, 3).
        data: the mean and standard deviation that normalise the images.
        title: what the picture shows; with `norm_pix_loss`, what un-normalised the patches is added.
    """
    device = model.device
    pixel_values = normalize(to_pixels(images.to(device)), data.image_mean, data.image_std)
    num_patches = model.vit.embeddings.patch_embeddings.num_patches
    noise = fixed_noise(np.arange(len(images)), num_patches, device)
    with torch.compiler.set_stance("force_eager"):
        predicted, mask = reconstruct(model, pixel_values, noise)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (data.image_mean, data.image_std))
    pixels = ((predicted.float() * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    originals = images.cpu().numpy()
    patch_size = model.vit.embeddings.patch_embeddings.patch_size[0]
    masked = figures.hide_patches(originals, mask.cpu().numpy(), patch_size)
    if model.config.norm_pix_loss:
        title += " (hidden patches un-normalised with their true mean and variance)"
    return figures.reconstruction_figure(originals, masked, pixels.cpu().numpy(), title)
