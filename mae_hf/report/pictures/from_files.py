"""Pictures that need nothing but the files of the runs: curves, confusion, F1, reliability, reconstructions.

Shapes: n test images, C classes.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae_hf import figures
from mae_hf.comparison.compare import PRETRAINED, SCRATCH, Comparison
from mae_hf.comparison.provenance import find_provenance
from mae_hf.comparison.runs import Run
from mae_hf.evaluation.calibration import NUM_BINS, reliability
from mae_hf.evaluation.reconstruction import OVER_TIME
from mae_hf.figures import charts
from mae_hf.report.pictures.picture import Picture, arms


def draw_scores(comparison: Comparison, folder: Path) -> list[Picture]:
    """Curves, confusion matrices and F1 per class."""
    chosen, labels = arms(comparison), comparison.scratch[0].labels
    curves = charts.curves_figure(
        {
            PRETRAINED: [run.history for run in comparison.pretrained],
            SCRATCH: [run.history for run in comparison.scratch],
        },
        "Fine-tuning on the same labels",
        target=comparison.results.target,
    )
    class_names = comparison.scratch[0].class_names
    confusion = charts.confusion_figure(
        {name: run.scores["confusion_matrix"] for name, run in chosen.items()},
        class_names,
        f"Confusion on the {len(labels):,} test images",
    )
    tested = {class_names[label] for label in np.unique(labels)}
    bars = charts.bars_figure(
        {
            arm: {name: run.scores["f1_per_class"][name] if name in tested else math.nan for name in class_names}
            for arm, run in chosen.items()
        },
        f"F1 on the {len(labels):,} test images",
    )
    bold = " Bold is the best run by validation accuracy of the recipe that speaks for an arm, thin all others."
    thin = bold if len(comparison.runs) > 2 else ""
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


def draw_reliability(
    comparison: Comparison, probabilities: dict[str, NDArray[np.float64]], folder: Path
) -> tuple[Picture, dict[str, float]]:
    """The reliability diagram of both arms, and their expected calibration errors."""
    labels = comparison.scratch[0].labels
    by_arm = {arm: reliability(labels, values) for arm, values in probabilities.items()}
    errors = {arm: bins.error for arm, bins in by_arm.items()}
    figure = charts.reliability_figure(
        {
            f"{arm}\nexpected calibration error {100 * bins.error:.1f} %": (bins.counts, bins.confidence, bins.accuracy)
            for arm, bins in by_arm.items()
        },
        f"Reliability on the {len(labels):,} test images",
    )
    few = f" With {len(labels)} images in {NUM_BINS} bins this says little." if len(labels) < 10 * NUM_BINS else ""
    caption = (
        f"Test images in {NUM_BINS} bins of equal width by the probability of their predicted class. Above: the part "
        "of each bin that is right; below the dashed line the model is too sure of itself, above it not sure enough. "
        "Below: how many images a bin holds, on a logarithmic axis. The expected calibration error is the mean "
        f"distance between accuracy and confidence, weighted by the images.{few}"
    )
    return Picture(figures.save(figure, folder / "reliability.png"), "Reliability", caption), errors


def draw_reconstructions(run: Run, folder: Path, notes: list[str]) -> list[Picture]:
    """A copy of what the pre-training run that `run` started from drew: reconstructions over time, else the newest."""
    origin = find_provenance(run.config.model.init).folder
    drawn = origin.glob("figures/reconstruction*.png") if origin else ()
    found = sorted(drawn, key=lambda path: (path.stat().st_mtime, path.name))
    found = [path for path in found if path.name == OVER_TIME] or found
    if found:
        copy = folder / "reconstruction.png"
        copy.write_bytes(found[-1].read_bytes())
        over_time = " as training went on" if found[-1].name == OVER_TIME else ""
        caption = (
            "Held-out images, what the encoder saw of them, and what the masked autoencoder made of it"
            f"{over_time} ({found[-1].name} of the pre-training run). Where it predicts normalised patches, the title "
            "says whose mean and variance the picture has."
        )
        return [Picture(copy, "Reconstruction", caption)]
    notes.append(f"No reconstruction: {run.config.model.init} has no figures/reconstruction*.png")
    return []
