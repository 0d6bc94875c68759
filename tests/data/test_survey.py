"""The examination of images: splits, classes, sizes, channels and files, of healthy and of sick sources."""

import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mae_hf.config.data import DataConfig
from mae_hf.data.survey import decode_splits, describe_classes, describe_files, find_splits
from mae_hf.errors import ConfigError


def coloured(number: int, size: int = 12) -> Image.Image:
    """A square of the colour (number, 2 number, 100)."""
    return Image.fromarray(np.full((size, size, 3), (number, 2 * number, 100), np.uint8))


def examined(source: Path | str) -> list[str]:
    """All findings about a source, without the search for duplicates."""
    data = DataConfig(source=str(source))
    splits, findings = find_splits(data)
    found = [*findings, *describe_classes(splits), *describe_files(splits, 12), *decode_splits(splits, 12, data)[1]]
    return [str(finding) for finding in found]


def faults(source: Path | str) -> list[str]:
    return [line for line in examined(source) if line.startswith("fault")]


def parquet(path: Path, labels: list[int], names: list[str]) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    images = [coloured(number) for number in range(len(labels))]
    datasets.Dataset.from_dict({"image": images, "label": labels}, features).to_parquet(path)


def test_a_healthy_folder_is_counted(image_folder: Path):
    assert examined(image_folder) == [
        "ok     test: 4 images, classes: 2, images per class: 2 (cat) to 2 (dog)",
        "ok     train: 20 images, classes: 2, images per class: 10 (cat) to 10 (dog)",
        "ok     unlabeled: 6 images without labels",
        "note   images for pre-training: 26. These are few for a start from scratch: start from published weights "
        "(--config published_224)",
        "ok     shorter sides: 12 to 12 px, median 12 (--config digits); longer sides: up to 1.0 times the shorter",
        "ok     channels, by the modes of Pillow: 30 RGB",
    ]


def test_sizes_channels_frames_and_orientation_are_noted(image_folder: Path):
    folder = image_folder / "train" / "cat"
    coloured(1).resize((60, 6)).save(folder / "long.png")
    coloured(2).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(np.full((12, 12), 40_000, np.uint16)).save(folder / "deep.png")
    coloured(3).save(folder / "film.gif", save_all=True, append_images=[coloured(4)])
    exif = Image.Exif()
    exif[0x0112] = 6
    coloured(5).save(folder / "turned.jpg", exif=exif)
    notes = [line for line in examined(image_folder) if line.startswith("note")][1:]
    assert set(notes[0].removesuffix(". All become RGB").split(": ")[1].split(", ")) == {
        *("32 RGB", "1 CMYK", "1 I;16", "1 P"),
    }
    assert "1 of 35 images are smaller than 12 px" in notes[1]
    assert "1 of 35 images have a side over 2 times the other" in notes[2]
    assert "1 of 35 images are animated" in notes[3]
    assert "1 of 35 images are turned upright" in notes[4]


def test_files_that_are_no_images_are_named_with_the_reason(image_folder: Path):
    (image_folder / "train" / "cat" / "empty.png").touch()
    (image_folder / "test" / "dog" / "text.jpg").write_text("no image")
    found = faults(image_folder)
    assert "1 of 5 images of test" in found[0] and "text.jpg (it is no image" in found[0]
    assert "1 of 21 images of train" in found[1] and "empty.png (it is empty)" in found[1]


def test_a_layout_that_training_refuses_is_a_fault_and_its_images_are_examined(image_folder: Path):
    coloured(9).save(image_folder / "beside.png")
    (image_folder / "train" / "cat" / "empty.png").touch()
    layout, file = faults(image_folder)
    assert "beside the split folders" in layout and "empty.png (it is empty)" in file


def test_labels_that_are_missing_where_others_have_some_are_a_fault(image_folder: Path):
    shutil.rmtree(image_folder / "train" / "dog")
    assert "has two unlabeled splits" in faults(image_folder)[0]
    shutil.rmtree(image_folder / "unlabeled")
    assert "labels are missing in train" in faults(image_folder)[0]
    shutil.rmtree(image_folder / "test")
    assert not faults(image_folder)


def test_classes_that_cannot_be_learned_are_named(tmp_path: Path):
    parquet(tmp_path / "train.parquet", [0] * 4 + [1] * 50 + [3], ["cat", "Cat", "cow", "dog"])
    few, alike = faults(tmp_path)
    assert "classes with fewer than 2 images in train: cow, dog" in few
    assert "classes that differ only in capitals or spaces: cat, Cat" in alike
    assert any("classes of train are unbalanced" in line for line in examined(tmp_path))


def test_wrong_labels_are_a_fault_and_the_other_splits_are_examined(tmp_path: Path):
    parquet(tmp_path / "train.parquet", [0, 0, 1, 1], ["cat", "dog"])
    parquet(tmp_path / "test.parquet", [0, -1], ["cat", "dog"])
    assert "row 1 of test" in faults(tmp_path)[0] and len(examined(tmp_path)) > 4


def test_a_huge_label_takes_no_memory(tmp_path: Path):
    columns = {"image": [coloured(number) for number in range(4)], "label": [0, 0, 1, 10**15]}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "train.parquet")
    assert "has the label 1000000000000000" in faults(tmp_path)[0]


@pytest.mark.parametrize("content", [b"", b"PAR1 cut short"])
def test_a_damaged_file_ends_in_one_fault(tmp_path: Path, content: bytes):
    (tmp_path / "train.parquet").write_bytes(content)
    assert len(faults(tmp_path)) == 1 == len(examined(tmp_path))


def test_a_source_that_does_not_exist_is_no_finding():
    with pytest.raises(ConfigError, match="no_such_folder"):
        find_splits(DataConfig(source="no_such_folder"))
