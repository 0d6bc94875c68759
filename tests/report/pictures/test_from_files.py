"""Pictures from the runs' files alone, with the numbers of the files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import HALF, THREE, write_run

from mae_hf.figures import charts
from mae_hf.report.comparison import Comparison, compare_runs
from mae_hf.report.pictures.from_files import draw_reconstructions, draw_reliability, draw_scores
from mae_hf.report.pictures.picture import Pictures


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    """Two arms; of three classes one has no test images."""
    names = ("cat", "dog", "cow")
    ours = write_run(tmp_path / "mae", str(tmp_path / "encoder"), THREE, class_names=names)
    return compare_runs([ours], [write_run(tmp_path / "scratch", "scratch", HALF, class_names=names)])


def test_a_class_without_test_images_has_no_f1(comparison, tmp_path, monkeypatch):
    drawn = {}
    real = charts.bars_figure
    monkeypatch.setattr(charts, "bars_figure", lambda scores, title: drawn.update(scores) or real(scores, title))
    draw_scores(comparison, Pictures(tmp_path))
    assert drawn.keys() == {"MAE pre-trained", "from scratch"}
    for scores in drawn.values():
        assert list(scores) == ["cat", "dog", "cow"]
        assert np.isnan(list(scores.values())).tolist() == [False, False, True]
    assert drawn["MAE pre-trained"]["cat"] == pytest.approx(1.0)


def test_the_caption_says_when_there_are_too_few_images_for_a_reliability_diagram(comparison, tmp_path):
    probabilities = {"MAE pre-trained": np.eye(3)[[0, 0, 1, 1]], "from scratch": np.eye(3)[[1, 1, 1, 1]]}
    for arm, run in comparison.best.items():
        object.__setattr__(run.test, "probabilities", probabilities[arm])
    report = Pictures(tmp_path)
    draw_reliability(comparison, report)
    assert report.calibration_error == {"MAE pre-trained": 0, "from scratch": 0.5}
    assert report.pictures[0].caption.endswith("4 images are too few for 15 bins.")


@pytest.mark.parametrize("over_time", [False, True])
@pytest.mark.parametrize("init", ["encoder", "encoder/model", "encoder/model/encoder"])
def test_the_reconstruction_is_that_over_time_or_else_the_newest(comparison, tmp_path, over_time, init):
    run, figures = comparison.best["MAE pre-trained"], tmp_path / "encoder" / "figures"
    figures.mkdir(parents=True)
    (tmp_path / "encoder" / "model" / "encoder").mkdir(parents=True)
    (tmp_path / "encoder" / "run.json").write_text("{}")
    object.__setattr__(run.config.model, "init", str(tmp_path / init))
    greys = {"over-time": 100} if over_time else {}
    for name, grey in (greys | {"20": 50, "3": 200}).items():  # the newer file has the smaller number
        Image.new("RGB", (40, 20), (grey,) * 3).save(figures / f"reconstruction-{name}.png")
    report = Pictures(tmp_path)
    draw_reconstructions(run, report)
    with Image.open(tmp_path / "reconstruction.png") as image:
        assert image.getpixel((0, 0)) == ((100,) * 3 if over_time else (200,) * 3)
    assert not report.notes and ("during training" in report.pictures[0].caption) == over_time


def test_no_reconstruction_is_said(comparison, tmp_path):
    report = Pictures(tmp_path)
    draw_reconstructions(comparison.best["MAE pre-trained"], report)
    assert report.notes == [f"No reconstruction: {tmp_path / 'encoder'} has no figures/reconstruction*.png"]
    assert report.pictures == []


def test_a_hub_id_has_no_reconstruction_whatever_lies_in_the_folder_of_the_command(comparison, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "figures" / "reconstruction-1.png")
    run = comparison.best["MAE pre-trained"]
    object.__setattr__(run.config.model, "init", "user/name")
    report = Pictures(tmp_path)
    draw_reconstructions(run, report)
    assert report.pictures == []
