"""Pictures that need the test images, and most of them the networks: mistakes, maps of features, attention.

Shapes: n test images, C classes, H heads, G² patches in G rows.
"""

from importlib.util import find_spec
from textwrap import fill

import numpy as np
from numpy.typing import NDArray

from mae_hf.data.dataset import ImageSet
from mae_hf.evaluation import projection
from mae_hf.figures import charts, label_of, sheets
from mae_hf.report import networks
from mae_hf.report.comparison import Comparison
from mae_hf.report.networks import Network
from mae_hf.report.pictures.picture import Pictures, panel_title

MAX_POINTS = 1000
MAX_MISTAKES = 9
MAX_ATTENTION = 6
SEED = 0  # of the drawn test images and of the maps
# What each network of a map has learned from.
_SEEN = {
    networks.PRETRAINED_ENCODER: "no labels seen",
    networks.RANDOM_ENCODER: "random weights",
    networks.SUPERVISED_ENCODER: "labels seen",
}


def draw_mistakes(comparison: Comparison, images: ImageSet, drawn: Pictures) -> None:
    """Draw the most confident mistakes of each arm."""
    names = [label_of(name, 18) for name in comparison.runs[0].class_names]
    mistakes = {}
    for arm, run in comparison.best.items():
        labels, values = run.test.labels, run.test.probabilities
        wrong = np.flatnonzero(values.argmax(axis=1) != labels)
        rows = wrong[np.argsort(-values[wrong].max(axis=1), kind="stable")][:MAX_MISTAKES]
        predicted = values[rows].argmax(axis=1)
        texts = [
            f"true: {names[labels[row]]}\npredicted: {names[guess]}\nprobability {values[row, guess]:.3f}"
            for row, guess in zip(rows, predicted, strict=True)
        ]
        mistakes[panel_title(arm, run)] = images.batch(rows).numpy(), texts
    drawn.add(
        sheets.mistakes_figure(mistakes, "The most confident mistakes"),
        "mistakes",
        "The most confident mistakes",
        f"Up to {MAX_MISTAKES} misclassified test images of each arm, those with the greatest probability first. Below "
        "each image: its true class, the predicted class and its probability.",
    )


def draw_maps(opened: dict[str, Network], images: ImageSet, drawn: Pictures) -> None:
    """Draw maps of the features by t-SNE, and by UMAP if it is installed; note t-SNE's trustworthiness."""
    rows = np.random.default_rng(SEED).permutation(len(images))[:MAX_POINTS]
    features = {}
    for name in [name for name in _SEEN if name in opened]:
        found = opened[name].features(images, rows)
        try:
            projection.check_features(found)
        except ValueError as error:
            drawn.notes.append(f"No map of {name}: {error}")
        else:
            features[name] = found
    for method, file, project in (
        ("t-SNE", "embedding", projection.tsne),
        ("UMAP", "embedding_umap", projection.umap),
    ):
        if not features or (method == "UMAP" and not find_spec("umap")):
            continue
        points = {}
        for name, found in features.items():
            mapped = project(found, SEED)
            trust = projection.trustworthiness(found, mapped)
            points[f"{name}: {_SEEN[name]}\ntrustworthiness {trust:.3f}"] = mapped
            if method == "t-SNE":
                drawn.trustworthiness[name] = trust
        figure = charts.map_figure(
            points,
            images.labels[rows],
            images.class_names,
            method,
            f"{method} of the CLS features of {len(rows):,} test images",
        )
        caption = (
            f"The same test images, mapped by {method} of the frozen networks' features. The MAE encoder has seen no "
            "labels, the untrained network no images, and the scratch baseline all labels. Distances between groups "
            "mean little. Trustworthiness (0 to 1) says how far neighbours in the map are neighbours in the features."
        )
        drawn.add(figure, file, f"Features as a map ({method})", caption)


def draw_attention(opened: dict[str, Network], images: ImageSet, drawn: Pictures) -> None:
    """Draw the attention of CLS: the mean over heads for an image of each class, and every head for the first one."""
    rows = _one_of_each_class(images.labels)[:MAX_ATTENTION]
    maps = {}
    for name in [name for name in opened if name != networks.RANDOM_ENCODER]:
        try:
            maps[name] = opened[name].attention(images, rows)
        except ValueError as error:
            drawn.notes.append(f"No attention of {name}: {error}")
    if not maps:
        return
    pixels = images.batch(rows).numpy()
    labelled = [
        (label_of(images.class_names[images.labels[row]], 14), image) for row, image in zip(rows, pixels, strict=True)
    ]
    means = {fill(name, 14): heads.mean(axis=1) for name, heads in maps.items()}
    figure = sheets.attention_figure(labelled, means, "Attention of CLS over the patches: last layer, mean of heads")
    first = np.stack([heads[0] for heads in maps.values()])  # (networks, H, G, G)
    per_head = sheets.attention_figure(
        [(fill(name, 14), pixels[0]) for name in maps],
        {f"head {head + 1}": first[:, head] for head in range(first.shape[1])},
        "Each head separately, for the first image",
    )
    scale = (
        "Bright patches get more attention than an even spread (1), dark ones less. Values beyond the arrow of the "
        "scale have the colour of its end."
    )
    drawn.add(
        figure,
        "attention",
        "Attention",
        "How much the CLS token, which is classified, attends to each patch of some test images in the last layer. "
        f"This is the mean over heads, which can cancel each other. {scale} Before fine-tuning, CLS has no training "
        "signal.",
    )
    drawn.add(
        per_head,
        "attention_heads",
        "Attention of each head",
        "The first of these images, with a row for each network and a column for each head of its last layer. The "
        f"scale differs from the picture above. {scale}",
    )


def _one_of_each_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a random row of each class, with the seed of the maps."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    return order[first]
