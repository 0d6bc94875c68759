"""The page of the demo, and its answers: class probabilities, or the reconstruction of masked patches. Needs gradio.

S is the side of the model's images.
"""

import contextlib
import html
import os
import tempfile
from pathlib import Path
from typing import Any

import gradio
import matplotlib
import numpy as np
import pandas
import torch
from PIL import Image

from mae_hf.config.parse import read_file
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.data.cache import cached_examples
from mae_hf.data.dataset import load_image_files
from mae_hf.data.decode import decode
from mae_hf.data.locations import is_hub_id
from mae_hf.data.random import Draws
from mae_hf.errors import ConfigError, require
from mae_hf.evaluation.inference import LoadedModel, open_any
from mae_hf.evaluation.reconstruction import hide_and_reconstruct
from mae_hf.evaluation.statistics import describe_accuracy
from mae_hf.models.locate import FIX_MODEL
from mae_hf.models.mae import MaskedAutoencoder
from mae_hf.training.predictions import read_predictions

PICTURE_SIZE = 320  # pixels on the page; a digit of 32 pixels is enlarged ten times
_MAX_FILES = 200
_SHOWN_CLASSES = 20
_CSS = """
img {image-rendering: pixelated}
#upload img {width: 100%; height: 100%; object-fit: contain}
.gallery img {min-width: 100%; min-height: 100%}
@media (max-width: 640px) {#predictions * {font: 11px sans-serif !important}}
"""
# How the page is served: only to `server_name`, by the Python server alone, without gradio's links.
LAUNCH: dict[str, Any] = {"share": False, "ssr_mode": False, "footer_links": [], "quiet": True, "show_error": True}
LAUNCH |= {"max_file_size": "20mb", "css": _CSS}


def open_shown(name: str) -> LoadedModel:
    """Return a model that the page can show; ConfigError if it is missing or of another kind."""
    loaded = open_any(name)
    problem = f"{name} is a {type(loaded.model).__name__}: the demo shows a classifier or a masked autoencoder"
    is_shown = bool(loaded.class_names) or isinstance(loaded.model, MaskedAutoencoder)
    require(is_shown, f"{problem}, {FIX_MODEL}")
    return loaded


def build_page(name: str, loaded: LoadedModel, title: str = "", about: str = "") -> gradio.Blocks:
    """Return the page of a model; `title` and `about` replace its name and the description from its run."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio would also ask a server for its newest version
    title, about = title or name, about or describe(name, loaded)
    # every 600 s, gradio deletes uploads older than an hour; on exit it deletes all
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.HTML(f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>")
        with gradio.Row():
            with gradio.Column():
                upload: Any = gradio.Image(
                    label="image", sources=["upload", "clipboard"], format="png", height=PICTURE_SIZE, elem_id="upload"
                )
                # gradio must not open an upload: `decode` does, which knows the formats and limits
                upload.preprocess = lambda payload: payload and payload.path
                with contextlib.suppress(ConfigError):  # it has no run folder
                    _, run = _run_of(name, loaded)
                    examples = cached_examples(run.data, loaded.model.config.image_size, 8)
                    if len(examples):
                        gradio.Examples([Image.fromarray(each) for each in examples], upload, label="held-out images")
            with gradio.Column():
                if loaded.class_names:
                    upload.change(
                        lambda file: classify(loaded, _decoded(loaded, file)) if file else {},
                        upload,
                        gradio.Label(label="class probabilities", num_top_classes=10),
                        api_name="classify",
                    )
                else:
                    _add_reconstruction(loaded, upload)
        if loaded.class_names:
            _add_table(loaded)
    return page


def _add_table(loaded: LoadedModel) -> None:
    scratch = tempfile.TemporaryDirectory()  # deleted with the page

    def answer(files: list[str] | None) -> tuple[pandas.DataFrame, Any]:
        if len(files or []) > _MAX_FILES:
            raise gradio.Error(f"choose at most {_MAX_FILES} images", print_exception=False)
        rows = []
        for path in files or []:
            image = decode(path, loaded.model.config.image_size, loaded.data)
            error = image if isinstance(image, str) else ""
            name, probability = ("", None) if error else max(classify(loaded, image).items(), key=lambda item: item[1])
            rows.append([Path(path).name, name, probability and round(probability, 3), error])
        table = pandas.DataFrame(rows, columns=["file", "prediction", "probability", "error"])
        file = Path(tempfile.mkdtemp(dir=scratch.name), "predictions.csv")
        table.to_csv(file, index=False)
        return table, gradio.DownloadButton(value=str(file), interactive=bool(files))

    with gradio.Accordion("Several images", open=False):
        files = gradio.File(label="images", file_count="multiple", file_types=["image"], height=160)
        table = gradio.Dataframe(elem_id="predictions", wrap=True, column_widths=["28%", "22%", "25%", "25%"])
        download = gradio.DownloadButton("Download as CSV", interactive=False)
    files.change(answer, files, [table, download], api_name="classify_files")


def _add_reconstruction(loaded: LoadedModel, upload: gradio.Image) -> None:
    def answer(file: str | None, mask_ratio: float, seed: float) -> list[np.ndarray | None]:
        if file is None:
            return [None] * 4
        pictures = reconstruct_image(loaded, _decoded(loaded, file), int(seed) % 2**32, mask_ratio)
        times = max(1, PICTURE_SIZE // len(pictures[0]))
        return [picture.repeat(times, axis=0).repeat(times, axis=1) for picture in pictures]

    highest = min(0.9, 1 - 1.5 / loaded.model.vit.embeddings.patch_embeddings.num_patches)  # one patch stays visible
    usual = min(loaded.model.config.mask_ratio, highest)
    ratio = gradio.Slider(0.1, highest, value=usual, step=0.01, label="share of masked patches")
    seed, button = gradio.Number(0, precision=0, visible=False), gradio.Button("New mask")
    pictures = []
    for row in (("image", "masked"), ("reconstruction", "error per patch")):
        with gradio.Row():
            pictures += [gradio.Image(label=name, format="png", min_width=140, buttons=["download"]) for name in row]
    inputs = [upload, ratio, seed]
    gradio.on([upload.change, ratio.release], answer, inputs, pictures, api_name="reconstruct")
    drawn = button.click(lambda seed: seed + 1, seed, seed, api_visibility="private")
    drawn.then(answer, inputs, pictures, api_visibility="private")


def _decoded(loaded: LoadedModel, file: str) -> np.ndarray:
    image = decode(file, loaded.model.config.image_size, loaded.data)
    if isinstance(image, str):
        raise gradio.Error(f"{Path(file).name} cannot be decoded: {image}", print_exception=False)
    return image


# ---- facts from the run of a model ----


def describe(name: str, loaded: LoadedModel) -> str:
    """Return a description of the model, with its accuracy on test images if its run folder has it."""
    config, names = loaded.model.config, loaded.class_names
    size = f"for images of {config.image_size} x {config.image_size} pixels"
    more = ", ..." if len(names) > _SHOWN_CLASSES else ""
    text = f"A classifier {size}, with {len(names)} classes: {', '.join(names[:_SHOWN_CLASSES])}{more}."
    if not names:
        text = f"A masked autoencoder {size}. It reconstructs the grey patches without seeing them."
        text += " The brighter a patch of the last picture, the larger its error."
        if config.norm_pix_loss:
            text += " The reconstruction uses their true mean and contrast, which this model does not predict."
    with contextlib.suppress(ConfigError):
        folder, run = _run_of(name, loaded)
        sources = [source if is_hub_id(source) else Path(source).name for source in run.data.sources]
        text += f" Trained on {' and '.join(sources)}."
        if names:
            right = read_predictions(folder / "predictions.parquet", len(names)).correct
            text += f" {describe_accuracy(int(right.sum()), len(right))}." if len(right) else ""
    return text


def _run_of(name: str, loaded: LoadedModel) -> tuple[Path, Any]:
    """The run folder of a model and its config; ConfigError if there is none."""
    folder = Path(name).expanduser()
    folder = folder.parent if folder.name == "model" else folder
    return folder, read_file(FinetuneConfig if loaded.class_names else PretrainConfig, folder / "config.yaml")


# ---- the answers ----


def classify(loaded: LoadedModel, image: Any) -> dict[str, float]:
    """Return the probability of each class for an image of any mode and size."""
    return dict(zip(loaded.class_names, loaded([image])[0].tolist(), strict=True))


def reconstruct_image(loaded: LoadedModel, image: Any, seed: int, mask_ratio: float) -> list[np.ndarray]:
    """Mask an image of any mode and size by a seed, and reconstruct the masked patches.

    The four pictures are the image, the masked image, the reconstruction, and the mean absolute error of each patch as
    a colour. Each is uint8 (S, S, 3).
    """
    patches = loaded.model.vit.embeddings.patch_embeddings
    images = load_image_files([image], patches.image_size[0], loaded.data)
    draws = Draws(seed, epoch=0, rows=np.zeros(1, np.int64), step=0)
    noise = torch.from_numpy(draws.uniform("demo mask", patches.num_patches))
    loaded.model.config.mask_ratio = mask_ratio
    pictures = [picture[0] for picture in hide_and_reconstruct(loaded.model, images, loaded.data, noise)]
    gap, patch = np.abs(pictures[0].astype(float) - pictures[2]), patches.patch_size[0]
    error = gap.reshape(len(gap) // patch, patch, -1, patch, 3).mean(axis=(1, 3, 4))
    colours = matplotlib.colormaps["inferno"](error / max(error.max(), 1.0), bytes=True)[..., :3]
    return [*pictures, colours.repeat(patch, axis=0).repeat(patch, axis=1)]
