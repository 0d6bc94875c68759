"""The picture of an audit: each image beside the image that it duplicates."""

import numpy as np
from matplotlib.figure import Figure

from mae_hf.leakage.near_duplicates import Duplicates

SHOWN = 48  # pairs; the file has them all
COLUMNS = 4


def pairs_figure(images: np.ndarray, against: np.ndarray, found: Duplicates, rows: np.ndarray, title: str) -> Figure:
    """Draw pairs side by side with their rows and score, the least certain first.

    Args:
        images: np.uint8 (N, H, W, 3).
        against: np.uint8 (M, H, W, 3).
        found: pairs of indices into both.
        rows: np.int64 (K, 2), the row numbers to write above each pair.
        title: which splits were compared.
    """
    order = np.argsort(found.scores, kind="stable")[:SHOWN]
    num_lines = max(1, -(-len(order) // COLUMNS))
    figure = Figure(figsize=(2.6 * COLUMNS, 1.55 * num_lines + 0.7), layout="constrained")
    panels = figure.subplots(num_lines, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, number in zip(panels, order, strict=False):
        left, right = images[found.pairs[number, 0]], against[found.pairs[number, 1]]
        gap = np.full((len(left), max(1, len(left) // 16), 3), 255, np.uint8)
        panel.imshow(np.concatenate([left, gap, right], axis=1), interpolation="nearest")
        kind = "exact" if found.exact[number] else f"near, {found.scores[number]:.2f}"
        panel.set_title(f"{rows[number, 0]} and {rows[number, 1]}: {kind}", fontsize=8)
    more = f"; {len(found) - SHOWN:,} more are not shown" if len(found) > SHOWN else ""
    figure.suptitle(f"{title}: {len(found):,} pairs, the least certain first{more}", fontsize=10)
    return figure
