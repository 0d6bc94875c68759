"""The picture of an audit: each image beside the one that it is a copy of."""

import numpy as np
from matplotlib.figure import Figure

from mae_hf.leakage.near_copies import Copies

SHOWN = 48  # pairs; the file has them all
COLUMNS = 4


def pairs_figure(images: np.ndarray, against: np.ndarray, copies: Copies, rows: np.ndarray, title: str) -> Figure:
    """Pairs side by side with their rows and score, those that are least certain first.

    Args:
        images: np.uint8 (N, H, W, 3).
        against: np.uint8 (M, H, W, 3).
        copies: pairs of indices into both.
        rows: np.int64 (K, 2), what the images of each pair are called.
        title: what was compared with what.
    """
    order = np.argsort(copies.scores, kind="stable")[:SHOWN]
    num_lines = max(1, -(-len(order) // COLUMNS))
    figure = Figure(figsize=(2.6 * COLUMNS, 1.55 * num_lines + 0.7), layout="constrained")
    places = figure.subplots(num_lines, COLUMNS, squeeze=False).ravel()
    for place in places:
        place.axis("off")
    for place, number in zip(places, order, strict=False):
        left, right = images[copies.pairs[number, 0]], against[copies.pairs[number, 1]]
        gap = np.full((len(left), max(1, len(left) // 16), 3), 255, np.uint8)
        place.imshow(np.concatenate([left, gap, right], axis=1), interpolation="nearest")
        kind = "equal" if copies.equal[number] else f"near, {copies.scores[number]:.2f}"
        place.set_title(f"{rows[number, 0]} and {rows[number, 1]}: {kind}", fontsize=8)
    more = f"; {len(copies) - SHOWN:,} more are not shown" if len(copies) > SHOWN else ""
    figure.suptitle(f"{title}: {len(copies):,} pairs, the least certain first{more}", fontsize=10)
    return figure
