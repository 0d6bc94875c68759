"""Folders of photographs as people have them: every image is read, or named with the reason, and gets its class."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_hf.data.folders import find_images, list_folder, read_image_folder
from mae_hf.data.splits import Split
from mae_hf.errors import ConfigError, PlainWarning


def read(folder: Path) -> dict[str, Split]:
    return {split.role: split for split in read_image_folder(str(folder), folder)}


def sizes(folder: Path) -> dict[str, int]:
    return {role: len(split) for role, split in read(folder).items()}


def save(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file, format="PNG")


def test_an_image_folder_gives_its_splits_and_its_class_folders(image_folder):
    found = read(image_folder)
    assert sizes(image_folder) == {"test": 4, "train": 20, "unlabeled": 6}
    assert found["train"].class_names == ("cat", "dog")
    assert found["train"].labels.tolist() == [0] * 10 + [1] * 10
    assert found["unlabeled"].labels is None


def test_the_files_of_a_split_are_in_the_order_of_their_paths(tmp_path):
    names = ["a/2.png", "a/10.PNG", "a b/1.jpg", "B/1.jpeg"]
    save(*(tmp_path / name for name in names))
    assert read(tmp_path)["train"].file_names() == ["B/1.jpeg", "a b/1.jpg", "a/10.PNG", "a/2.png"]
    assert read(tmp_path)["train"].labels.tolist() == [0, 2, 1, 1]


def test_class_folders_alone_are_train_and_a_class_may_be_called_test_tube(image_folder):
    shutil.move(image_folder / "train" / "dog", image_folder / "train" / "test_tube")
    found = read(image_folder / "train")
    assert len(found["train"]) == 20 and found["train"].class_names == ("cat", "test_tube")


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("TRAIN", "eval")])
def test_split_folders_may_have_any_name_that_the_datasets_library_takes(image_folder, names):
    for old, new in zip(("train", "test", "unlabeled"), (*names, "Unlabelled"), strict=True):
        (image_folder / old).rename(image_folder / f"{new} ").rename(image_folder / new)
    assert sizes(image_folder) == {"test": 4, "train": 20, "unlabeled": 6}


def test_two_folders_for_one_split_are_refused_and_named(image_folder):
    shutil.copytree(image_folder / "test", image_folder / "Testing")
    with pytest.raises(ConfigError, match=r"has both Testing and test, and both mean the split test: rename or remove"):
        read(image_folder)


def test_split_folders_beside_other_folders_or_files_with_images_are_refused_and_named(image_folder):
    shutil.copytree(image_folder / "train" / "cat", image_folder / "bird")
    shutil.copy(image_folder / "train" / "cat" / "00.png", image_folder / "loose.png")
    (image_folder / "notes.txt").write_text("no image")
    with pytest.raises(ConfigError, match=r"images in bird, loose.png beside the split folders test, train, unlabeled"):
        read(image_folder)


def test_folders_below_a_split_may_be_nested_and_the_last_one_is_the_class(image_folder):
    source = image_folder.parent / "nested"
    for year in ("2024", "2025"):
        shutil.copytree(image_folder / "train", source / "train" / year)
    assert read(source)["train"].class_names == ("cat", "dog") and sizes(source) == {"train": 40}
    save(source / "train" / "cat" / "a.png")
    different = r"has no labels, .* depths \(train/cat/a.png, train/2024/cat/00.png\): for labels, put each image"
    with pytest.warns(PlainWarning, match=different):
        assert sizes(source) == {"unlabeled": 41}


def test_a_flat_folder_has_no_labels(image_folder):
    assert read(image_folder / "unlabeled")["unlabeled"].labels is None


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ConfigError, match=r"holds no images, parquet files or STL-10 binaries"):
        read(tmp_path)


def test_names_in_any_bytes_are_read(tmp_path):
    names = ["IMG 1.JPG", "\U0001f98a.Png", os.fsdecode(b"caf\xe9.jpeg"), "a.b.TIFF"]
    save(*(tmp_path / "Train" / "Cat" / name for name in names), tmp_path / "Train" / "Dog" / "x.png")
    split = read(tmp_path)["train"]
    assert split.class_names == ("Cat", "Dog")
    assert sorted(split.file_names()) == sorted(
        [f"Train/Cat/{name}" for name in ("IMG 1.JPG", "\U0001f98a.Png", "caf\ufffd.jpeg", "a.b.TIFF")]
        + ["Train/Dog/x.png"]
    )


def test_hidden_files_and_texts_are_left_out_in_silence(tmp_path):
    hidden = [".DS_Store", "._a.jpg", "Thumbs.db", "desktop.ini", "__MACOSX/a.jpg", "@eaDir/a.jpg/a.jpg", "notes.txt"]
    save(tmp_path / "a.png", *(tmp_path / name for name in hidden))
    assert find_images("x", tmp_path) == ["a.png"]


def test_files_in_other_formats_and_empty_folders_are_named_with_the_fix(tmp_path):
    save(tmp_path / "cat" / "a.png", *(tmp_path / "cat" / name for name in ("1.HEIC", "2.heic", "b.CR2", "c")))
    (tmp_path / "dog").mkdir()
    with pytest.warns(PlainWarning) as warned:
        assert find_images("photos", tmp_path) == ["cat/a.png"]
    assert [str(each.message) for each in warned] == [
        "photos: left out files in other formats (2 .heic, 1 .cr2, 1 without ending), such as cat/1.HEIC: convert "
        "images to JPEG or PNG",
        "photos: left out folders without images (dog)",
    ]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere")
    save(tmp_path / "photos" / "cat" / "2.png")
    (tmp_path / "photos" / "cat" / "loop").symlink_to(tmp_path / "photos")
    with pytest.warns(PlainWarning, match="left out cat/loop, a link to a folder around it"):
        assert find_images("photos", tmp_path / "photos") == ["cat/2.png", "dog/1.png"]


def test_an_image_is_listed_with_its_folder_at_any_depth(tmp_path):
    save(*(tmp_path / name for name in ("a.png", "cat/b.png", "cat/old/c.png", "Test/d.png", "Test/dog/e.png")))
    test, loose = list_folder("x", tmp_path)
    assert (loose.role, loose.class_names) == ("files", ("cat", "old"))
    assert (test.role, test.class_names) == ("test", ("dog",))
    assert np.array_equal(loose.labels, [-1, 0, 1]) and np.array_equal(test.labels, [-1, 0])
