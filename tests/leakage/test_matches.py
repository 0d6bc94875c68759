"""The picture of an audit shows the pairs that are least certain first."""

import numpy as np
import pandas as pd

from mae_hf.leakage.matches import COLUMNS, NUM_DRAWN, pairs_figure


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
