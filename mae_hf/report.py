"""The comparison as people read it: PNG files, comparison.json, one self-contained index.html and a table of text.

Shapes: n test images, D width of the encoder.
"""

import base64
import dataclasses
import json
import sys
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch

from mae_hf import figures
from mae_hf.checkpoint import write_text
from mae_hf.comparison import Comparison, Run
from mae_hf.config import ConfigError, require

PRETRAINED, SCRATCH = "MAE pre-trained", "from scratch"
MAX_POINTS = 1000
SEED = 0  # of the drawn test images and of t-SNE

_COLUMNS = {
    "run": "run",
    "init": "started from",
    "test_accuracy": "test accuracy (%)",
    "test_f1": "test macro-F1 (%)",
    "test_loss": "test loss",
    "best_validation_accuracy": "best validation accuracy (%)",
    "best_epoch": "best epoch",
    "epochs_to_scratch_best": "epochs to scratch's best validation",
    "seed": "seed",
    "num_parameters": "parameters",
}
_PERCENT = ("test_accuracy", "test_f1", "best_validation_accuracy")


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


def write_report(comparison: Comparison, output_dir: str | Path) -> Path:
    """Draws and writes everything into `output_dir`, `index.html` last, and returns that page's path.

    What cannot be drawn, because images or the pre-training run are no longer there, is left out; the page and one
    warning say so.

    Raises:
        ConfigError: `output_dir` is not a folder.
    """
    folder = Path(output_dir)
    require(not folder.exists() or folder.is_dir(), f"{folder} is not a folder: choose another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
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
    content = {
        "answer": comparison.answer(),
        "points": comparison.points,
        "runs": comparison.table(),
        "class_names": comparison.scratch[0].class_names,
        "f1_per_class": {name: run.scores["f1_per_class"] for name, run in _chosen(comparison).items()},
        "confusion_matrix": {name: run.scores["confusion_matrix"] for name, run in _chosen(comparison).items()},
        "trustworthiness": trust,
        "notes": notes,
    }
    write_text(folder / "comparison.json", json.dumps(content, indent=2) + "\n")
    write_text(folder / "index.html", page(comparison, pictures, notes))
    return folder / "index.html"


def _chosen(comparison: Comparison) -> dict[str, Run]:
    return {PRETRAINED: comparison.pretrained[0], SCRATCH: comparison.scratch[0]}


def _score_pictures(comparison: Comparison, folder: Path) -> list[Picture]:
    """Curves, confusion matrices and F1 per class."""
    arms, num_images = _chosen(comparison), len(comparison.scratch[0].labels)
    curves = figures.curves_figure(
        {
            PRETRAINED: [run.history for run in comparison.pretrained],
            SCRATCH: [run.history for run in comparison.scratch],
        },
        "Fine-tuning on the same labels",
        target=comparison.scratch[0].best_validation_accuracy,
    )
    confusion = figures.confusion_figure(
        {name: run.scores["confusion_matrix"] for name, run in arms.items()},
        comparison.scratch[0].class_names,
        f"Confusion on the {num_images:,} test images",
    )
    bars = figures.bars_figure(
        {name: run.scores["f1_per_class"] for name, run in arms.items()}, f"F1 on the {num_images:,} test images"
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

    pretrained, scratch = _chosen(comparison).values()
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


def text_table(comparison: Comparison) -> str:
    """The table for a terminal, a line per run; `*` marks the runs that the answer is about."""
    short = ("run", "started from", "accuracy", "macro-F1", "loss", "best val", "at epoch", "epochs to scratch best")
    rows = [short] + [
        ("* " * row["chosen"] + row["run"], *(_cell(row, key) for key in list(_COLUMNS)[1 : len(short)]))
        for row in comparison.table()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(short))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if value is None:
        return "not reached" if key == "epochs_to_scratch_best" else "unknown"
    if key in _PERCENT:
        return f"{100 * value:.2f}"
    if key == "num_parameters":
        return f"{value:,}"
    return f"{value:.3f}" if key == "test_loss" else f"{value:g}" if isinstance(value, float) else str(value)


def page(comparison: Comparison, pictures: list[Picture], notes: list[str]) -> str:
    """The whole report as one HTML page: pictures inside, no scripts, no requests."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in _COLUMNS.values())
    body = "".join(
        f"<tr{' class=chosen' if row['chosen'] else ''}>"
        + "".join(f"<td>{escape(_cell(row, key))}</td>" for key in _COLUMNS)
        + "</tr>"
        for row in comparison.table()
    )
    sections = "".join(
        f"<section><h2>{escape(picture.heading)}</h2><figure>"
        f'<img alt="{escape(picture.caption)}" src="data:image/png;base64,{_base64(picture.path)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure></section>"
        for picture in pictures
    )
    commands = "".join(
        f"<li><code>{escape(str(run.record.get('command', run.path)))}</code></li>" for run in comparison.runs
    )
    template = Template(files("mae_hf").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        answer=escape(comparison.answer()),
        selection=escape(_selection_note(comparison)),
        head=head,
        body=body,
        sections=sections,
        notes="".join(f"<p>{escape(note)}</p>" for note in notes),
        commands=commands,
        versions=escape(", ".join(" ".join(item) for item in comparison.scratch[0].record.get("versions", {}).items())),
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _selection_note(comparison: Comparison) -> str:
    parts = []
    for name, arm in (("Pre-trained", comparison.pretrained), ("From scratch", comparison.scratch)):
        accuracies = [100 * run.scores["accuracy"] for run in arm]
        if len(arm) > 1:
            parts.append(
                f"{name}: of {len(arm)} runs, the one with the best validation accuracy speaks for all; their test "
                f"accuracies lie between {min(accuracies):.1f} and {max(accuracies):.1f} %, mean "
                f"{np.mean(accuracies):.1f} %."
            )
        else:
            parts.append(f"{name}: a single run, so its spread over seeds is unknown.")
    return " ".join(parts)
