"""The pictures of a comparison, and a note for each picture that cannot be drawn."""

import pytest
from PIL import Image
from run_folders import HALF, write_run

from mae_hf.report.comparison import compare_runs
from mae_hf.report.pictures import draw_pictures

NAMES = [
    *("curves", "confusion", "f1_per_class", "reliability", "mistakes", "embedding"),
    *("attention", "attention_heads", "reconstruction"),
]


def test_every_picture_is_a_file_with_a_heading_and_a_caption(comparison, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "mae_hf.report.pictures.from_images.find_spec", lambda name: None
    )  # UMAP takes a minute to start
    drawn = draw_pictures(comparison, tmp_path)
    assert [picture.path.name for picture in drawn.pictures] == [f"{name}.png" for name in NAMES]
    assert {path.name for path in tmp_path.glob("*.png")} == {f"{name}.png" for name in NAMES}
    for picture in drawn.pictures:
        with Image.open(picture.path) as image:
            assert image.format == "PNG"
        assert picture.heading and len(picture.caption) > 20
    assert len({picture.heading for picture in drawn.pictures}) == len(NAMES)
    assert drawn.notes == [] and "warning" not in capsys.readouterr().err
    assert drawn.trustworthiness.keys() == {"MAE before fine-tuning", "untrained", "from scratch, trained"}


def test_what_is_gone_is_left_out_and_said(runs, comparison, image_folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for name in NAMES:
        (out / f"{name}.png").write_bytes(b"of an older report")
    for path in (runs[0] / "figures").iterdir():
        path.unlink()
    image_folder.rename(tmp_path / "elsewhere")
    drawn = draw_pictures(comparison, out)
    warnings = capsys.readouterr().err
    expected = ("No t-SNE map, no mistakes and no attention: ", "No reconstruction: ")
    for note, text in zip(drawn.notes, expected, strict=True):
        assert note.startswith(text) and f"warning: {note}" in warnings
    assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in NAMES[:4]}
    assert drawn.trustworthiness == {}


def test_an_encoder_that_is_gone_leaves_the_other_networks_in_the_pictures(runs, comparison, tmp_path, monkeypatch):
    monkeypatch.setattr("mae_hf.report.pictures.from_images.find_spec", lambda name: None)
    (runs[0] / "model" / "config.json").unlink()
    drawn = draw_pictures(comparison, tmp_path)
    (note,) = drawn.notes
    assert note.startswith("MAE before fine-tuning is not drawn: ")
    assert drawn.trustworthiness.keys() == {"untrained", "from scratch, trained"}
    assert [picture.path.name for picture in drawn.pictures] == [f"{name}.png" for name in NAMES]


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
    assert [picture.path.stem for picture in drawn.pictures] == NAMES[:4]
