"""The pictures of a comparison, and a note for each picture that cannot be drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_pages import Parsed, captions_of
from run_folders import HALF, THREE, write_run

from mae_hf.config.commands import CompareFiguresConfig
from mae_hf.figures import charts
from mae_hf.report import pictures
from mae_hf.report.comparison import Comparison, compare_runs
from mae_hf.report.page import page
from mae_hf.report.pictures import Pictures, copy_reconstruction, draw_pictures, draw_scores

NAMES = [
    *("intervals", "curves", "confusion", "f1_per_class", "reliability", "mistakes", "embedding"),
    *("thumbnails", "attention", "attention_heads", "reconstruction"),
]


def test_every_picture_is_a_file_with_a_heading_and_a_caption(comparison, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)  # UMAP takes a minute to start
    drawn = draw_pictures(comparison, tmp_path, CompareFiguresConfig(attention=True, thumbnails=True))
    assert list(drawn.captions) == NAMES
    assert {path.name for path in tmp_path.glob("*.png")} == {f"{name}.png" for name in NAMES}
    for name in NAMES:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.format == "PNG"
            is_paper = image.width in (990, 2070) and "dpi" in image.info  # a column or page, at 300 dots per inch
            assert is_paper or name == "reconstruction"
    captions = captions_of(comparison, drawn)
    assert len(captions) == len(NAMES) and all(len(caption) > 20 for caption in captions.values())
    assert drawn.notes == []
    assert drawn.knn_accuracy.keys() == {"MAE before fine-tuning", "untrained", "from scratch, trained"}


def test_without_a_request_there_are_no_thumbnails_and_no_attention_and_all_may_be_svg(
    comparison, tmp_path, monkeypatch
):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    (tmp_path / "curves.png").write_bytes(b"of an older report")
    drawn = draw_pictures(comparison, tmp_path, CompareFiguresConfig(format="svg"))
    assert list(drawn.captions) == [*NAMES[:7], "reconstruction"]
    expected = {*(f"{name}.svg" for name in NAMES[:7]), "reconstruction.png"}  # the pre-training run has drawn that one
    assert {path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".svg")} == expected
    html = page(comparison, drawn, [])
    assert f"--figures.format svg --output_dir {tmp_path}</code>" in html  # the command that draws the same again
    addresses = [address[:19] for address in Parsed(html).addresses if address[0] == "d"]
    assert addresses == ["data:image/svg+xml;"] * 7 + ["data:image/png;base"]


def test_what_is_gone_is_left_out_and_said(runs, comparison, image_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in NAMES:
        (out / f"{name}.png").write_bytes(b"of an older report")
    for path in (runs[0] / "figures").iterdir():
        path.unlink()
    image_folder.rename(tmp_path / "elsewhere")
    drawn = draw_pictures(comparison, out)
    expected = ("No pictures of test images: ", "No reconstruction: ")
    for note, text in zip(drawn.notes, expected, strict=True):
        assert note.startswith(text)
    assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in NAMES[:5]}
    assert drawn.knn_accuracy == {}


def test_an_encoder_that_is_gone_leaves_the_other_networks_in_the_pictures(runs, comparison, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    (runs[0] / "model" / "config.json").unlink()
    drawn = draw_pictures(comparison, tmp_path)
    (note,) = drawn.notes
    assert note.startswith("MAE before fine-tuning is not drawn: ")
    assert drawn.knn_accuracy.keys() == {"untrained", "from scratch, trained"}
    assert list(drawn.captions) == [*NAMES[:7], "reconstruction"]


def test_the_calibration_error_of_each_arm_is_that_of_its_own_predictions(comparison, tmp_path, image_folder):
    image_folder.rename(tmp_path / "elsewhere")  # not needed for it
    # always sure with 0.9; three of four and two of four are right
    errors = draw_pictures(comparison, tmp_path).calibration_error
    assert errors == {"MAE pre-trained": pytest.approx(0.15), "from scratch": pytest.approx(0.4)}


def test_a_single_class_among_the_test_images_is_drawn(tmp_path):
    runs = [
        write_run(tmp_path / name, init, HALF, labels=(1, 1, 1, 1), class_names=("cat", "dog"), source="nowhere")
        for name, init in (("mae", "encoder"), ("scratch", "scratch"))
    ]
    drawn = draw_pictures(compare_runs(runs[:1], runs[1:]), tmp_path)
    assert list(drawn.captions) == NAMES[:5]


@pytest.fixture
def three_classes(tmp_path: Path) -> Comparison:
    """Two arms; of three classes one has no test images."""
    names = ("cat", "dog", "cow")
    ours = write_run(tmp_path / "mae", str(tmp_path / "encoder"), THREE, class_names=names)
    return compare_runs([ours], [write_run(tmp_path / "scratch", "scratch", HALF, class_names=names)])


def test_a_class_without_test_images_has_no_f1(three_classes, tmp_path, monkeypatch):
    drawn = {}
    real = charts.bars_figure
    monkeypatch.setattr(charts, "bars_figure", lambda scores: drawn.update(scores) or real(scores))
    draw_scores(three_classes, Pictures(tmp_path))
    assert drawn.keys() == {"MAE pre-trained", "from scratch"}
    for scores in drawn.values():
        assert list(scores) == ["cat", "dog", "cow"]
        assert np.isnan(list(scores.values())).tolist() == [False, False, True]
    assert drawn["MAE pre-trained"]["cat"] == pytest.approx(1.0)


def test_the_caption_says_when_there_are_too_few_images_for_a_reliability_diagram(three_classes, tmp_path):
    probabilities = {"MAE pre-trained": np.eye(3)[[0, 0, 1, 1]], "from scratch": np.eye(3)[[1, 1, 1, 1]]}
    for arm, run in three_classes.best.items():
        object.__setattr__(run.test, "probabilities", probabilities[arm])
    report = Pictures(tmp_path)
    draw_scores(three_classes, report)
    assert report.calibration_error == {"MAE pre-trained": 0, "from scratch": 0.5}
    assert captions_of(three_classes, report)["Reliability"].endswith("4 images are too few for 15 bins.")


@pytest.mark.parametrize("over_time", [False, True])
@pytest.mark.parametrize("init", ["encoder", "encoder/model", "encoder/model/autoencoder"])
def test_the_reconstruction_is_that_over_time_or_else_the_newest(three_classes, tmp_path, over_time, init):
    run, figures = three_classes.best["MAE pre-trained"], tmp_path / "encoder" / "figures"
    figures.mkdir(parents=True)
    (tmp_path / "encoder" / "model" / "autoencoder").mkdir(parents=True)
    (tmp_path / "encoder" / "run.json").write_text("{}")
    object.__setattr__(run.config.model, "init", str(tmp_path / init))
    greys = {"over-time": 100} if over_time else {}
    for name, grey in (greys | {"20": 50, "3": 200}).items():  # the newer file has the smaller number
        Image.new("RGB", (40, 20), (grey,) * 3).save(figures / f"reconstruction-{name}.png")
    report = Pictures(tmp_path)
    copy_reconstruction([run.init], report)
    with Image.open(tmp_path / "reconstruction.png") as image:
        assert image.getpixel((0, 0)) == ((100,) * 3 if over_time else (200,) * 3)
    caption = captions_of(three_classes, report)["Reconstruction"]
    assert (
        not report.notes
        and ("reconstructions during training (reconstruction-over-time.png of" in caption) == over_time
    )
    assert "reconstruction-3.png" in caption or over_time


def test_no_reconstruction_is_said(three_classes, tmp_path):
    report = Pictures(tmp_path)
    copy_reconstruction([three_classes.best["MAE pre-trained"].init], report)
    assert report.notes == [f"No reconstruction: {tmp_path / 'encoder'} has no figures/reconstruction*.png"]
    assert report.captions == {}


def test_a_hub_id_has_no_reconstruction_whatever_lies_in_the_folder_of_the_command(
    three_classes, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "figures" / "reconstruction-1.png")
    run = three_classes.best["MAE pre-trained"]
    object.__setattr__(run.config.model, "init", "user/name")
    report = Pictures(tmp_path)
    copy_reconstruction([run.init], report)
    assert report.captions == {}
