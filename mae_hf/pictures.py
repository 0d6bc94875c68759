"""The pictures of a comparison: drawn from the runs' files, saved as PNG, each with a heading and a caption.

Shapes: n test images, D width of the encoder.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mae_hf import figures
from mae_hf.comparison import Comparison, Run
from mae_hf.config import ConfigError, require

PRETRAINED, SCRATCH = "MAE pre-trained", "from scratch"
MAX_POINTS = 1000
SEED = 0  # of the drawn test images and of t-SNE


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Args:
        path: its PNG file.
        heading: above it.
        caption: what it shows and how to read it; also its text for those who cannot see it.
    """

    path: Path
    heading: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Pictures:
    """All pictures of a comparison.

    Args:
        pictures: in the order of the report.
        notes: what could not be drawn, and why.
        trustworthiness: of the t-SNE maps, by arm; empty where there are none.
    """

    pictures: list[Picture]
    notes: list[str]
    trustworthiness: dict[str, float]


def draw_pictures(comparison: Comparison, folder: Path) -> Pictures:
    """Draws everything into `folder`, which is there.

    What cannot be drawn, because images or the pre-training run are no longer there, is left out; a warning says so.
    """
    for name in ("embedding.png", "reconstruction.png"):  # those of an older report, should they be left out this time
        (folder / name).unlink(missing_ok=True)
    pictures, notes = _score_pictures(comparison, folder), []
    trust: dict[str, float] = {}
    try:
        picture, trust = _embedding_picture(comparison, folder)
        pictures.append(picture)
    except ConfigError as error:
        notes.append(f"No t-SNE map: {error}")
    reconstruction = _reconstruction_picture(comparison.pretrained[0], folder)
    if reconstruction:
        pictures.append(reconstruction)
    else:
        notes.append(
            f"No reconstruction: {comparison.pretrained[0].config.model.init} has no figures/reconstruction*.png"
        )
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    return Pictures(pictures, notes, trust)


def arms(comparison: Comparison) -> dict[str, Run]:
    """The run that speaks for each arm, by the arm's name."""
    return {PRETRAINED: comparison.pretrained[0], SCRATCH: comparison.scratch[0]}


def _score_pictures(comparison: Comparison, folder: Path) -> list[Picture]:
    """Curves, confusion matrices and F1 per class."""
    chosen, num_images = arms(comparison), len(comparison.scratch[0].labels)
    curves = figures.curves_figure(
        {
            PRETRAINED: [run.history for run in comparison.pretrained],
            SCRATCH: [run.history for run in comparison.scratch],
        },
        "Fine-tuning on the same labels",
        target=comparison.scratch[0].best_validation_accuracy,
    )
    confusion = figures.confusion_figure(
        {name: run.scores["confusion_matrix"] for name, run in chosen.items()},
        comparison.scratch[0].class_names,
        f"Confusion on the {num_images:,} test images",
    )
    bars = figures.bars_figure(
        {name: run.scores["f1_per_class"] for name, run in chosen.items()}, f"F1 on the {num_images:,} test images"
    )
    thin = (
        " Each arm's best run by validation accuracy is bold, the others are thin." if len(comparison.runs) > 2 else ""
    )
    return [
        Picture(
            figures.save(curves, folder / "curves.png"),
            "Curves",
            "Accuracy, macro-F1 and loss against the epoch of fine-tuning; dotted: the scratch model's best validation "
            f"accuracy.{thin} The training loss is that of augmented images and smoothed or mixed labels where the "
            "recipe has them, so it is not comparable with the validation loss.",
        ),
        Picture(
            figures.save(confusion, folder / "confusion.png"),
            "Confusion",
            "Test images by true class (row) and predicted class (column), shaded by their part of the row.",
        ),
        Picture(
            figures.save(bars, folder / "f1_per_class.png"), "F1 of each class", "F1 of each class on the test images."
        ),
    ]


def _embedding_picture(comparison: Comparison, folder: Path) -> tuple[Picture, dict[str, float]]:
    """The t-SNE maps of both encoders on the same test images, and their trustworthiness by arm."""
    from transformers import ViTForImageClassification

    from mae_hf.data.images import load_labelled_images
    from mae_hf.evaluation.embedding import trustworthiness, tsne
    from mae_hf.models.classifier import build_classifier
    from mae_hf.models.loading import opening

    pretrained, scratch = arms(comparison).values()
    images = load_labelled_images(scratch.config.data, scratch.config.model.image_size, roles=("test",))["test"]
    require(
        np.array_equal(images.labels, scratch.labels),
        f"{', '.join(scratch.config.data.sources)} no longer holds the {len(scratch.labels)} test images of "
        f"{scratch.path}/predictions.parquet",
    )
    rows = np.random.default_rng(SEED).permutation(len(images))[:MAX_POINTS]
    model_folder = str(scratch.path / "model")
    with opening(model_folder, "run scripts/finetune.py again"):
        trained = ViTForImageClassification.from_pretrained(model_folder)
    # As fine-tuning began: the encoder that model.init names, before it saw a label.
    started = build_classifier(pretrained.config.model, pretrained.class_names, "sdpa", pretrained.config.train.seed)
    points, trust = {}, {}
    for arm, what, run, model in (
        (PRETRAINED, "encoder before fine-tuning: no labels seen", pretrained, started),
        (SCRATCH, "encoder after training on the labels", scratch, trained),
    ):
        features = _features(model.vit, images, rows, run)
        try:
            points_of_arm = tsne(features, SEED)
        except ValueError as error:  # too few test images
            raise ConfigError(str(error)) from None
        trust[arm] = trustworthiness(features, points_of_arm)
        points[f"{arm}\n{what}\ntrustworthiness {trust[arm]:.3f}"] = points_of_arm
    figure = figures.embedding_figure(
        points, scratch.labels[rows], scratch.class_names, f"t-SNE of the CLS features of {len(rows):,} test images"
    )
    picture = Picture(
        figures.save(figure, folder / "embedding.png"),
        "Features before fine-tuning",
        "The same test images, placed by t-SNE of their features. Left: the pre-trained encoder, which has seen no "
        "label. Right: the scratch baseline's encoder, which was trained on all labels. Distances between groups "
        "mean little; trustworthiness (0 to 1) says how far neighbours in the map are neighbours in the features.",
    )
    return picture, trust


@torch.no_grad()
def _features(encoder: torch.nn.Module, images: Any, rows: np.ndarray, run: Run) -> np.ndarray:
    """The CLS features of these rows, float32 (n, D)."""
    from mae_hf.evaluation.inference import pixel_values_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.eval().to(device)
    batches = [rows[start : start + 64] for start in range(0, len(rows), 64)]
    features = [
        encoder(pixel_values_of(images, batch, run.config.data, device)).last_hidden_state[:, 0] for batch in batches
    ]
    return torch.cat(features).float().cpu().numpy()


def _reconstruction_picture(run: Run, folder: Path) -> Picture | None:
    """A copy of the newest reconstruction of the pre-training run that `run` started from; None if there is none."""
    start = Path(run.config.model.init).expanduser()
    # `init` may name the run, its model/ or its model/encoder/.
    runs = [place for place in (start, *list(start.resolve().parents)[:2]) if (place / "config.yaml").is_file()]
    for place in runs:
        found = sorted(place.glob("figures/reconstruction*.png"), key=lambda path: (path.stat().st_mtime, path.name))
        if found:
            copy = folder / "reconstruction.png"
            copy.write_bytes(found[-1].read_bytes())
            caption = "Held-out images, what the encoder saw of them, and what the masked autoencoder made of it"
            return Picture(copy, "Reconstruction", f"{caption} ({found[-1].name} of the pre-training run).")
    return None
