"""The report of real files: a page that needs nothing else, numbers as in the runs, pictures of the same images."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import write_run
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from mae_hf import pictures, report
from mae_hf.comparison import Comparison, compare
from mae_hf.config import ConfigError

ROOT = Path(__file__).parents[1]
SHAPE = {"image_size": 12, "patch_size": 6, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
THREE, HALF = (True, True, True, False), (True, True, False, False)


@pytest.fixture
def runs(tmp_path: Path, image_folder: Path) -> tuple[Path, Path, Path]:
    """A pre-training run with an encoder and two pictures, and a run of either arm with real images and weights."""
    torch.manual_seed(0)
    pretraining = tmp_path / "pretraining"
    (pretraining / "figures").mkdir(parents=True)
    (pretraining / "config.yaml").write_text("model: {}\n")
    for step, grey in ((20, 50), (3, 200)):  # the newer file has the smaller number
        Image.new("RGB", (40, 20), (grey,) * 3).save(pretraining / "figures" / f"reconstruction-{step}.png")
    ViTModel(ViTConfig(**SHAPE, intermediate_size=16)).save_pretrained(pretraining / "model")
    source = str(image_folder)
    pretrained = write_run(tmp_path / "mae <b>", str(pretraining), THREE, curve=(0.6, 0.7), source=source)
    scratch = write_run(tmp_path / "scratch", "scratch", HALF, curve=(0.3, 0.65), source=source)
    names = {0: "cat", 1: "dog"}
    classifier = ViTForImageClassification(ViTConfig(**SHAPE, intermediate_size=16, id2label=names))
    classifier.save_pretrained(scratch / "model")
    return pretraining, pretrained, scratch


@pytest.fixture
def comparison(runs: tuple[Path, Path, Path]) -> Comparison:
    """The two arms of `runs`."""
    return compare([runs[1]], [runs[2]])


def test_every_picture_and_the_numbers_are_files_of_their_own(comparison, tmp_path):
    out = report.write_report(comparison, tmp_path / "out").parent
    pictures = {"curves.png", "confusion.png", "f1_per_class.png", "embedding.png", "reconstruction.png"}
    assert {path.name for path in out.iterdir()} == pictures | {"index.html", "comparison.json"}
    html = (out / "index.html").read_text()
    assert html.count('src="data:image/png;base64,') == len(pictures) and len(html) < 5e6
    numbers = json.loads((out / "comparison.json").read_text())
    assert numbers["points"] == 25 and numbers["answer"] == comparison.answer()
    assert numbers["notes"] == comparison.notes() and "single seed" in numbers["notes"][0]
    assert numbers["results"]["pretrained"]["accuracy"]["values"] == [0.75]
    assert [row["test_accuracy"] for row in numbers["runs"]] == [0.75, 0.5]
    assert numbers["confusion_matrix"]["MAE pre-trained"] == [[2, 0], [1, 1]]
    assert set(numbers["trustworthiness"]) == {"MAE pre-trained", "from scratch"}
    with Image.open(out / "reconstruction.png") as picture:
        assert picture.getpixel((0, 0)) == (200, 200, 200)  # the newest


def test_the_map_shows_the_encoder_before_fine_tuning_beside_the_trained_baseline(
    runs, comparison, tmp_path, monkeypatch
):
    drawn = {}

    def remember(features: np.ndarray, seed: int) -> np.ndarray:
        drawn[len(drawn)] = features
        return features[:, :2]

    monkeypatch.setattr("mae_hf.evaluation.embedding.tsne", remember)
    report.write_report(comparison, tmp_path / "out")
    images = torch.zeros(4, 3, 12, 12)  # as in `image_folder`, normalised by hand
    data = comparison.scratch[0].config.data
    for row in range(4):
        colour = (20 + row, 2 * (20 + row), 100)
        for channel in range(3):
            images[row, channel] = (colour[channel] / 255 - data.image_mean[channel]) / data.image_std[channel]
    encoders = [
        ViTModel.from_pretrained(runs[0] / "model", add_pooling_layer=False),
        ViTForImageClassification.from_pretrained(runs[2] / "model").vit,
    ]
    rows = np.random.default_rng(pictures.SEED).permutation(4)
    for features, encoder in zip(drawn.values(), encoders, strict=True):
        with torch.no_grad():
            expected = encoder.eval()(images[rows]).last_hidden_state[:, 0].numpy()
        np.testing.assert_allclose(features, expected, atol=1e-5)


def test_what_is_gone_is_left_out_and_said(runs, comparison, tmp_path, capsys):
    report.write_report(comparison, tmp_path / "out")
    for path in (runs[0] / "figures").iterdir():
        path.unlink()
    (runs[0] / "model" / "config.json").unlink()
    html = report.write_report(comparison, tmp_path / "out").read_text()
    warnings = capsys.readouterr().err
    for text in ("No t-SNE map: ", "No reconstruction: "):
        assert text in html and f"warning: {text}" in warnings
    assert html.count("<img ") == 3
    assert len(list((tmp_path / "out").glob("*.png"))) == 3  # and none of the first report


def test_test_images_that_changed_since_are_not_drawn(image_folder, comparison, tmp_path, capsys):
    (image_folder / "test" / "cat" / "20.png").rename(image_folder / "test" / "dog" / "20.png")
    report.write_report(comparison, tmp_path / "out")
    assert "no longer holds the 4 test images" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_is_refused(comparison, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="out is not a folder: choose another --output_dir"):
        report.write_report(comparison, tmp_path / "out")


def test_the_table_marks_the_chosen_runs_and_says_not_reached(tmp_path):
    slow = write_run(tmp_path / "slow", "encoder", HALF, curve=(0.1, 0.2))
    scratch = [
        write_run(tmp_path / f"s{i}", "scratch", HALF, curve=(0.3, 0.65 - i / 10), layer_decay=1.0 - i / 10)
        for i in range(2)
    ]
    head, _, *rows = report.text_table(compare([slow], scratch)).splitlines()
    assert re.split(r"  +", head)[2:] == [
        "accuracy",
        "macro-F1",
        "loss",
        "best val",
        "at epoch",
        "epochs to scratch best",
    ]
    assert re.split(r"  +", rows[0])[1:] == ["encoder", "50.00", "33.33", "1.204", "20.00", "2", "not reached"]
    assert [row.startswith("* ") for row in rows] == [True, True, False]


def command(*words: object) -> subprocess.CompletedProcess:
    """scripts/compare.py as it is typed."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "compare.py"), *map(str, words)],
        capture_output=True, text=True, env=None, cwd=ROOT,
    )  # fmt: skip


def test_the_command_prints_the_table_and_ends_with_the_path_of_the_report(runs, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "scripts" / "compare.py"))["main"]
    main(["--pretrained", str(runs[1]), "--scratch", str(runs[2]), "--output_dir", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("With 270 labels, the MAE-pre-trained ViT reaches 75.0 %")
    assert any("scratch" in line and "50.00" in line for line in lines)
    assert lines[-1] == f"report: {tmp_path / 'out' / 'index.html'}" and (tmp_path / "out" / "index.html").exists()


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    done = command("--pretrained", tmp_path / "nowhere", "--scratch", tmp_path, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert re.fullmatch(r"error: .*nowhere is not a folder: .*\n", done.stderr)
    assert command("--scratch", tmp_path).returncode == 2
