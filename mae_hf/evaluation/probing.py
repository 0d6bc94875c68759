"""What features are worth: every probe on both poolings, the dimensions in use, and maps by t-SNE or UMAP.

Shapes: n images, D features, C classes. A map is float32 (n, 2), of features (n, D) that pass `check_mappable`; the
same seed gives the same map.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from scipy import stats
from sklearn import manifold
from sklearn.neighbors import NearestNeighbors
from torch import nn

from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import ImageSet
from mae_hf.errors import ConfigError, require, warn
from mae_hf.evaluation.inference import POOLINGS, infer, pooled_features
from mae_hf.evaluation.metrics import classification_metrics, unseen_metrics
from mae_hf.evaluation.probes import CLASSIFIERS, NUM_NEIGHBOURS, TEMPERATURE, Head, Labelled, check_features

ONLINE_IMAGES = 5_000  # of train and of validation at most
LINEAR_CLASSES = 100  # at most: with 1,000, a logistic regression on 5,000 images would take an hour
_VOTE = f"k {NUM_NEIGHBOURS}, temperature {TEMPERATURE:g}"
ONLINE_NOTE = f"kNN ({_VOTE}) from labelled train images to validation images, never test images"


def probe_features(
    probes: Sequence[str], features: Mapping[str, np.ndarray], images: Mapping[str, ImageSet], seen: np.ndarray | None
) -> tuple[dict[str, float], dict[str, dict[str, np.ndarray]]]:
    """Return the scores and the predictions of some of the probes `knn`, `linear`, `head` and `rank`.

    Images and `pooled_features` of them, float (n, 2, D), are by role (`train`, `validation`, `test`). `seen` is bool
    (n,), whether pre-training has seen each test image; None if that is unknown. Metrics by `PROBE/POOLING/NAME` are
    `scores_of` the test images, `validation_accuracy` and the probe's settings, or `rankme` and `participation_ratio`
    of the train images. Probabilities, float32 (n, C), are by `PROBE-POOLING` and role (`validation`, `test`). Features
    of a broken encoder, and labels of one class only, are a ConfigError.
    """
    metrics, probabilities = dict[str, float](), {}
    labels, class_names = {role: part.labels for role, part in images.items()}, images["train"].class_names
    for number, pooling in enumerate(POOLINGS):
        train = Labelled(features["train"][:, number], labels["train"])
        others = np.concatenate([features[role][:, number] for role in ("validation", "test")])
        for name in probes:
            if name == "rank":
                scores = {"rankme": rankme(train.features), "participation_ratio": participation_ratio(train.features)}
            else:
                probe = CLASSIFIERS[name](train, others, len(class_names))
                validation, test = np.split(probe.probabilities, [len(labels["validation"])])
                probabilities[f"{name}-{pooling}"] = {"validation": validation, "test": test}
                scores = scores_of(test, labels["test"], class_names, seen)
                scores["validation_accuracy"] = float((validation.argmax(axis=1) == labels["validation"]).mean())
                scores |= probe.settings
            metrics |= {f"{name}/{pooling}/{quantity}": value for quantity, value in scores.items()}
    return metrics, probabilities


def scores_of(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], seen: np.ndarray | None = None
) -> dict[str, float]:
    """Return `accuracy` and macro-`f1` of the most probable class, but no loss: a vote has probabilities of 0.

    `unseen_accuracy` and `unseen_f1` follow, if pre-training has not seen all of the images (`seen` is bool (n,)).
    """
    scores = classification_metrics(probabilities, labels, class_names)
    unseen = unseen_metrics(probabilities, labels, class_names, seen)
    found = {key: scores[key] for key in ("accuracy", "f1")}
    return found | {f"unseen_{key}": unseen[name] for key in found if (name := f"test_unseen/{key}") in unseen}


def rankme(features: np.ndarray) -> float:
    """Return exp of the entropy of the normalised singular values of features (n, D), from 1 to min(n, D).

    Features are neither centred nor scaled. ConfigError if a broken encoder made them. The value depends on the
    images and their number: compare encoders on the same images.

    Source: Garrido et al. 2023 (arXiv 2210.02885), equations 1 and 2.
    """
    check_features(features=features)
    values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    parts = values / values.sum() + 1e-7
    return float(np.exp(-(parts * np.log(parts)).sum()))


def participation_ratio(features: np.ndarray) -> float:
    """Return the effective rank of the covariance: (sum of its eigenvalues)² / sum of their squares, from 1 to D.

    Equal variance in all directions gives D, a line 1, a single image 0, and a broken encoder a ConfigError.

    Source: Gao et al. 2017, A theory of multineuronal dimensionality, dynamics and measurement (bioRxiv 214262).
    """
    check_features(features=features)
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean(axis=0)
    covariance = centred.T @ centred
    squares = float((covariance**2).sum())  # of the eigenvalues, too: the matrix is symmetric
    return float(np.trace(covariance) ** 2 / squares) if squares else 0.0


def encoder_probe(
    accelerator: Accelerator, encoder: nn.Module | None, train: ImageSet, validation: ImageSet,
    data: DataConfig, batch_size: int, probes: Sequence[str],
) -> tuple[dict[str, float], Head | None]:  # fmt: skip
    """Probe an encoder on labelled validation images; return values by name, and the classifier of `linear` on CLS.

    `encoder` is a `ViTModel` in eval mode on the device, not prepared. If sharded, it is whole on the main process
    alone, and the others give None. The main process fits the probes, and all get its results: the values
    `probe/PROBE_POOLING_accuracy` and `_f1` for `knn` and `linear`, and `probe/rankme_POOLING` of the train images for
    `rank`. More than 100 classes have no `linear`. Features of a broken encoder and labels of one class have no
    values, and a warning: a probe must not stop training.
    """
    alone = not all(gather_object([encoder is not None]))
    if encoder is not None:
        with accelerator.autocast():
            voters, queries = (
                infer(accelerator, pooled_features, encoder, images, data, batch_size, alone=alone)
                for images in (train, validation)
            )
    values, head, num_classes = dict[str, float](), None, len(train.class_names)
    try:
        poolings = enumerate(POOLINGS) if accelerator.is_main_process else ()
        for (number, pooling), name in itertools.product(poolings, probes):
            labelled = Labelled(voters[:, number], train.labels)
            if name == "rank":
                values[f"probe/rankme_{pooling}"] = rankme(labelled.features)
            elif name != "linear" or num_classes <= LINEAR_CLASSES:
                probe = CLASSIFIERS[name](labelled, queries[:, number], num_classes)
                scores = scores_of(probe.probabilities, validation.labels, train.class_names)
                values |= {f"probe/{name}_{pooling}_{key}": value for key, value in scores.items()}
                head = head or probe.head  # CLS comes first
    except ConfigError as error:
        values, head = {}, None
        warn(f"this encoder is not probed: {str(error).partition(':')[0]}")
    return broadcast_object_list([(values, head)])[0]


def best_probe(values: Mapping[str, float], name: str) -> tuple[float, str] | None:
    """Return the accuracy and the pooling of the better of `name`'s two probes; None if it was not probed."""
    found = [(values[key], pooling) for pooling in POOLINGS if (key := f"probe/{name}_{pooling}_accuracy") in values]
    return max(found, default=None)


def tsne(features: np.ndarray, seed: int) -> np.ndarray:
    """Return the t-SNE map (van der Maaten and Hinton 2008) of features, started from their principal components."""
    # The perplexity counts effective neighbours; sklearn's default of 30 means little among fewer than 90 images.
    perplexity = min(30.0, (len(features) - 1) / 3)
    method = manifold.TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return method.fit_transform(features)


def umap(features: np.ndarray, seed: int) -> np.ndarray:
    """Return the UMAP map (arXiv 1802.03426) of features; ImportError without umap-learn (the extra `umap`)."""
    from umap import UMAP  # optional, and compiles for seconds

    # Only one thread gives the same map for the same seed. Few images have no spectral start.
    start = "spectral" if len(features) > 15 else "random"
    model = UMAP(n_neighbors=min(15, len(features) - 1), init=start, random_state=seed, n_jobs=1)
    return model.fit_transform(features)


def check_mappable(features: np.ndarray) -> None:
    """Raise a ConfigError for features that cannot be mapped."""
    require(min(features.shape) >= 3, f"features of shape {features.shape}: a map needs at least 3 images, 3 features")
    check_features(features=features)


def knn_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose 5 nearest neighbours, by cosine similarity, vote for their class."""
    search = NearestNeighbors(n_neighbors=min(5, len(features) - 1), metric="cosine").fit(features)
    votes = labels[search.kneighbors(return_distance=False)]  # no image is its own neighbour
    return float((stats.mode(votes, axis=1).mode == labels).mean())
