"""Try a classifier or a masked autoencoder on a web page of this machine; Ctrl-C ends it."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image

from mae_hf.config.commands import DemoConfig
from mae_hf.data.dataset import load_image_files
from mae_hf.data.random import Draws
from mae_hf.errors import ConfigError, require
from mae_hf.evaluation.loaded import LoadedModel, open_any
from mae_hf.evaluation.reconstruction import hide_and_reconstruct
from mae_hf.models.locate import FIX_MODEL
from mae_hf.models.mae import MaskedAutoencoder

if TYPE_CHECKING:
    import gradio

PICTURE_SIZE = 320  # pixels on the page; a digit of 32 pixels is enlarged ten times
_PAGE: dict[str, Any] = {
    "live": True,  # answer each change
    "flagging_mode": "never",
    "analytics_enabled": False,
    "delete_cache": (600, 3600),  # every 600 s, gradio deletes uploads older than an hour; on exit it deletes all
}


def demo(config: DemoConfig) -> None:
    """Serve the page until Ctrl-C."""
    page = build_page(config.model)
    try:
        # without the thread lock, the address is printed after the page has started
        options: dict[str, Any] = {"share": False, "quiet": True, "show_error": True, "prevent_thread_lock": True}
        page.launch(server_name="127.0.0.1", server_port=config.port, **options)
    except OSError:  # gradio's word for a taken port
        raise ConfigError(f"port {config.port} is taken: choose another (--port {config.port + 1})") from None
    print(f"{config.model} is shown at http://127.0.0.1:{config.port}; Ctrl-C ends it", flush=True)
    page.block_thread()


def build_page(name: str) -> "gradio.Blocks":
    """Return the page of a classifier (class probabilities) or a masked autoencoder (image, masked, reconstruction).

    `name` is a run folder, a model folder or a Hub id. Without gradio, and for a model that is missing or of another
    kind, it raises a ConfigError.
    """
    try:
        import gradio
    except ModuleNotFoundError:
        fix = "pip install 'mae_hf[demo]'"
        raise ConfigError(f"the demo needs gradio, which is not installed: {fix}") from None
    loaded = open_any(name)
    # gradio must not convert or resize an upload: the model's own preparation does that
    upload = gradio.Image(label="image", type="pil", image_mode=None, sources=["upload", "clipboard"])

    def name_classes(image: Image | None) -> dict[str, float]:  # None after the image was removed
        return {} if image is None else classify(loaded, image)

    def fill_in(image: Image | None, seed: int) -> list[np.ndarray | None]:
        if image is None:
            return [None, None, None]
        pictures = reconstruct_image(loaded, image, seed)
        times = max(1, PICTURE_SIZE // len(pictures[0]))
        return [picture.repeat(times, axis=0).repeat(times, axis=1) for picture in pictures]

    if loaded.class_names:
        label = gradio.Label(label="class probabilities", num_top_classes=10)
        return gradio.Interface(name_classes, upload, label, title=name, api_name="classify", **_PAGE)
    problem = f"{name} is a {type(loaded.model).__name__}: the demo shows a classifier or a masked autoencoder"
    require(isinstance(loaded.model, MaskedAutoencoder), f"{problem}, {FIX_MODEL}")
    inputs = [upload, gradio.Slider(0, 99, value=0, step=1, label="seed of the mask")]
    pictures = [gradio.Image(label=text, format="png") for text in ("original", "masked", "reconstruction")]
    note = "The model does not see the grey patches."
    if loaded.model.config.norm_pix_loss:
        note += " The reconstruction uses their true mean and contrast, which this model does not predict."
    page = {"title": name, "description": note, "api_name": "reconstruct", **_PAGE}
    return gradio.Interface(fill_in, inputs, pictures, **page)


def classify(loaded: LoadedModel, image: Image) -> dict[str, float]:
    """Return the probability of each class for an image of any mode and size."""
    return dict(zip(loaded.class_names, loaded([image])[0].tolist(), strict=True))


def reconstruct_image(loaded: LoadedModel, image: Image, seed: int) -> list[np.ndarray]:
    """Mask an image of any mode and size by a seed, and reconstruct the masked patches.

    The three pictures are the image, the image with grey masked patches, and with predicted masked patches, each uint8
    (S, S, 3), S the side of the model's images.
    """
    patches = loaded.model.vit.embeddings.patch_embeddings
    images = load_image_files([image], patches.image_size[0], loaded.data)
    draws = Draws(seed, epoch=0, rows=np.zeros(1, np.int64), step=0)
    noise = torch.from_numpy(draws.uniform("demo mask", patches.num_patches))
    return [picture[0] for picture in hide_and_reconstruct(loaded.model, images, loaded.data, noise)]
