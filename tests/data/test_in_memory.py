"""Images in memory: what is stored in the cache, under which name, and what is refused."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from mae_hf.config.data import DataConfig
from mae_hf.data.decode import decode
from mae_hf.data.in_memory import store_images
from mae_hf.data.sources import load_splits
from mae_hf.data.splits import Split
from mae_hf.errors import ConfigError


def coloured(number: int) -> Image.Image:
    """A square of one colour."""
    return Image.new("RGB", (9, 9), (number, 2 * number, 100))


RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8))
PICTURES = [
    RGB,
    RGB.rotate(90, expand=True),
    *(RGB.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "F")),
]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})


def stored(folder: Path) -> dict[str, Split]:
    """The splits that a run finds in the folder."""
    return load_splits(DataConfig(source=str(folder)), str(folder))


def decoded(split: Split, size: int = 12) -> list[Any]:
    return [decode(image, size) for image in split.encoded(0, len(split))]


def test_pictures_of_every_mode_and_size_have_the_pixels_that_decoding_gives(tmp_path: Path):
    found = decoded(stored(store_images(PICTURES, None, tmp_path))["unlabeled"])
    assert all(np.array_equal(image, decode(picture, 12)) for image, picture in zip(found, PICTURES, strict=True))


def test_image_files_are_stored_as_they_are_with_their_names(tmp_path: Path):
    files = [tmp_path / "a.jpg", tmp_path / "b.png"]
    for file in files:
        RGB.save(file)
    (tmp_path / "broken.png").write_bytes(b"no image")
    split = stored(store_images([*files, tmp_path / "broken.png"], None, tmp_path / "cache"))["unlabeled"]
    assert split.encoded(0, 2) == [file.read_bytes() for file in files]
    assert split.where(2) == f"row 2 of unlabeled in {split.source} ({tmp_path / 'broken.png'})"


def test_equal_images_have_one_folder_and_others_have_another(tmp_path: Path):
    first = store_images([RGB, coloured(1)], ["a", "b"], tmp_path)
    written = (first / "train.parquet").stat().st_mtime_ns
    assert store_images([RGB.copy(), np.asarray(coloured(1))], ["a", "b"], tmp_path) == first
    assert (first / "train.parquet").stat().st_mtime_ns == written
    others = [([RGB, coloured(2)], ["a", "b"]), ([RGB, coloured(1)], ["b", "a"]), ([RGB, coloured(1)], ["a", "c"])]
    assert len({first, *(store_images(*other, tmp_path) for other in others)}) == 4


def test_class_names_numbers_and_missing_labels(tmp_path: Path):
    images = [coloured(number) for number in range(4)]
    named = stored(store_images(images, ["dog", "cat", None, "dog"], tmp_path))
    assert named["train"].labels.tolist() == [1, 0, 1] and named["train"].class_names == ("cat", "dog")
    assert len(named["unlabeled"]) == 1
    splits = {"train": images, "test": images[:2], "unlabelled": images}
    numbered = stored(store_images(splits, {"train": [0, 1, 1, 0], "test": np.array([1, 0])}, tmp_path))
    assert numbered["test"].labels.tolist() == [1, 0] and numbered["train"].class_names == ("0", "1")
    assert numbered["unlabeled"].labels is None


def test_a_dataset_keeps_its_rows_labels_and_classes_in_any_format(tmp_path: Path):
    dataset = datasets.Dataset.from_dict({"image": PICTURES[:4], "label": [1, 0, 1, None]}, FEATURES)
    splits = datasets.DatasetDict({"train": dataset.select(range(3)), "test": dataset.select([1, 0])})
    found = stored(store_images(splits.with_format("torch"), None, tmp_path))
    assert {role: split.labels.tolist() for role, split in found.items()} == {"train": [1, 0, 1], "test": [0, 1]}
    assert found["train"].class_names == ("cat", "dog")
    assert np.array_equal(decoded(found["test"])[0], decode(PICTURES[1], 12))


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (7, None, "data is a int: give a folder or other source, a datasets.Dataset, a list"),
        ([], None, "train of the data has no images"),
        ([7], None, "data holds a int: give"),
        ([np.zeros((8, 8, 3))], None, r"data holds an array of float64 \(8, 8, 3\): give uint8"),
        ([np.zeros((8, 8, 1), np.uint8)], None, "data holds an array of uint8"),
        (["missing.png"], None, "missing.png is not an image file that exists"),
        ([RGB], [1, 2], "train has 1 images, but 2 labels"),
        ([RGB, RGB], ["a", 1], "labels are neither all class names nor all whole numbers"),
        ([RGB], [0.5], "labels are neither all class names nor all whole numbers"),
        ({"train": [RGB]}, [1], "labels are a list, but the images are splits: give a dict"),
        ({"train": [RGB]}, {"test": [1]}, "labels are of test, but the splits are train"),
        ({"first": [RGB]}, None, "none is called train, validation, test or unlabeled"),
        ({"train": [RGB], "unlabeled": [RGB]}, None, "data has two unlabeled splits"),
        (datasets.Dataset.from_dict({"image": [RGB]}), [1], "labels of a datasets.Dataset are its column `label`"),
        (datasets.Dataset.from_dict({"pixels": [RGB]}), None, "train of data has no column `image`, only pixels"),
    ],
)  # fmt: skip
def test_other_data_and_labels_are_refused(data: object, labels: object, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        store_images(data, labels, tmp_path)
    assert not list(tmp_path.iterdir())
