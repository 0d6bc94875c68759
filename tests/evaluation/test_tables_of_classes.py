"""Predictions equal the saved model's own, file by file, and a file that cannot be decoded is a row with its reason."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import CLIPImageProcessorPil, ViTConfig, ViTForImageClassification

from mae_hf.config.data import DataConfig
from mae_hf.data.sources import list_images
from mae_hf.evaluation.tables import write_classes

SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CLASSES = ("Cats", 'dog, or "wolf"', "horse")
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images in two folders, of which one is a class, and three files that are no images."""
    folder, generator = tmp_path / "photos", np.random.default_rng(0)
    for number, name in enumerate(("Cats/1.png", 'Cats/two\nlines, "x".png', "birds/ünï.png", "birds/4.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    whole = (folder / "Cats/1.png").read_bytes()
    for name, content in {"cut.png": whole[: len(whole) // 2], "Cats/0.jpg": b"", "text.gif": b"no image"}.items():
        (folder / name).write_bytes(content)
    return folder


def model() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(**SHAPE, intermediate_size=32, id2label=dict(enumerate(CLASSES)))
    made = ViTForImageClassification(config).eval()
    torch.nn.init.normal_(made.classifier.weight)
    return made


def rows(folder: Path, output: Path, batch_size: int) -> list[dict]:
    data = DataConfig(source=str(folder), image_mean=MEAN, image_std=STD)
    (split,) = list_images(data, like_training=False)
    counts = write_classes(Accelerator(cpu=True), model(), [split], CLASSES, data, 16, batch_size, output)
    assert counts == (7, 3)
    if output.suffix == ".parquet":
        return pq.read_table(output).to_pylist()
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("batch_size", [2, 100])
def test_predictions_are_those_of_stock_transformers(folder: Path, tmp_path: Path, batch_size: int):
    found = {row["file"]: row for row in rows(folder, tmp_path / "out.parquet", batch_size)}
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    processor = CLIPImageProcessorPil(image_mean=MEAN, image_std=STD, **size)  # as it is saved with the model
    files = [file for file, row in found.items() if row["error"] is None]
    assert sorted(files) == ["Cats/1.png", 'Cats/two\nlines, "x".png', "birds/4.png", "birds/ünï.png"]
    for file in files:
        with Image.open(folder / file) as image, torch.no_grad():
            pixel_values = torch.as_tensor(np.array(processor(image.convert("RGB"))["pixel_values"]))
            expected = model()(pixel_values).logits.softmax(dim=-1)[0].numpy()
        values = [found[file][f"probability_{name}"] for name in CLASSES]
        np.testing.assert_allclose(values, expected, atol=1e-5)
        assert found[file]["prediction"] == CLASSES[expected.argmax()]
        assert found[file]["probability"] == max(values)


@pytest.mark.parametrize("batch_size", [1, 2, 100])  # of one image, all of a batch may have failed
def test_a_file_that_cannot_be_decoded_is_a_row_with_its_reason(folder: Path, tmp_path: Path, batch_size: int):
    found = {row["file"]: row for row in rows(folder, tmp_path / "out.parquet", batch_size)}
    failed = {file: row for file, row in found.items() if row["error"]}
    assert sorted(failed) == ["Cats/0.jpg", "cut.png", "text.gif"] and len(found) == 7
    assert "it is no image" in failed["text.gif"]["error"] and "truncated" in failed["cut.png"]["error"]
    for row in failed.values():
        values = [row[key] for key in row if key.startswith("prob") or key == "prediction"]
        assert values == [None] * (2 + len(CLASSES))


def test_a_folder_that_is_no_class_of_the_model_gives_no_label(folder: Path, tmp_path: Path):
    labels = {row["file"]: row["label"] for row in rows(folder, tmp_path / "out.parquet", 3)}
    assert {file: label for file, label in labels.items() if label} == dict.fromkeys(
        ("Cats/0.jpg", "Cats/1.png", 'Cats/two\nlines, "x".png'), "Cats"
    )


def test_a_csv_file_has_the_same_rows_whatever_is_in_the_names(folder: Path, tmp_path: Path):
    expected, found = (rows(folder, tmp_path / f"out.{kind}", 3) for kind in ("parquet", "csv"))
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for key, value in theirs.items():
            if isinstance(value, float):
                assert float(ours[key]) == pytest.approx(value, rel=1e-6)
            else:
                assert ours[key] == ("" if value is None else str(value))


def test_a_file_that_was_not_finished_does_not_replace_an_older_one(folder: Path, tmp_path: Path):
    class Stopped(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> None:
            assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".a.csv.partial", "a.csv"]
            raise KeyboardInterrupt

    output = tmp_path / "out" / "a.csv"
    output.parent.mkdir()
    output.write_text("older")
    data = DataConfig(source=str(folder), image_mean=MEAN, image_std=STD)
    splits = list_images(data, like_training=False)
    with pytest.raises(KeyboardInterrupt):
        write_classes(Accelerator(cpu=True), Stopped(), splits, CLASSES, data, 16, 4, output)
    assert output.read_text() == "older" and list(output.parent.iterdir()) == [output]
