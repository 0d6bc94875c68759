"""Figures are written whole or not at all, and importing them changes nothing."""

import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mae_hf import figures
from mae_hf.figures import charts

HISTORY = [{"step": 1, "epoch": 0.5, "train/loss": 2.0}]


def test_a_figure_is_saved_whole_and_an_older_one_is_replaced(tmp_path):
    path = tmp_path / "new" / "curves.png"
    for _ in range(2):
        assert figures.save(charts.curves_figure({"MAE": [HISTORY]}), path) == path
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width == 990  # a column of a paper, 3.3 inches, at 300 dots
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_an_svg_is_a_vector_graphic_of_the_same_size_and_equal_for_equal_figures(tmp_path):
    texts = []
    for name in ("first.svg", "second.svg"):
        figure = charts.confusion_figure({"MAE": [[3, 1], [0, 2]]}, ("cat", "dog"))  # has clip paths, with ids
        texts.append(figures.save(figure, tmp_path / name).read_bytes())
    root = ElementTree.fromstring(texts[0])
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.attrib["width"] == "237.6pt"  # 3.3 inches
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["curves.png", "curves.svg"])
def test_texts_have_the_size_of_a_papers_captions(tmp_path, name):
    figure = charts.curves_figure({"MAE": [HISTORY]})
    figures.save(figure, tmp_path / name)
    (panel,) = figure.axes
    texts = [panel.xaxis.label, panel.yaxis.label, *panel.get_xticklabels(), *panel.get_yticklabels()]
    texts += figure.legends[0].texts
    assert {text.get_fontsize() for text in texts} == {7}


def test_a_figure_as_pixels_is_what_a_png_of_that_resolution_holds(tmp_path):
    figure = Figure(figsize=(2, 1), facecolor="red")
    assert (figures.pixels(figure) == np.full((200, 400, 3), (255, 0, 0))).all()


def test_a_figure_that_cannot_be_drawn_leaves_the_older_one_and_nothing_beside_it(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"older")
    figure = charts.curves_figure({"MAE": [HISTORY]})
    figure.suptitle("$\\nonsense{$")
    with pytest.raises(ValueError, match="nonsense"):
        figures.save(figure, path)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_of_a_figure_is_written_over(tmp_path):
    code = """if True:
        import os, signal, sys
        from mae_hf import figures
        class Figure:
            def savefig(self, file, **_):
                file.write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        figures.save(Figure(), sys.argv[1])
    """
    path = tmp_path / "curves.png"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    figures.save(charts.curves_figure({"MAE": [HISTORY]}), path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_without_letters_in_the_font_is_drawn_without_a_warning(tmp_path, recwarn):
    figures.save(charts.bars_figure({"MAE": {"\u732b": 0.5}}), tmp_path / "bars.png")
    assert not recwarn.list


def test_importing_figures_starts_no_pyplot_and_changes_no_setting():
    # Reading rcParams["backend"] would itself import pyplot.
    code = """if True:
        import sys, matplotlib
        settings = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}
        before = settings()
        import mae_hf.figures.charts, mae_hf.figures.sheets
        assert "matplotlib.pyplot" not in sys.modules
        assert settings() == before
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_name_becomes_a_label_that_is_short_and_taken_as_it_is():
    assert figures.label_of("cat") == "cat"
    assert figures.label_of("a very long name of a class", 12) == "a very long…"
    assert len(figures.label_of("x" * 100)) == 24
    figure = charts.bars_figure({"MAE": {"$\\nonsense{$": 0.5, "5 $": 0.5, "_hidden": 1.0}})
    figure.draw_without_rendering()  # mathematics that nobody meant would raise here
    drawn = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert drawn == ["\\$\\nonsense{\\$", "5 \\$", " _hidden"]


def test_a_file_name_becomes_a_label_with_its_end_in_one_line():
    assert figures.file_label("train/cat/01.png") == "01.png"
    assert figures.file_label("x" * 30 + "_07.jpg", 12) == "…xxxx_07.jpg"
    assert figures.file_label("a\nb$.png") == "a\\nb\\$.png"
