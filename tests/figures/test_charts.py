"""Figures hold the data that they were given, are told apart without colour, and are written whole."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from mae_hf import figures

RNG = np.random.default_rng(0)
HISTORY = [
    {"step": 1, "epoch": 0.5, "train/loss": 2.0},
    {"step": 2, "epoch": 1.0, "eval/loss": 1.5, "eval/accuracy": 0.4, "eval/f1": 0.35},
    {"step": 4, "epoch": 2.0, "eval/loss": 1.0, "eval/accuracy": 0.6, "eval/f1": 0.55},
]


def pixels(n: int = 3, height: int = 8, width: int = 12) -> np.ndarray:
    """Random pictures."""
    return RNG.integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_hidden_patches_are_grey_and_the_others_untouched():
    images, mask = pixels(), RNG.integers(0, 2, (3, 6))  # 2 rows of 3 patches
    before = images.copy()
    hidden = figures.hide_patches(images, mask, 4)
    for image in range(3):
        for patch in range(6):
            row, column = divmod(patch, 3)
            place = image, slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
            assert (hidden[place] == (127 if mask[image, patch] else images[place])).all()
    assert np.array_equal(images, before)


def test_the_reconstruction_figure_has_three_labelled_rows_with_the_pixels_as_they_are():
    rows = [pixels() for _ in range(3)]
    figure = figures.reconstruction_figure(*rows, title="step 7")
    assert [place.get_ylabel() for place in figure.axes] == ["original", "masked", "reconstruction"]
    assert figure.get_suptitle() == "step 7"
    for place, images in zip(figure.axes, rows, strict=True):
        strip = np.asarray(place.images[0].get_array())
        for number, image in enumerate(images):
            assert np.array_equal(strip[:, 13 * number : 13 * number + 12], image)  # 12 wide and a gap of 1


def test_curves_show_each_key_of_each_run_in_its_own_units():
    figure = figures.curves_figure({"MAE": [HISTORY, HISTORY[:2]], "scratch": [HISTORY]}, "t", target=0.55)
    panels = {panel.get_ylabel(): panel for panel in figure.axes}
    assert list(panels) == ["validation accuracy (%)", "validation macro-F1 (%)", "training loss", "validation loss"]
    accuracy = panels["validation accuracy (%)"].lines
    assert accuracy[0].get_xydata().tolist() == [[1, 40], [2, 60]]
    assert accuracy[-1].get_ydata() == pytest.approx([55, 55])  # the target
    assert panels["validation loss"].lines[2].get_xydata().tolist() == [[1, 1.5], [2, 1.0]]
    assert all(panel.get_xlabel() == "epoch" for panel in figure.axes)
    first, second, scratch = accuracy[:3]
    assert first.get_linewidth() > second.get_linewidth()
    assert first.get_linestyle() != scratch.get_linestyle() and first.get_marker() != scratch.get_marker()
    assert [text.get_text() for text in figure.legends[0].texts] == ["MAE", "scratch", "best from scratch"]


@pytest.mark.parametrize(("keys", "expected"), [(("train/loss",), 1), (("eval/loss", "eval/f1", "train/loss"), 3)])
def test_there_are_only_panels_with_curves(keys, expected):
    figure = figures.curves_figure({"MAE": [HISTORY]}, "t", keys=(*keys, "never/logged"))
    assert len(figure.axes) == expected


def test_runs_without_any_of_the_keys_cannot_be_drawn():
    with pytest.raises(ValueError, match="none of the runs has any of eval/f1"):
        figures.curves_figure({"MAE": [HISTORY[:1]]}, "t", keys=("eval/f1",))


def test_confusion_matrices_show_counts_and_shade_parts_of_the_row():
    counts = [[30, 10], [0, 0]]
    figure = figures.confusion_figure({"MAE": counts, "scratch": [[1, 2], [3, 4]]}, ("cat", "dog"), "t")
    panel = figure.axes[0]
    assert np.asarray(panel.images[0].get_array()).tolist() == [[0.75, 0.25], [0, 0]]  # an absent class is not 0 / 0
    texts = {text.get_position(): text.get_text() for text in panel.texts}
    assert texts == {(0, 0): "30", (1, 0): "10", (0, 1): "0", (1, 1): "0"}
    assert (panel.get_xlabel(), panel.get_ylabel(), panel.get_title()) == ("predicted class", "true class", "MAE")
    assert [text.get_text() for text in panel.get_yticklabels()] == ["cat", "dog"]


def test_classes_on_the_map_are_told_apart_even_when_the_colours_begin_again():
    names = [f"class {i}" for i in range(40)]
    labels = np.repeat(np.arange(40), 2)
    points = RNG.normal(size=(80, 2))
    figure = figures.embedding_figure({"a": points, "b": -points}, labels, names, "t")
    dots = figure.axes[0].collections
    looks = {(tuple(d.get_facecolor()[0]), d.get_paths()[0].vertices.tobytes()) for d in dots}
    assert len(looks) == 40
    assert np.array_equal(np.concatenate([d.get_offsets() for d in dots]), points)
    first_ten = {d.get_paths()[0].vertices.tobytes() for d in dots[:10]}
    assert len(first_ten) == 10  # by marker alone, without colour
    assert [text.get_text() for text in figure.legends[0].texts] == names


def test_bars_are_as_high_as_the_scores_and_hatched_by_arm():
    figure = figures.bars_figure({"MAE": {"cat": 0.5, "dog": 1.0}, "scratch": {"cat": 0.25, "dog": 0.0}}, "t")
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [50, 100, 25, 0]
    assert len({bar.get_hatch() for bar in bars}) == 2
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)
    assert all(right <= left + 1e-9 for (_, right), (left, _) in pairwise(edges))
    assert figure.axes[0].get_ylabel() == "test F1 (%)"


def test_a_figure_is_saved_whole_and_an_older_one_is_replaced(tmp_path):
    path = tmp_path / "new" / "curves.png"
    for _ in range(2):
        assert figures.save(figures.curves_figure({"MAE": [HISTORY]}, "t"), path) == path
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG" and 800 < picture.width < 2000


def test_a_figure_that_cannot_be_drawn_leaves_the_older_one_and_nothing_beside_it(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"older")
    figure = figures.curves_figure({"MAE": [HISTORY]}, "$\\nonsense{$")
    with pytest.raises(ValueError, match="nonsense"):
        figures.save(figure, path)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


def test_importing_figures_starts_no_pyplot_and_changes_no_setting():
    # Reading rcParams["backend"] would itself import pyplot.
    code = """if True:
        import sys, matplotlib
        settings = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}
        before = settings()
        import mae_hf.figures
        assert "matplotlib.pyplot" not in sys.modules
        assert settings() == before
    """
    subprocess.run([sys.executable, "-c", code], check=True)
