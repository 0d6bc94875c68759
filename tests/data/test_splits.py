"""The names of splits, and which training images keep their labels: by class, the same in every run, never test's."""

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import ImageSet, load_labelled_images, load_probe_images
from mae_hf.data.sources import load_splits
from mae_hf.data.splits import (
    Split,
    describe_few_labels,
    draw_labels,
    few_label_rows,
    names_by_role,
    role_of,
    stratified_draw,
)
from mae_hf.errors import ConfigError

LABELS = np.repeat([0, 1, 2], [500, 100, 3])


def split(folds: tuple | None = None, labels: np.ndarray = LABELS) -> Split:
    return Split("drawn", "train", np.zeros((len(labels), 2, 2), np.uint8), labels, ("a", "b", "c"), "f", folds)


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("train", "train training Train TRAINING"),
        ("validation", "validation valid val dev Val"),
        ("test", "test testing eval evaluation Test"),
        ("unlabeled", "unlabeled unlabelled Unlabelled"),
    ],
)
def test_splits_have_the_names_of_the_datasets_library_in_any_case(role: str, names: str):
    assert {role_of(name) for name in names.split()} == {role}


@pytest.mark.parametrize("name", ["cat", "test_tube", "trains", "", "pretrain"])
def test_other_names_are_no_splits(name: str):
    assert role_of(name) is None


def test_two_names_for_one_split_are_refused_and_named():
    assert names_by_role("here", ["Train", "val"]) == {"train": "Train", "validation": "val"}
    with pytest.raises(ConfigError, match=r"here has both train and training, and both mean the split train"):
        names_by_role("here", ["train", "training"])
    with pytest.raises(ConfigError, match=r"here has the splits a, b: none is called train, validation, test or unla"):
        names_by_role("here", ["a", "b"])


def test_a_stratified_draw_takes_each_class_by_its_share_and_depends_on_the_seed():
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [100, 40, 1]))
    drawn = stratified_draw(labels, 14, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[drawn], minlength=3), [10, 4, 0])
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, stratified_draw(labels, 14, seed=0))
    assert set(drawn) != set(stratified_draw(labels, 14, seed=1))


@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.01, [5, 2, 2]), (0.05, [25, 5, 2]), (0.5, [250, 50, 2]), (1.0, [500, 100, 3])]
)
def test_each_class_gives_its_share_and_at_least_two_images(fraction: float, counts: list[int]):
    rows = draw_labels(LABELS, fraction, 0)
    assert np.bincount(LABELS[rows]).tolist() == counts
    assert len(set(rows)) == len(rows) and (np.diff(rows) > 0).all()


def test_a_class_with_one_image_gives_this_image():
    assert draw_labels(np.array([0, 1, 1, 1]), 0.01, 0).tolist()[0] == 0


def test_a_smaller_budget_is_a_subset_of_a_larger_one_and_seeds_differ():
    parts = [set(draw_labels(LABELS, fraction, 3)) for fraction in (0.01, 0.05, 0.1, 0.25, 1)]
    assert all(small < large for small, large in itertools.pairwise(parts))
    assert parts[1] != set(draw_labels(LABELS, 0.05, 4))


def test_official_folds_are_not_changed_and_called_official():
    folds = tuple(np.arange(60)[i::10][::-1] for i in range(10))
    config = DataConfig(fold=3)
    found = few_label_rows(split(folds), np.arange(len(LABELS)), config)
    assert found.tolist() == [3, 13, 23, 33, 43, 53]
    assert describe_few_labels(split(folds), config) == "official fold 3 of 10 (fold_indices.txt)"


def test_without_official_folds_a_fifth_of_each_class_is_drawn_and_called_unofficial():
    found = [few_label_rows(split(), np.arange(len(LABELS)), DataConfig(fold=i, label_seed=9)) for i in range(10)]
    assert {tuple(np.bincount(LABELS[rows])) for rows in found} == {(100, 20, 2)}
    assert len({tuple(rows) for rows in found}) == 10
    again = few_label_rows(split(), np.arange(len(LABELS)), DataConfig(fold=3, label_seed=1, split_seed=5))
    assert (again == found[3]).all()  # the fixed seed, whatever the others are
    assert describe_few_labels(split(), DataConfig(fold=3)).startswith("unofficial fold 3 of 10")
    assert describe_few_labels(split(), DataConfig(label_fraction=1.0)).startswith("all labels of train")
    assert describe_few_labels(split(), DataConfig()) == ""


def test_only_usable_rows_are_drawn():
    allowed = np.arange(0, len(LABELS), 2)
    for config in (DataConfig(fold=0), DataConfig(label_fraction=0.3)):
        assert np.isin(few_label_rows(split(), allowed, config), allowed).all()


def test_a_missing_fold_and_a_fold_that_overlaps_with_test_are_refused():
    folds = (np.arange(5), np.arange(5, 10))
    with pytest.raises(ConfigError, match=r"fold 2 does not exist: .* has 2 folds, choose 0 to 1 .*--data.fold"):
        few_label_rows(split(folds), np.arange(len(LABELS)), DataConfig(fold=2))
    with pytest.raises(ConfigError, match="set aside as test"):
        few_label_rows(split(folds), np.arange(7, len(LABELS)), DataConfig(fold=1))


def test_validation_is_carved_from_the_few_labels_with_room_for_each_class():
    config = DataConfig(source="digits", class_names=None, label_fraction=0.1)
    whole = load_splits(config, "digits")["train"]
    images = load_labelled_images(config, 8)
    assert np.bincount(images["train"].labels).tolist() == [2] * 10  # 3 of 30 a class
    assert np.bincount(images["validation"].labels).tolist() == [1] * 10
    drawn = np.sort(np.concatenate([images["train"].split_rows, images["validation"].split_rows]))
    assert (drawn == few_label_rows(whole, np.arange(300), config)).all()
    assert (whole.labels[images["train"].split_rows] == images["train"].labels).all()
    assert "10 % of the labels" in images["train"].note and images["test"].note == ""
    assert len(images["test"]) == 497


@pytest.fixture
def folder_with_validation(image_folder: Path) -> Path:
    """The image folder with a validation split, images 0 and 10, and 9 train images per class."""
    (image_folder / "validation").mkdir()
    for number, (name, label) in enumerate((("00", "cat"), ("10", "dog"))):
        (image_folder / "validation" / label).mkdir()
        file = image_folder / "train" / label / f"{name}.png"
        file.rename(image_folder / "validation" / label / f"{number}.png")
    return image_folder


@pytest.mark.parametrize(("fraction", "num"), [(0.5, 8), (1.0, 18)])  # 4 of 9 a class, and all
def test_a_label_set_does_not_contain_the_sources_validation_split(
    folder_with_validation: Path, fraction: float, num: int
):
    config = DataConfig(source=str(folder_with_validation), class_names=None)
    assert len(load_labelled_images(config, 12)["validation"]) == 2
    few = load_labelled_images(dataclasses.replace(config, label_fraction=fraction), 12)
    assert len(few["train"]) + len(few["validation"]) == num
    assert np.bincount(few["validation"].labels).tolist() == [1, 1]
    red = [number for role in ("train", "validation") for number in red_of(few[role])]
    assert not {0, 10} & set(red) and len(set(red)) == num


@pytest.mark.parametrize(
    ("fields", "counts"), [({"fold": 0}, [2, 2]), ({"label_fraction": 0.3}, [2, 3]), ({"label_fraction": 1.0}, [8, 10])]
)
def test_a_label_set_is_drawn_from_images_that_can_be_decoded(image_folder: Path, fields: dict, counts: list[int]):
    config = DataConfig(source=str(image_folder), class_names=None, on_bad_image="skip", **fields)
    sound = load_labelled_images(config, 12)
    drawn = red_of(sound["train"]) + red_of(sound["validation"])
    gone = sorted(number for number in drawn if number < 10)[:2]  # with the draw from all, a set with fewer cats
    for number in gone:
        (image_folder / "train" / "cat" / f"{number:02}.png").write_bytes(b"not an image")
    with pytest.warns(UserWarning, match="2 of 20 images .* these images are left out"):
        found = load_labelled_images(config, 12)
    labels = np.concatenate([found["train"].labels, found["validation"].labels])
    assert np.bincount(labels).tolist() == counts  # of 8 cats and 10 dogs
    assert not set(gone) & set(red_of(found["train"]) + red_of(found["validation"]))


def red_of(images: ImageSet) -> list[int]:
    """The number of each image: its red."""
    return images.batch(range(len(images)))[:, 0, 0, 0].tolist()


def test_the_online_probe_has_no_test_images_and_is_thinned_out_by_class(image_folder):
    config = DataConfig(source=[str(image_folder / "unlabeled"), str(image_folder)], class_names=None)
    train, validation = load_probe_images(config, 12, 6)
    found = [part.batch(range(len(part)))[:, 0, 0, 0].tolist() for part in (train, validation)]
    assert np.bincount(train.labels).tolist() == [3, 3] and np.bincount(validation.labels).tolist() == [1, 1]
    assert max(found[0] + found[1]) < 20 and not set(found[0]) & set(found[1])
    of_finetuning = load_labelled_images(dataclasses.replace(config, source=str(image_folder)), 12)
    assert found[1] == of_finetuning["validation"].batch(range(2))[:, 0, 0, 0].tolist()


def test_without_labels_there_are_no_probe_images(image_folder):
    assert load_probe_images(DataConfig(source=str(image_folder / "unlabeled"), class_names=None), 12, 6) is None


# ---- names of files ----


def test_the_images_of_a_folder_have_names_relative_to_it(image_folder: Path, monkeypatch: pytest.MonkeyPatch):
    expected = [f"test/{name}" for name in ("cat/20.png", "cat/21.png", "dog/22.png", "dog/23.png")]
    assert load_splits(DataConfig(), str(image_folder))["test"].file_names() == expected
    monkeypatch.chdir(image_folder.parent)
    config = DataConfig(source=f"./{image_folder.name}")
    assert load_splits(config, config.sources[0])["test"].file_names() == expected
    images = load_labelled_images(config, 12)
    assert images["test"].file_names() == expected
    for role in ("train", "validation"):  # the validation images are drawn from train
        names = images[role].file_names()
        assert [int(Path(name).stem) for name in names] == images[role].batch(range(len(names)))[:, 0, 0, 0].tolist()


def test_the_images_of_a_parquet_file_have_the_names_inside_it(tmp_path: Path):
    images = [{"bytes": b"", "path": "cat/1.png"}, {"bytes": b"", "path": None}, None] * 700  # several batches
    table = pa.table({"image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
    pq.write_table(table, tmp_path / "train.parquet")
    found = load_splits(DataConfig(), str(tmp_path))["unlabeled"].file_names()
    assert found == ["cat/1.png", None, None] * 700


def test_pixels_have_no_names_and_bytes_that_are_not_utf8_are_replaced():
    assert split().file_names() == [None] * len(LABELS)
    paths = np.array(["/here/a/1.png", os.fsdecode(b"/there/\xff.png")], object)
    assert Split("/here", "train", paths, None, None, "f").file_names() == ["a/1.png", "/there/\ufffd.png"]
