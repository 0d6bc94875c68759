"""Draw docs/results/readme.png from the results of `stl10_tiny`: accuracy beside reconstructions.

python docs/results/picture.py    # from the root of the repository
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from scipy.stats import binomtest

FOLDER = Path(__file__).parent
NAMES = {
    "stl10_tiny": "MAE pre-trained",
    "stl10_tiny-scratch": "from scratch,\nsame recipe",
    "stl10_tiny-scratch-flat": "from scratch,\nno layer decay",
}
LEFT, TOP, SIDE, STEP = 23, 31, 113, (120.5, 128.7)  # of the tiles in reconstruction.png, in pixels
NUM_COLUMNS = 5  # the first ones of the file's eight


def accuracies() -> list[tuple[str, float, float, float]]:
    """Name, test accuracy, and its 95 % Wilson interval over the test images, in per cent."""
    comparison = json.loads((FOLDER / "stl10_tiny/comparison.json").read_text())
    num_images = sum(map(sum, comparison["confusion_matrix"]["MAE pre-trained"]))
    rows = []
    for run in comparison["runs"]:
        num_right = round(run["test_accuracy"] * num_images)
        interval = binomtest(num_right, num_images).proportion_ci(method="wilson")
        name = NAMES[Path(run["run"]).name]
        rows.append((name, 100 * run["test_accuracy"], 100 * interval.low, 100 * interval.high))
    return rows


def main() -> None:
    """Draw the picture."""
    figure = plt.figure(figsize=(11, 3.9), dpi=150)
    bars, tiles = figure.subplots(1, 2, width_ratios=(1, 1.55))
    rows = accuracies()
    for place, (name, value, low, high) in enumerate(reversed(rows)):
        color = "#1b6ca8" if name == "MAE pre-trained" else "#9aa5ad"
        bars.barh(place, value, color=color, height=0.62)
        bars.errorbar(value, place, xerr=[[value - low], [high - value]], color="black", capsize=4, lw=1.3)
        bars.text(2, place, f"{value:.1f} %", va="center", color="white", weight="bold", size=13)
    bars.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)], size=10.5)
    bars.set_xlim(0, 70)
    bars.set_xlabel("test accuracy, 4,500 labels, 8,000 test images", size=10)
    bars.spines[["top", "right", "left"]].set_visible(False)
    bars.tick_params(left=False)

    image = plt.imread(FOLDER / "stl10_tiny/reconstruction.png")
    bottom, right = (
        round(start + (num - 1) * step + SIDE)
        for start, num, step in zip((TOP, LEFT), (3, NUM_COLUMNS), STEP[::-1], strict=True)
    )
    tiles.imshow(image[TOP : bottom + 1, LEFT : right + 1], interpolation="lanczos")
    tiles.set_yticks(
        [SIDE / 2 + row * STEP[1] for row in range(3)],
        ["photograph", "visible\npatches", "recon-\nstructed"],
        size=10.5,
    )
    tiles.set_xticks([])
    tiles.tick_params(left=False)
    tiles.spines[:].set_visible(False)
    figure.tight_layout(w_pad=2.5)
    figure.savefig(FOLDER / "readme.png")


if __name__ == "__main__":
    main()
