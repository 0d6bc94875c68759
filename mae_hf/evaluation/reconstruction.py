"""Reconstruction pictures: images, their visible patches, and the model's reconstructions, once or over the steps."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mae_hf import figures
from mae_hf.config.data import DataConfig
from mae_hf.evaluation.inference import fixed_noise, normalized
from mae_hf.figures import sheets
from mae_hf.files import write_npz
from mae_hf.models.mae import MaskedAutoencoder, reconstruct_pixels

OVER_TIME = "reconstruction-over-time.png"
MAX_IMAGES, MAX_STEPS = 6, 6  # of the picture over time


def draw_reconstructions(model: MaskedAutoencoder, images: Tensor, data: DataConfig, title: str) -> Figure:
    """Return a picture of three rows with the fixed masks of held-out images: the three of `hide_and_reconstruct`."""
    return sheets.reconstruction_figure(*hide_and_reconstruct(model, images, data), title + _statistics_note(model))


def save_reconstructions(model: MaskedAutoencoder, images: Tensor, data: DataConfig, folder: Path, step: int) -> Figure:
    """Save and return the reconstructions of the same images at this step, and draw how they changed so far.

    The folder gets `reconstruction-STEP.png`, `reconstruction-STEP.npz` (uint8 arrays, for the picture over time) and
    `reconstruction-over-time.png`, which shows the first and last step, and few late steps between them.
    """
    pictures = hide_and_reconstruct(model, images, data)
    note = _statistics_note(model)
    figure = sheets.reconstruction_figure(*pictures, f"held-out images, step {step}{note}")
    original, masked, reconstructed = (part[:MAX_IMAGES] for part in pictures)
    path = figures.save(figure, folder / f"reconstruction-{step:08d}.png").with_suffix(".npz")
    write_npz(path, reconstructed=reconstructed)

    # an interrupted run may have left files of later steps
    files = {int(file.stem.rsplit("-")[-1]): file for file in sorted(folder.glob("reconstruction-*.npz"))}
    steps = [known for known in files if known <= step]
    over_time = {}
    for known in sorted({steps[round(number) - 1] for number in np.geomspace(1, len(steps), MAX_STEPS)}):
        with np.load(files[known]) as arrays:
            over_time[known] = arrays["reconstructed"]
    title = f"Held-out images during training{note}"
    figures.save(sheets.over_time_figure(original, masked, over_time, title), folder / OVER_TIME)
    return figure


@torch.no_grad()
def hide_and_reconstruct(
    model: MaskedAutoencoder, images: Tensor, data: DataConfig, noise: Tensor | None = None
) -> tuple[sheets.Images, sheets.Images, sheets.Images]:
    """Return the images, those with masked patches in grey, and the reconstructions, each uint8 (B, S, S, 3).

    The masked autoencoder is in eval mode and not wrapped for training. Images are uint8 (B, S, S, 3). The patches with
    the smallest noise, (B, N) of N patches, stay visible. The default is `fixed_noise`.
    """
    device, patches = model.device, model.vit.embeddings.patch_embeddings
    noise = fixed_noise(np.arange(len(images)), patches.num_patches, device) if noise is None else noise.to(device)
    with torch.compiler.set_stance("force_eager"):
        predicted, mask = reconstruct_pixels(model, normalized(images, data, device), noise)
    scale, shift = (torch.tensor(each, device=device).view(3, 1, 1) for each in (data.image_std, data.image_mean))
    pixels = ((predicted * scale + shift) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    original = images.cpu().numpy()
    return original, sheets.hide_patches(original, mask.cpu().numpy(), patches.patch_size[0]), pixels.cpu().numpy()


def _statistics_note(model: MaskedAutoencoder) -> str:
    return "\n(masked patches un-normalised with their true mean and variance)" if model.config.norm_pix_loss else ""
