"""The picture of an audit shows the pairs that are least certain first."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import open_stores
from mae_hf.data.sources import load_splits
from mae_hf.leakage.matches import COLUMNS, NUM_DRAWN, describe_copies, pairs_figure


def draw(num: int):
    random = np.random.default_rng(0)
    images, against = (random.integers(0, 256, (num, 12, 12, 3), np.uint8) for _ in range(2))
    found = pd.DataFrame({"image": np.arange(num), "against": np.arange(num)[::-1]})
    found["score"] = np.linspace(1, 0.83, num, dtype=np.float32)
    found = found.assign(
        kind=np.where(found["score"] == 1, "exact", "near"),
        row=found["image"] + 100,
        against_row=found["against"] + 100,
    )
    return images, against, pairs_figure(images, against, found, "unlabeled and test")


def test_pairs_are_drawn_side_by_side_with_rows_and_score_the_least_certain_first():
    images, against, figure = draw(3)
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["102 and 100: near, 0.83", "101 and 101: near, 0.92", "100 and 102: exact"]
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert (shown[:, :12] == images[2]).all()
    assert (shown[:, -12:] == against[0]).all()


def test_a_picture_of_many_pairs_says_how_many_are_not_shown():
    _, _, figure = draw(NUM_DRAWN + 1000)
    assert len(figure.axes) == NUM_DRAWN
    assert len(figure.axes) % COLUMNS == 0
    assert "1,048 pairs" in figure.get_suptitle()
    assert "1,000 more are not shown" in figure.get_suptitle()


def test_copies_within_a_split_in_two_classes_and_in_the_test_images_are_described(image_folder: Path):
    data = DataConfig(source=str(image_folder))

    def found() -> list[str]:
        return [
            str(finding)
            for finding in describe_copies(open_stores(list(load_splits(data, data.source).values()), 12, data))
        ]

    assert {line.split()[0] for line in found()} == {"ok"} and len(found()) == 2
    for copy in ("train/dog/wrong.png", "test/cat/leak.png"):
        shutil.copy(image_folder / "train/cat/03.png", image_folder / copy)
    shutil.copy(image_folder / "train/cat/04.png", image_folder / "train/cat/twice.png")
    two_classes, twice, leak, no_leak = found()
    assert two_classes.startswith("fault  train has 1 of its images in two classes")
    assert "cat/03.png" in two_classes and "dog/wrong.png" in two_classes
    assert twice.startswith("note   train has 1 of its images more than once") and "cat/twice.png" in twice
    assert (
        leak.startswith("fault  2 of 22 images of train duplicate or nearly duplicate images of test")
        and "test/cat/leak.png" in leak
    )
    assert no_leak.startswith("ok     no duplicates or near-duplicates of images of test are in unlabeled")
