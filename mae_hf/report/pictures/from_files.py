"""Pictures that need nothing but the files of the runs: curves, confusion, F1, reliability, reconstructions.

Shapes: n test images, C classes.
"""

from mae_hf.evaluation.calibration import NUM_BINS, reliability
from mae_hf.evaluation.reconstruction import OVER_TIME
from mae_hf.figures import charts
from mae_hf.report.comparison import Comparison
from mae_hf.report.pictures.picture import Picture, Pictures, panel_title
from mae_hf.report.results import f1_of_classes, scores_on_test
from mae_hf.training.finished_runs import Run
from mae_hf.training.provenance import find_provenance


def draw_scores(comparison: Comparison, drawn: Pictures) -> None:
    """Draw curves, confusion matrices and F1 per class."""
    labels, class_names = comparison.runs[0].test.labels, comparison.runs[0].class_names
    given = comparison.arms
    chosen = dict(zip(given, comparison.chosen, strict=True))
    curves = charts.curves_figure(
        {arm: [run.history for run in runs] for arm, runs in chosen.items()},
        "Fine-tuning on the same labels",
        target=comparison.results.target,
        others={arm: [run.history for run in runs if run not in chosen[arm]] for arm, runs in given.items()},
    )
    confusion = charts.confusion_figure(
        {panel_title(arm, run): scores_on_test(run)["confusion_matrix"] for arm, run in comparison.best.items()},
        class_names,
        f"Confusion on the {len(labels):,} test images",
    )
    has_seeds = max(map(len, comparison.chosen)) > 1
    means = ", means over runs" if has_seeds else ""
    bars = charts.bars_figure(
        {arm: f1_of_classes(runs) for arm, runs in chosen.items()}, f"F1 on the {len(labels):,} test images{means}"
    )
    thin = " Bold is an arm's best run on validation, thin are the other runs of its recipe." if has_seeds else ""
    drawn.add(
        curves,
        "curves",
        "Curves",
        "Accuracy, macro-F1 and loss against the epoch of fine-tuning. Dotted: the best validation accuracy from "
        f"scratch.{thin} The training loss is not comparable with the validation loss if the recipe augments images "
        "and mixes or smooths labels.",
    )
    drawn.add(
        confusion,
        "confusion",
        "Confusion",
        "Test images by true class (row) and predicted class (column), shaded by their share of the row.",
    )
    drawn.add(bars, "f1_per_class", "F1 of each class", f"F1 of each class on the test images{means}.")


def draw_reliability(comparison: Comparison, drawn: Pictures) -> None:
    """Draw the reliability diagram of both arms, and note their expected calibration errors."""
    panels = {}
    for arm, run in comparison.best.items():
        labels, probabilities = run.test.labels, run.test.probabilities
        bins = reliability(labels, probabilities)
        drawn.calibration_error[arm] = bins.error
        sure = f"mean confidence {100 * probabilities.max(axis=1).mean():.1f} %"
        title = f"{panel_title(arm, run)}\n{sure}, calibration error {100 * bins.error:.1f} %"
        panels[title] = bins.counts, bins.confidence, bins.accuracy
    figure = charts.reliability_figure(panels, f"Reliability on the {len(labels):,} test images")
    few = f" {len(labels)} images are too few for {NUM_BINS} bins." if len(labels) < 10 * NUM_BINS else ""
    caption = (
        f"Test images in {NUM_BINS} bins of equal width by the probability of their predicted class, the confidence. "
        "Above: the accuracy of each bin. A bar below the dashed line means overconfidence, a bar above it "
        "underconfidence. Below: the number of images in each bin, on a logarithmic axis. The expected calibration "
        "error is the mean distance between accuracy and confidence, weighted by the images. Label smoothing and short "
        f"training keep confidence low. A smaller error does not make a better model.{few}"
    )
    drawn.add(figure, "reliability", "Reliability", caption)


def draw_reconstructions(run: Run, drawn: Pictures) -> None:
    """Copy the picture of the pre-training run that `run` started from: reconstructions over time, else the newest."""
    origin = find_provenance(run.config.model.init)
    files = origin.folder.glob("figures/reconstruction*.png") if origin.folder else ()
    found = sorted(files, key=lambda path: (path.stat().st_mtime, path.name))
    found = [path for path in found if path.name == OVER_TIME] or found
    if not found:
        drawn.notes.append(f"No reconstruction: {run.config.model.init} has no figures/reconstruction*.png")
        return
    copy = drawn.folder / "reconstruction.png"
    copy.write_bytes(found[-1].read_bytes())
    is_normalised = origin.config is None or origin.config.model.norm_pix_loss
    over_time = " during training" if found[-1].name == OVER_TIME else ""
    caption = (
        f"Held-out images, their visible patches, and the masked autoencoder's reconstructions{over_time} "
        f"({found[-1].name} of the pre-training run). Visible patches are copied."
        + (" Masked patches have their true mean and variance." if is_normalised else "")
    )
    drawn.pictures.append(Picture(copy, "Reconstruction", caption))
