"""Features as a map: t-SNE in two dimensions, and how far its neighbourhoods can be trusted."""

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
        ValueError: too few images or features, or values that are not finite.

    Source: van der Maaten and Hinton 2008, Visualizing Data using t-SNE.
    """
    if min(features.shape) < 3:
        raise ValueError(f"features of shape {features.shape}: t-SNE needs at least 3 images and 3 features")
    # The perplexity counts effective neighbours; sklearn's default of 30 means little among fewer than 90 images.
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(features)


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
