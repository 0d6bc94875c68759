"""The pictures of a comparison, saved as PNG or SVG. Their headings and captions are in `report.html`.

Shapes: n test images, H heads, G² patches in G rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mae_hf import figures
from mae_hf.config.commands import CompareFiguresConfig
from mae_hf.data.dataset import ImageSet
from mae_hf.errors import ConfigError
from mae_hf.evaluation import probing
from mae_hf.evaluation.metrics import NUM_BINS, reliability
from mae_hf.evaluation.reconstruction import OVER_TIME
from mae_hf.figures import charts, file_label, label_of, sheets
from mae_hf.report import networks
from mae_hf.report.comparison import Comparison
from mae_hf.report.networks import Network
from mae_hf.report.recipes import f1_of_classes, scores_on_test
from mae_hf.training.finished_runs import Run
from mae_hf.training.provenance import find_provenance

MAX_POINTS = 1000
MAX_MISTAKES = 9
MAX_ATTENTION = 6
SEED = 0  # of the drawn test images and of the maps
_NAMES = (
    *("intervals", "curves", "confusion", "f1_per_class", "reliability", "mistakes", "embedding", "embedding_umap"),
    *("thumbnails", "attention", "attention_heads", "reconstruction"),
)
# What each network of a map has learned from.
_SEEN = {
    networks.PRETRAINED_ENCODER: "no labels seen",
    networks.RANDOM_ENCODER: "random weights",
    networks.SUPERVISED_ENCODER: "labels seen",
}


@dataclass(frozen=True)
class Pictures:
    """The pictures of a comparison, each a file NAME.png or NAME.svg."""

    folder: Path
    settings: CompareFiguresConfig = field(default_factory=CompareFiguresConfig)
    captions: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> what its caption needs, in their order
    notes: list[str] = field(default_factory=list)  # what could not be drawn, and why
    knn_accuracy: dict[str, float] = field(default_factory=dict)  # of the features that were mapped, by network
    calibration_error: dict[str, float] = field(default_factory=dict)  # expected error on test images, 0 to 1, by arm

    def add(self, name: str, figure: Figure, **caption: object) -> None:
        """Save a figure as the next picture."""
        path = figures.save(figure, self.folder / f"{name}.{self.settings.format}")
        self.captions[name] = {"path": path, "inches": figure.get_figwidth(), **caption}


def draw_pictures(comparison: Comparison, folder: Path, settings: CompareFiguresConfig | None = None) -> Pictures:
    """Draw everything into an existing folder.

    A picture whose images, encoder or pre-training run is missing is left out, with a note.
    """
    for name in _NAMES:  # an older report may have pictures that this one leaves out
        for ending in ("png", "svg"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    drawn = Pictures(folder, settings or CompareFiguresConfig())
    draw_scores(comparison, drawn)
    try:
        images = {arm: networks.open_test_images(run) for arm, run in comparison.best.items()}
    except ConfigError as error:
        drawn.notes.append(f"No pictures of test images: {error}")
    else:
        draw_mistakes(comparison, images, drawn)
        opened, missing = networks.open_networks(comparison, images)
        drawn.notes.extend(f"{name} is not drawn: {reason}" for name, reason in missing.items())
        draw_maps(opened, drawn)
        if drawn.settings.attention:
            draw_attention(opened, drawn)
    copy_reconstruction([run.init for run in comparison.best.values() if not run.from_scratch], drawn)
    return drawn


def draw_scores(comparison: Comparison, drawn: Pictures) -> None:
    """Draw what needs no images: intervals, curves, confusion, F1 per class, and reliability with its errors."""
    chosen, results = comparison.chosen, comparison.results
    accuracies = {
        name: (arm.accuracy.values, (ends.low, ends.high) if (ends := arm.accuracy_interval) else None)
        for name, arm in results.arms.items()
    }
    drawn.add("intervals", charts.intervals_figure(accuracies))
    curves = {arm: [run.history for run in runs if not run.probe] for arm, runs in chosen.items()}
    others = {
        arm: [run.history for run in runs if run not in chosen[arm] and not run.probe]
        for arm, runs in comparison.arms.items()
    }
    if any(curves.values()):
        drawn.add("curves", charts.curves_figure(curves, results.target, others))
    matrices = {_panel_title(arm, run): scores_on_test(run)["confusion_matrix"] for arm, run in comparison.best.items()}
    drawn.add("confusion", charts.confusion_figure(matrices, comparison.runs[0].class_names))
    drawn.add("f1_per_class", charts.bars_figure({arm: f1_of_classes(runs) for arm, runs in chosen.items()}))
    panels = {}
    for arm, run in comparison.best.items():
        bins = reliability(run.test.labels, run.test.probabilities)
        drawn.calibration_error[arm] = bins.error
        sure = run.test.probabilities.max(axis=1).mean()
        lines = [fill(label_of(arm, 40), 26), f"accuracy {100 * scores_on_test(run)['accuracy']:.1f} %"]
        lines += [f"mean confidence {100 * sure:.1f} %", f"calibration error {100 * bins.error:.1f} %"]
        panels["\n".join(lines)] = bins
    drawn.add("reliability", charts.reliability_figure(panels), num_bins=NUM_BINS)


def draw_mistakes(comparison: Comparison, images: Mapping[str, ImageSet], drawn: Pictures) -> None:
    """Draw the most confident mistakes of each arm, on its own test images."""
    names = [label_of(name, 11) for name in comparison.runs[0].class_names]
    mistakes = {}
    for arm, run in comparison.best.items():
        labels, values = run.test.labels, run.test.probabilities
        wrong = np.flatnonzero(values.argmax(axis=1) != labels)
        rows = wrong[np.argsort(-values[wrong].max(axis=1), kind="stable")][:MAX_MISTAKES]
        texts = [
            f"true: {names[labels[row]]}\npredicted: {names[guess]}\nprobability {values[row, guess]:.3f}"
            + (f"\n{file_label(file, 20)}" if (file := run.test.files[row]) else "")
            for row, guess in zip(rows, values[rows].argmax(axis=1), strict=True)
        ]
        mistakes[_panel_title(arm, run)] = images[arm].batch(rows).numpy(), texts
    drawn.add("mistakes", sheets.mistakes_figure(mistakes), most=MAX_MISTAKES)


def draw_maps(opened: Mapping[str, Network], drawn: Pictures) -> None:
    """Draw maps of the features by t-SNE, and by UMAP if it is installed, with the accuracy of their neighbours."""
    features = {}  # by the titles of their maps
    for name, network in opened.items():
        if name == networks.FINETUNED_ENCODER:
            continue
        images = network.images  # of all networks the same, each prepared in its way
        rows = np.random.default_rng(SEED).permutation(len(images))[:MAX_POINTS]
        found = network(list(images.batch(rows).numpy()))
        try:
            probing.check_mappable(found)
        except ValueError as error:
            drawn.notes.append(f"No map of {name}: {error}")
            continue
        drawn.knn_accuracy[name] = probing.knn_accuracy(found, images.labels[rows])
        lines = [fill(name, 24), *([_SEEN[name]] if name in _SEEN else [])]
        features["\n".join([*lines, f"kNN accuracy {100 * drawn.knn_accuracy[name]:.1f} %"])] = found
    methods = {"embedding": ("t-SNE", probing.tsne)}
    if find_spec("umap"):
        methods["embedding_umap"] = ("UMAP", probing.umap)
    for file, (method, project) in methods.items() if features else ():
        points = {title: project(found, SEED) for title, found in features.items()}
        figure = charts.map_figure(points, images.labels[rows], images.class_names, method)
        drawn.add(file, figure, method=method, num_images=len(rows))
        if drawn.settings.thumbnails and method == "t-SNE":
            pixels = images.batch(rows).numpy()
            figure = sheets.thumbnails_figure(points, pixels, images.labels[rows], images.class_names)
            drawn.add("thumbnails", figure)


def draw_attention(opened: Mapping[str, Network], drawn: Pictures) -> None:
    """Draw the attention of CLS: the mean over heads for an image of each class, and every head for the first one.

    A network that prepares its images in another way than the one to its left has them beside its attention.
    """
    columns: list[tuple[str, Iterable[NDArray[Any]]]] = []
    every_head: list[tuple[str, Sequence[NDArray[Any]]]] = []
    labels, before = list[str](), np.empty(0, np.uint8)
    for name, network in opened.items():
        if name == networks.RANDOM_ENCODER:
            continue
        images = network.images
        order = np.random.default_rng(SEED).permutation(len(images))
        rows = order[np.unique(images.labels[order], return_index=True)[1]][:MAX_ATTENTION]
        try:
            heads = network.attention(rows)
        except ValueError as error:
            drawn.notes.append(f"No attention of {name}: {error}")
            continue
        pixels = images.batch(rows).numpy()
        columns += [] if np.array_equal(before, pixels) else [("image", pixels)]
        columns.append((fill(name, 14), heads.mean(axis=1)))
        every_head.append((fill(name, 14), [pixels[0], *heads[0]]))
        labels, before = [label_of(images.class_names[label], 14) for label in images.labels[rows]], pixels
    if not columns:
        return
    names, of_columns = zip(*columns, strict=True)
    rows_of_panels = list(zip(labels, zip(*of_columns, strict=True), strict=True))
    drawn.add("attention", sheets.attention_figure(rows_of_panels, names))
    titles = ["image", *(f"head {number}" for number in range(1, max(len(panels) for _, panels in every_head)))]
    drawn.add("attention_heads", sheets.attention_figure(every_head, titles))


def copy_reconstruction(inits: Sequence[str], drawn: Pictures) -> None:
    """Copy the picture of the first of these encoders' pre-training that has one: over time, else the newest."""
    for init in inits:
        origin = find_provenance(init)
        files = origin.folder.glob("figures/reconstruction*.png") if origin.folder else ()
        newest = max(files, key=lambda path: (path.name == OVER_TIME, path.stat().st_mtime, path.name), default=None)
        if newest:
            path = drawn.folder / "reconstruction.png"
            path.write_bytes(newest.read_bytes())
            is_normalised = origin.config is None or origin.config.model.norm_pix_loss
            caption = {"file": newest.name, "is_over_time": newest.name == OVER_TIME, "is_normalised": is_normalised}
            drawn.captions["reconstruction"] = {"path": path, "inches": figures.PAGE, **caption}
            return
    drawn.notes.extend(f"No reconstruction: {init} has no figures/reconstruction*.png" for init in dict.fromkeys(inits))


def _panel_title(arm: str, run: Run) -> str:
    name = label_of(Path(run.name).name, 40)
    return f"{label_of(arm, 40)}\n{name}, {100 * scores_on_test(run)['accuracy']:.1f} % accuracy"
