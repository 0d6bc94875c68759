"""The demo: a page where people try a model on their own images.

S is the side of the model's square images, N the number of their patches.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image
from transformers import ViTForImageClassification

from mae_hf.config.data import Triple
from mae_hf.data.augment.crop_flip import normalize, to_pixels
from mae_hf.data.decode import to_rgb_square
from mae_hf.data.random import Draws
from mae_hf.errors import require
from mae_hf.figures import sheets
from mae_hf.models.io import SavedModel, image_size_of, open_classifier, read_normalization
from mae_hf.models.locate import FIX_MODEL
from mae_hf.models.mae import MaskedAutoencoder, reconstruct_pixels

if TYPE_CHECKING:
    import gradio

PICTURE_SIZE = 320  # pixels on the page; a digit of 32 pixels is enlarged ten times
# gradio must not convert or resize an upload: the model's own preparation does that.
UPLOAD: dict[str, Any] = {"label": "image", "type": "pil", "image_mode": None, "sources": ["upload", "clipboard"]}
# delete_cache: every 600 s, gradio deletes uploads older than an hour; on exit it deletes all.
BLOCKS: dict[str, Any] = {"analytics_enabled": False, "delete_cache": (600, 3600)}

Normalization = tuple[Triple, Triple]  # means and standard deviations of the channels


@torch.no_grad()
def classify(model: ViTForImageClassification, normalization: Normalization, image: Image) -> dict[str, float]:
    """Return the probability of each class for an image of any mode and size."""
    images = torch.from_numpy(to_rgb_square(image, image_size_of(model)))[None]
    probabilities = model(normalize(to_pixels(images), *normalization)).logits.float().softmax(dim=-1)[0]
    names = (model.config.id2label or {}).values()
    return dict(zip(names, probabilities.tolist(), strict=True))


def hide_and_reconstruct(
    model: MaskedAutoencoder, normalization: Normalization, image: Image, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask an image of any mode and size by a seed, and reconstruct the masked patches.

    Returns:
        The image, the image with grey masked patches, and with predicted masked patches, each uint8 (S, S, 3).
    """
    patch_embeddings = model.vit.embeddings.patch_embeddings
    images = torch.from_numpy(to_rgb_square(image, patch_embeddings.image_size[0]))[None]
    draws = Draws(seed, epoch=0, rows=np.zeros(1, np.int64), step=0)
    noise = torch.from_numpy(draws.uniform("demo mask", patch_embeddings.num_patches))
    predicted, mask = reconstruct_pixels(model, normalize(to_pixels(images), *normalization), noise)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalization)
    pixels = ((predicted * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    masked = sheets.hide_patches(images.numpy(), mask.numpy(), patch_embeddings.patch_size[0])
    return images[0].numpy(), masked[0], pixels[0].numpy()


def build_page(name: str) -> "gradio.Blocks":
    """Return the page of a classifier (class probabilities) or a masked autoencoder (image, masked, reconstruction).

    Args:
        name: run folder, model folder or Hub id.

    Raises:
        ConfigError: gradio is not installed, or the model is missing or of another kind.
    """
    require(
        importlib.util.find_spec("gradio") is not None,
        "the demo needs gradio, which is not installed: pip install 'mae_hf[demo]'",
    )
    architectures = SavedModel(name).config().architectures or []
    normalization = read_normalization(name)
    if "ViTForImageClassification" in architectures:
        return _classifier_page(name, open_classifier(name, "sdpa"), normalization)
    require(
        "ViTMAEForPreTraining" in architectures,
        f"{name} is a {', '.join(architectures) or 'model without a class'}: the demo shows a classifier or a masked "
        f"autoencoder, {FIX_MODEL}",
    )
    return _reconstruction_page(name, MaskedAutoencoder.from_pretrained(name).eval(), normalization)


def _classifier_page(name: str, model: ViTForImageClassification, normalization: Normalization) -> "gradio.Blocks":
    import gradio

    def answer(image: Image | None) -> dict[str, float]:  # None after the image was removed
        return {} if image is None else classify(model, normalization, image)

    with gradio.Blocks(title=name, **BLOCKS) as page:
        gradio.Markdown(f"# {name}")
        image = gradio.Image(**UPLOAD)
        label = gradio.Label(label="class probabilities", num_top_classes=10)
        image.change(answer, image, label, api_name="classify")
    return page


def _reconstruction_page(name: str, model: MaskedAutoencoder, normalization: Normalization) -> "gradio.Blocks":
    import gradio

    def answer(image: Image | None, seed: int) -> list[np.ndarray | None]:
        if image is None:
            return [None, None, None]
        pictures = hide_and_reconstruct(model, normalization, image, seed)
        times = max(1, PICTURE_SIZE // len(pictures[0]))
        return [picture.repeat(times, axis=0).repeat(times, axis=1) for picture in pictures]

    note = "The model does not see the grey patches."
    if model.config.norm_pix_loss:
        note += " The reconstruction uses their true mean and contrast, which this model does not predict."
    with gradio.Blocks(title=name, **BLOCKS) as page:
        gradio.Markdown(f"# {name}\n{note}")
        image = gradio.Image(**UPLOAD)
        seed = gradio.Slider(0, 99, value=0, step=1, label="seed of the mask")
        with gradio.Row():
            pictures = [gradio.Image(label=text, format="png") for text in ("original", "masked", "reconstruction")]
        # always_last: while the slider is dragged, answer only its last value
        triggers = {"triggers": [image.change, seed.change], "trigger_mode": "always_last"}
        gradio.on(fn=answer, inputs=[image, seed], outputs=pictures, api_name="reconstruct", **triggers)
    return page
