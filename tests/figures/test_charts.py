"""Charts hold the numbers that they were given, and are readable without colour."""

from itertools import pairwise

import numpy as np
import pytest

from mae_hf.figures import COLUMN, PAGE, charts

RNG = np.random.default_rng(0)
HISTORY = [
    {"step": 1, "epoch": 0.5, "train/loss": 2.0},
    {"step": 2, "epoch": 1.0, "eval/loss": 1.5, "eval/accuracy": 0.4, "eval/f1": 0.35},
    {"step": 4, "epoch": 2.0, "eval/loss": 1.0, "eval/accuracy": 0.6, "eval/f1": 0.55},
]


def test_curves_show_each_key_of_each_run_in_its_own_units():
    arms, others = {"MAE": [HISTORY, HISTORY[:2]], "scratch": [HISTORY]}, {"MAE": [], "scratch": [HISTORY[:2]]}
    figure = charts.curves_figure(arms, target=0.55, others=others)
    panels = {panel.get_ylabel().replace("\n", " "): panel for panel in figure.axes}
    assert list(panels) == [
        "validation accuracy (%)",
        "validation macro-F1 (%)",
        "training loss (nats)",
        "validation loss (nats)",
    ]
    accuracy = panels["validation accuracy (%)"].lines
    assert accuracy[0].get_xydata().tolist() == [[1, 40], [2, 60]]
    assert accuracy[-1].get_ydata() == pytest.approx([55, 55])  # the target
    assert panels["validation loss (nats)"].lines[2].get_xydata().tolist() == [[1, 1.5], [2, 1.0]]
    assert all(panel.get_xlabel() == "epoch" for panel in figure.axes)
    first, second, scratch, other = accuracy[:4]
    assert other.get_color() not in (first.get_color(), scratch.get_color())
    assert first.get_linewidth() > second.get_linewidth()
    assert first.get_linestyle() != scratch.get_linestyle() and first.get_marker() != scratch.get_marker()
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "MAE",
        "scratch",
        "scratch, other recipes",
        "scratch's best, 55.0 %",
    ]


@pytest.mark.parametrize(("keys", "expected"), [(("train/loss",), 1), (("eval/loss", "eval/f1", "train/loss"), 3)])
def test_there_are_only_panels_with_curves(keys, expected):
    history = [{key: line[key] for key in ("epoch", *keys) if key in line} for line in HISTORY]
    assert len(charts.curves_figure({"MAE": [history]}).axes) == expected


def test_confusion_matrices_show_counts_and_shade_parts_of_the_row():
    counts = [[30, 10], [0, 0]]
    figure = charts.confusion_figure({"MAE": counts, "scratch": [[1, 2], [3, 4]]}, ("cat", "dog"))
    panel, second, *bars = figure.axes
    assert panel.images[0].get_clim() == (0, 0.75) and second.images[0].get_clim() == (0, 2 / 3) and len(bars) == 2
    assert np.asarray(panel.images[0].get_array()).tolist() == [[0.75, 0.25], [0, 0]]  # an absent class is not 0 / 0
    texts = {text.get_position(): text.get_text() for text in panel.texts}
    assert texts == {(0, 0): "30", (1, 0): "10", (0, 1): "", (1, 1): ""}  # what is not there is left blank
    assert (panel.get_xlabel(), panel.get_ylabel(), panel.get_title()) == ("predicted class", "true class", "MAE")
    assert [text.get_text() for text in panel.get_yticklabels()] == ["cat", "dog"]


def test_classes_on_the_map_are_told_apart_even_when_the_colours_begin_again():
    names = [f"class {i}" for i in range(40)]
    labels = np.repeat(np.arange(40), 2)
    points = RNG.normal(size=(80, 2))
    figure = charts.map_figure({"a": points, "b": -points}, labels, names, "UMAP")
    dots = figure.axes[0].collections
    looks = {(tuple(d.get_facecolor()[0]), d.get_paths()[0].vertices.tobytes()) for d in dots}
    assert len(looks) == 40
    assert np.array_equal(np.concatenate([d.get_offsets() for d in dots]), points)
    first_ten = {d.get_paths()[0].vertices.tobytes() for d in dots[:10]}
    assert len(first_ten) == 10  # by marker alone, without colour
    assert [text.get_text() for text in figure.legends[0].texts] == names
    assert figure.axes[0].get_xlabel() == "UMAP 1 (no unit)"


@pytest.mark.parametrize("num_classes", [2, 10, 30])
def test_names_of_classes_do_not_overlap_however_many_and_long_they_are(num_classes):
    names = [f"{number} a long name of a class" for number in range(num_classes)]
    counts = np.eye(num_classes, dtype=int)
    scores = dict.fromkeys(names, 0.5)
    confusion = charts.confusion_figure({"MAE": counts, "scratch": counts}, names)
    bars = charts.bars_figure({"MAE": scores, "scratch": scores})
    for figure in (confusion, bars):
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
        assert len(boxes) == num_classes
        assert all(lower.y1 <= upper.y0 for upper, lower in pairwise(boxes))
        assert all(box.x0 >= 0 for box in boxes)
    points = {"a": RNG.normal(size=(num_classes, 2))}
    figure = charts.map_figure(points, np.arange(num_classes), names, "t-SNE")
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.axes[0].bbox.y0


def test_bars_are_as_long_as_the_scores_and_hatched_by_arm():
    nothing = float("nan")
    scores = {"MAE": {"cat": 0.5, "dog": 1.0, "cow": nothing}, "scratch": {"cat": 0.25, "dog": 0.0, "cow": nothing}}
    figure = charts.bars_figure(scores)
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [50, 100, 0, 25, 0, 0]
    assert len({bar.get_hatch() for bar in bars}) == 2
    edges = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars)
    assert all(right <= left + 1e-9 for (_, right), (left, _) in pairwise(edges))
    assert figure.axes[0].get_xlabel() == "test F1 (%)"
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["50", "100", "no test images", "25", "0", "no test images"]


def test_reliability_shows_bins_as_they_are_and_marks_those_of_few_images():
    counts = np.array([0, 3, 200])
    confidence, accuracy = np.array([np.nan, 0.5, 0.9]), np.array([np.nan, 1.0, 0.75])
    figure = charts.reliability_figure({"MAE": (counts, confidence, accuracy)})
    upper, lower = figure.axes
    for panel, heights in ((upper, accuracy), (lower, counts)):
        bars = {round(bar.get_x(), 6): bar for bar in panel.patches}
        assert {place: bar.get_height() for place, bar in bars.items()} == {0.333333: heights[1], 0.666667: heights[2]}
        assert [bars[place].get_hatch() for place in (0.333333, 0.666667)] == ["....", ""]
    diagonal, dots = upper.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert dots.get_xydata().tolist() == [[0.5, 1.0], [0.9, 0.75]]
    assert lower.get_yscale() == "log" and lower.get_ylim()[0] < 1  # a bin with one image shows
    assert "accuracy of fewer than 10 images" in [text.get_text() for text in figure.legends[0].texts]


def test_accuracies_are_bars_from_zero_with_their_intervals_and_a_point_for_each_run():
    arms = {"MAE": ([0.6, 0.7], (0.55, 0.75)), "scratch": ([0.5], None)}
    (panel,) = charts.intervals_figure(arms).axes
    assert [(bar.get_x(), round(bar.get_width(), 6)) for bar in panel.patches] == [(0, 65), (0, 50)]
    points, interval = panel.lines  # a single run is the end of its bar
    assert points.get_xdata() == pytest.approx([60, 70]) and interval.get_xdata() == pytest.approx([55, 75])
    assert [text.get_text() for text in panel.texts] == ["65.0\n(55.0 to 75.0)", "50.0"]
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first arm is at the top


def test_charts_have_the_width_of_a_column_or_a_page_and_no_title():
    names = [f"class {number}" for number in range(40)]
    few = charts.confusion_figure({"MAE": np.eye(10, dtype=int)}, names[:10])
    many = charts.confusion_figure({"MAE": np.eye(40, dtype=int)}, names)
    assert (few.get_figwidth(), many.get_figwidth()) == (COLUMN, PAGE)
    assert few.get_suptitle() == many.get_suptitle() == ""
    assert len(few.axes[0].texts) == 100 and len(many.axes[0].texts) == 1600
