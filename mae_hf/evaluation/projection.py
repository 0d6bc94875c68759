"""Features as a map in two dimensions, by t-SNE or UMAP, and how far its neighbourhoods can be trusted."""

import numpy as np
from sklearn.manifold import TSNE
from sklearn.manifold import trustworthiness as sklearn_trustworthiness


def tsne(features: np.ndarray, seed: int) -> np.ndarray:
    """The t-SNE map of `features`, started from their principal components; the same for the same seed.

    Args:
        features: float (n, D), n and D at least 3.
        seed: seed of the optimisation.

    Returns:
        float32 (n, 2).

    Raises:
        ValueError: too few images or features, values that are not finite, or all the same.

    Source: van der Maaten and Hinton 2008, Visualizing Data using t-SNE.
    """
    check_features(features)
    # The perplexity counts effective neighbours; sklearn's default of 30 means little among fewer than 90 images.
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(features)


def umap(features: np.ndarray, seed: int) -> np.ndarray:
    """The UMAP map of `features`, with the library's own 15 neighbours; the same for the same seed.

    Args:
        features: float (n, D), n and D at least 3.
        seed: seed of the optimisation.

    Returns:
        float32 (n, 2).

    Raises:
        ValueError: too few images or features, values that are not finite, or all the same.
        ImportError: umap-learn is not installed (the extra `umap`).

    Source: McInnes, Healy and Melville 2018, arXiv 1802.03426.
    """
    from umap import UMAP  # compiles for seconds, and is optional

    check_features(features)
    # One thread, as the same seed gives the same map only so. Among few images there is no spectral start.
    start = "spectral" if len(features) > 15 else "random"
    model = UMAP(n_neighbors=min(15, len(features) - 1), init=start, random_state=seed, n_jobs=1)
    return model.fit_transform(features)


def check_features(features: np.ndarray) -> None:
    """Raises a ValueError, in one line, for features that cannot be mapped."""
    if min(features.shape) < 3:
        raise ValueError(f"features of shape {features.shape}: a map needs at least 3 images and 3 features")
    bad = int((~np.isfinite(features)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {features.size} features are not finite: the encoder's weights or its inputs are broken"
        )
    if (features == features[0]).all():
        raise ValueError("the features of all images are the same: the encoder tells nothing apart")


def trustworthiness(features: np.ndarray, points: np.ndarray) -> float:
    """Part (0 to 1) of the neighbourhoods in the map that are neighbourhoods of the features too.

    Args:
        features: float (n, D).
        points: float (n, 2), their map.

    Returns:
        1 when each of an image's 5 neighbours in the map is a neighbour among the features.

    Source: Venna and Kaski 2001, Neighborhood preservation in nonlinear projection methods.
    """
    return float(sklearn_trustworthiness(features, points, n_neighbors=min(5, (len(features) - 1) // 2)))
