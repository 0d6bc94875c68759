"""Sources become checked splits by role; what is wrong is named in one line with the fix."""

import shlex
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mae_hf.config import parse
from mae_hf.config.data import STL10_CLASSES, DataConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.data import sources
from mae_hf.data.locations import check_source
from mae_hf.data.sources import load_splits
from mae_hf.errors import ConfigError

CONFIG = DataConfig(class_names=None)


def write_parquet(
    file: Path, num: int = 3, image: str = "image", label: str = "label", labels=None, names=None
) -> None:
    columns = {image: [Image.new("RGB", (4, 4))] * num}
    features = {image: datasets.Image()}
    if labels is not None:
        columns[label] = labels
        kind = "string" if labels and isinstance(labels[0], str) else "int64"
        features[label] = datasets.ClassLabel(names=names) if names else datasets.Value(kind)
    if num == 0:  # older versions of datasets divide by it
        pq.write_table(datasets.Features(features).arrow_schema.empty_table(), file)
    else:
        datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(file)


# ---- digits ----


def test_digits_are_every_image_of_scikit_learn_once():
    splits = load_splits(CONFIG, "digits")
    assert {role: len(split) for role, split in splits.items()} == {"unlabeled": 1000, "train": 300, "test": 497}
    ours = np.concatenate([split.images for split in splits.values()]).reshape(-1, 64)
    theirs = (load_digits().images / 16 * 255).round().reshape(-1, 64)
    np.testing.assert_array_equal(sorted(map(tuple, ours)), sorted(map(tuple, theirs)))


def test_digits_have_thirty_images_a_class_to_train_on_and_the_right_labels():
    splits = load_splits(CONFIG, "digits")
    np.testing.assert_array_equal(np.bincount(splits["train"].labels), [30] * 10)
    np.testing.assert_allclose(
        np.bincount(splits["test"].labels) / 497, np.bincount(load_digits().target) / 1797, atol=0.003
    )
    assert splits["unlabeled"].labels is None
    label_of = {
        tuple((image / 16 * 255).round().ravel()): label
        for image, label in zip(load_digits().images, load_digits().target, strict=True)
    }
    for split in (splits["train"], splits["test"]):
        assert [label_of[tuple(image.ravel())] for image in split.images] == split.labels.tolist()


def test_the_draw_of_digits_never_changes():
    splits = load_splits(CONFIG, "digits")
    assert splits["test"].labels[:12].tolist() == [2, 2, 3, 0, 8, 0, 8, 4, 7, 0, 8, 3]
    assert splits["train"].labels[:12].tolist() == [3, 6, 5, 5, 0, 9, 5, 3, 5, 3, 7, 6]


# ---- the official binaries ----


def write_binaries(folder: Path, role: str, images: np.ndarray, labels: list[int] | None) -> None:
    """As the STL-10 page describes them: red, green, blue, each column by column; labels from 1."""
    with open(folder / f"{role}_X.bin", "wb") as file:
        for image in images:
            for channel in range(3):
                for column in range(96):
                    file.write(bytes(image[:, column, channel].tolist()))
    if labels is not None:
        (folder / f"{role}_y.bin").write_bytes(bytes(labels))


@pytest.fixture
def binaries(tmp_path: Path) -> tuple[Path, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), np.uint8)
    write_binaries(tmp_path, "train", images, [1, 10, 3, 3, 7])
    write_binaries(tmp_path, "test", images[:2], [2, 1])
    write_binaries(tmp_path, "unlabeled", images[2:], None)
    return tmp_path, images


def test_stl10_binaries_are_read_pixel_by_pixel(binaries):
    folder, images = binaries
    splits = load_splits(DataConfig(), str(folder))
    for role, rows in {"train": images, "test": images[:2], "unlabeled": images[2:]}.items():
        np.testing.assert_array_equal(splits[role].images, rows)
        assert isinstance(splits[role].images, np.memmap)
    assert splits["train"].labels.tolist() == [0, 9, 2, 2, 6]
    assert splits["train"].class_names[9] == "truck"
    assert (splits["unlabeled"].labels, splits["train"].folds) == (None, None)


def test_stl10_folds_and_class_names_are_read_if_they_exist(binaries):
    folder, _ = binaries
    (folder / "fold_indices.txt").write_text("0 2 4 \n1 3 \n")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    splits = load_splits(CONFIG, str(folder))
    assert [fold.tolist() for fold in splits["train"].folds] == [[0, 2, 4], [1, 3]]
    assert splits["test"].class_names == tuple("abcdefghij")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_X.bin", b"x" * 27_649, r"train_X.bin has 27649 bytes, not a multiple of 27648"),
        ("train_y.bin", b"\1\2\3", r"train_y.bin has 3 labels for the 5 images of train_X.bin"),
        ("test_y.bin", None, r"test_y.bin is missing: put it beside test_X.bin"),
        ("test_y.bin", b"\1\0", r"row 1 of test .* has label -1, allowed are 0 to 9"),
        ("test_y.bin", b"\13\1", r"row 0 of test .* has label 10, allowed are 0 to 9"),
        ("unlabeled_X.bin", b"", r"^unlabeled of .* is empty"),
        ("fold_indices.txt", b"0 1\n2 5\n", r"names rows outside the 5 training images"),
        ("fold_indices.txt", b"0 one\n", r"is not a list of row numbers"),
    ],
)
def test_broken_stl10_binaries_are_refused(binaries, name, content, message):
    folder, _ = binaries
    (folder / name).write_bytes(content) if content is not None else (folder / name).unlink()
    with pytest.raises(ConfigError, match=message):
        load_splits(CONFIG, str(folder))


# ---- roles, columns, classes ----


def test_a_train_split_without_labels_is_unlabeled_and_labels_of_unlabeled_are_hidden(tmp_path):
    write_parquet(tmp_path / "train.parquet")
    splits = load_splits(CONFIG, str(tmp_path / "train.parquet"))
    assert [(role, split.labels) for role, split in splits.items()] == [("unlabeled", None)]
    write_parquet(tmp_path / "unlabeled.parquet", labels=[-1, -1, -1])
    assert load_splits(CONFIG, str(tmp_path / "unlabeled.parquet"))["unlabeled"].labels is None


def test_alternative_names_of_columns_and_splits_are_accepted(tmp_path):
    for split in ("train", "valid"):
        write_parquet(tmp_path / f"{split}.parquet", image="img", label="labels", labels=[0, 1, 1], names=["a", "b"])
    splits = load_splits(CONFIG, str(tmp_path))
    assert {role: split.labels.tolist() for role, split in splits.items()} == {
        "train": [0, 1, 1],
        "validation": [0, 1, 1],
    }
    assert splits["train"].class_names == ("a", "b")


def test_plain_numbers_take_the_configured_class_names_or_their_digits(tmp_path):
    write_parquet(tmp_path / "train.parquet", labels=[0, 2, 1])
    named = DataConfig(class_names=("x", "y", "z"))
    assert load_splits(named, str(tmp_path))["train"].class_names == ("x", "y", "z")
    assert load_splits(CONFIG, str(tmp_path))["train"].class_names == ("0", "1", "2")
    with pytest.raises(ConfigError, match=r"row 1 of train .* has label 2, allowed are 0 to 1 .*--data.class_names"):
        load_splits(DataConfig(class_names=("x", "y")), str(tmp_path))


def test_a_row_is_named_by_file_or_by_split(image_folder, tmp_path):
    write_parquet(tmp_path / "train.parquet", labels=[0, 1, 0])
    assert load_splits(CONFIG, str(tmp_path / "train.parquet"))["train"].where(2).startswith("row 2 of train in ")
    assert load_splits(CONFIG, str(image_folder))["train"].where(3) == str(image_folder / "train" / "cat" / "03.png")
    assert load_splits(CONFIG, "digits")["test"].where(17) == "row 17 of test in digits"


def test_parquet_files_of_other_names_are_left_out_with_a_warning(tmp_path):
    write_parquet(tmp_path / "train.parquet", labels=[0, 1, 0])
    write_parquet(tmp_path / "extra.parquet", labels=[0, 1, 0])
    with pytest.warns(UserWarning, match="left out extra, the splits used are train"):
        assert list(load_splits(CONFIG, str(tmp_path))) == ["train"]


@pytest.mark.parametrize("pair", [("train", "training"), ("train", "Train"), ("test", "eval")])
def test_two_parquet_files_for_one_split_are_refused(tmp_path, pair):
    for name in ("train", *pair):
        write_parquet(tmp_path / f"{name}.parquet", labels=[0, 1, 0])
    with pytest.raises(ConfigError, match=rf"has both \w+ and \w+, and both mean the split {pair[0]}"):
        load_splits(CONFIG, str(tmp_path))


def test_classes_of_the_same_name_are_refused(binaries):
    folder, _ = binaries
    (folder / "class_names.txt").write_text("cat dog cat dog bird bee ant fox elk cow")
    with pytest.raises(ConfigError, match=r"two classes named cat"):
        load_splits(CONFIG, str(folder))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": {"image": "picture"}}, r"train of .* has no column `image`, only picture: rename"),
        ({"train": {"labels": ["a", "b", "a"]}}, r"column `label` .* not class numbers: .*class_encode_column"),
        (
            {"train": {"labels": [0, -1, -1]}},
            r"row 1 of train .* has label -1, allowed are 0 to 0 \(2 rows are wrong\)",
        ),
        ({"train": {"labels": [0, 1, None], "names": ["a", "b"]}}, r"row 2 of train .* has label -1"),
        ({"train": {"labels": [], "num": 0}}, r"^train of .* cannot be read as a dataset: it is empty"),
        (
            {"train": {"labels": [0, 1, 0], "names": ["a", "b"]}, "test": {"labels": [0, 1, 0], "names": ["b", "a"]}},
            r"class names of .* differ: .* give both splits the same classes",
        ),
        ({"train": {}, "unlabeled": {}}, r"two unlabeled splits"),
    ],
)
def test_wrong_columns_labels_and_splits_are_refused(tmp_path, files, message):
    for name, options in files.items():
        write_parquet(tmp_path / f"{name}.parquet", **options)
    with pytest.raises(ConfigError, match=message):
        load_splits(CONFIG, str(tmp_path))


def test_a_column_that_cannot_be_images_is_refused(tmp_path):
    datasets.Dataset.from_dict({"image": [1.5, 2.5]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match=r"column `image` of train .* not encoded images: save it as datasets.Image"):
        load_splits(CONFIG, str(tmp_path))


def test_classes_that_differ_from_the_configured_ones_are_refused(image_folder):
    with pytest.raises(ConfigError, match=r"has the classes cat, dog, not airplane, .*--data.class_names null"):
        load_splits(DataConfig(class_names=STL10_CLASSES), str(image_folder))


def test_the_advice_about_class_names_ends_at_a_source_that_loads(tmp_path, monkeypatch):
    (tmp_path / "jxie" / "stl10").mkdir(parents=True)
    write_parquet(tmp_path / "jxie" / "stl10" / "train.parquet", labels=[0, 1, 0], names=["a cat", "1"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "OFFICIAL_COUNTS", {})
    config, words = DataConfig(class_names=("x", "y")), ["--data.class_names", "null"]
    for advice in (r"has the classes a cat, 1, not x, y: .*--data.class_names null", "pin a revision .--data.revision"):
        with pytest.raises(ConfigError, match=advice) as caught:
            load_splits(config, "jxie/stl10")
        config = parse.read_command(PretrainConfig, words, "test").data
        words = shlex.split(str(caught.value)[str(caught.value).rindex("(--") + 1 : -1])
    config = parse.read_command(PretrainConfig, words, "test").data
    assert load_splits(config, "jxie/stl10")["train"].class_names == ("a cat", "1")


def test_an_incomplete_stl10_of_the_hub_is_refused(tmp_path, monkeypatch):
    (tmp_path / "jxie" / "stl10").mkdir(parents=True)
    write_parquet(tmp_path / "jxie" / "stl10" / "train.parquet", labels=[0, 1, 0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"train of jxie/stl10 has 3 images, not the official 5000: .*--data.revision"
    ):
        load_splits(CONFIG, "jxie/stl10")


def test_advice_about_an_address_names_the_only_command_that_streams():
    with pytest.raises(ConfigError, match=r"only pretrain can stream it \(--data.streaming true\)"):
        check_source("https://host/shard.tar")
