"""Features as a map in two dimensions, by t-SNE or UMAP, and how well their neighbourhoods match the classes.

A map is float32 (n, 2), from features (n, D) that pass `check_mappable`. The same seed gives the same map.
"""

import numpy as np
from scipy import stats
from sklearn import manifold
from sklearn.neighbors import NearestNeighbors

from mae_hf.errors import require
from mae_hf.evaluation.probes import check_features


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
