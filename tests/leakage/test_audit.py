"""Planted duplicates of test and validation images are found, and left out of pre-training or recorded."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mae_hf.commands.prepare_data import prepare_data
from mae_hf.config import parse
from mae_hf.config.commands import PrepareConfig
from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import ImageSet, load_evaluation_images, load_labelled_images, load_pretraining_images
from mae_hf.errors import ConfigError
from mae_hf.leakage.audit import NOT_PRETRAINED, Audit, audit_pretraining, seen_test_images

SIZE = 12


# ---- pre-training ----


def config(source: Path | list[str], **options: object) -> DataConfig:
    source = source if isinstance(source, list) else str(source)
    return DataConfig(**{"source": source, "validation_fraction": 0.2, **options})


def numbers(images: ImageSet) -> list[int]:
    """Return the number that each image's colour stands for (see conftest.py)."""
    return images.batch(np.arange(len(images)))[:, 0, 0, 0].tolist()


def train_file(number: int) -> str:
    return f"train/{'cat' if number < 10 else 'dog'}/{number:02}.png"


def plant(folder: Path, original: str, duplicate: str) -> None:
    (folder / duplicate).write_bytes((folder / original).read_bytes())


@pytest.fixture
def leaky(image_folder: Path) -> Path:
    """Test images 20, 21 and 23 are unlabeled ones too, 20 twice; 22 is a train image."""
    for number, duplicates in ((20, ("36", "37")), (21, ("00",)), (23, ("33b",))):
        for duplicate in duplicates:
            plant(image_folder, f"test/{'cat' if number < 22 else 'dog'}/{number}.png", f"unlabeled/{duplicate}.png")
    plant(image_folder, "test/dog/22.png", "train/dog/30.png")
    return image_folder


def audit(source: Path, leave_out: bool = True, **options: object) -> tuple[ImageSet, ImageSet, Audit]:
    data = config(source, **options)
    evaluation = load_evaluation_images(data, (), SIZE)
    return audit_pretraining(*load_pretraining_images(data, SIZE), evaluation, leave_out)


def test_duplicates_of_test_images_are_left_out_of_both_sets_and_nothing_else(leaky: Path):
    before = [numbers(images) for images in load_pretraining_images(config(leaky), SIZE)]
    train, held_out, record = audit(leaky)
    after = [numbers(train), numbers(held_out)]
    assert after == [[number for number in part if number not in (20, 21, 22, 23)] for part in before]
    assert len(before[0]) + len(before[1]) - len(train) - len(held_out) == 5
    assert (record.num_test_duplicates, record.num_validation_duplicates, record.seen) == (5, 0, ())
    [test] = record.tests
    assert (test.num_images, test.num_duplicated, test.num_seen) == (4, 4, 0)
    rows = {(pair.split, pair.row, pair.against_split, pair.against_row, pair.kind) for pair in record.pairs}
    # by name: 00 30 31 32 33 33b 34 35 36 37, and the 21st train image
    unlabeled = {(0, 1), (5, 3), (8, 0), (9, 0)}
    assert rows == {
        *(("unlabeled", row, "test", other, "exact") for row, other in unlabeled),
        ("train", 20, "test", 2, "exact"),
    }


def test_training_images_that_duplicate_validation_images_are_left_out(image_folder: Path):
    """Otherwise the held-out loss and fine-tuning's validation accuracy are measured on images of the training set."""
    [first, second, *_] = numbers(load_pretraining_images(config(image_folder), SIZE)[1])
    plant(image_folder, train_file(first), "unlabeled/40.png")
    plant(image_folder, train_file(second), "unlabeled/41.png")
    train, held_out, record = audit(image_folder)
    assert {first, second} <= set(numbers(held_out))
    assert not {first, second} & set(numbers(train))
    assert (record.num_test_duplicates, record.num_validation_duplicates) == (0, 2)
    assert [(part.split, part.num_duplicated, part.num_seen) for part in record.audited] == [
        ("test", 0, 0),
        ("validation", 2, 0),
    ]
    assert {(pair.split, pair.row, pair.against_split) for pair in record.pairs} == {
        ("unlabeled", 6, "validation"),
        ("unlabeled", 7, "validation"),
    }
    train, _, record = audit(image_folder, leave_out=False)
    assert {first, second} <= set(numbers(train))
    assert (record.audited[1].num_seen, record.seen) == (2, ())  # only test images have to be recognised later


def test_validation_images_of_an_audited_source_are_searched_for_too(image_folder: Path):
    data = config(image_folder / "unlabeled")
    [number, *_] = numbers(load_labelled_images(config(image_folder), SIZE)["validation"])
    plant(image_folder, train_file(number), "unlabeled/40.png")
    evaluation = load_evaluation_images(data, [str(image_folder)], SIZE)
    train, held_out, record = audit_pretraining(*load_pretraining_images(data, SIZE), evaluation, leave_out=True)
    assert number not in numbers(train)
    assert record.num_validation_duplicates == (number not in numbers(held_out))


def test_duplicates_that_stay_are_known_when_the_test_images_are_scored(leaky: Path):
    (leaky / "train/dog/30.png").unlink()
    train, _, record = audit(leaky, leave_out=False)
    assert numbers(train) == numbers(load_pretraining_images(config(leaky), SIZE)[0])
    assert record.num_test_duplicates == 4
    assert record.tests[0].num_seen == len(record.seen) == 3
    test = load_labelled_images(config(leaky), SIZE)["test"]
    seen = seen_test_images(record, test)
    assert seen is not None and seen.tolist() == [True, True, False, True]


def test_without_duplicates_no_set_changes(image_folder: Path):
    before = load_pretraining_images(config(image_folder), SIZE)
    *after, record = audit(image_folder)
    assert [images.fingerprint for images in after] == [images.fingerprint for images in before]
    assert (record.num_test_duplicates, record.num_validation_duplicates, record.pairs) == (0, 0, ())


def test_a_held_out_duplicate_of_a_test_image_was_not_seen(image_folder: Path):
    [number, *_] = numbers(load_pretraining_images(config(image_folder), SIZE)[1])
    plant(image_folder, train_file(number), "test/cat/20.png")
    _, _, record = audit(image_folder, leave_out=False)
    assert record.num_test_duplicates == 1
    assert record.seen == ()


def test_a_test_set_that_is_carved_from_train_is_no_duplicate_of_itself(image_folder: Path):
    for path in (image_folder / "test").rglob("*.png"):
        path.rename(image_folder / "train" / path.parent.name / path.name)
    (image_folder / "test/cat").rmdir(), (image_folder / "test/dog").rmdir(), (image_folder / "test").rmdir()
    plant(image_folder, "train/cat/00.png", "unlabeled/40.png")
    train, held_out, record = audit(image_folder, test_fraction=0.5)
    test = numbers(load_evaluation_images(config(image_folder, test_fraction=0.5), (), SIZE)["test"][0])
    assert record.num_test_duplicates == (0 in test)
    assert not set(test) & {*numbers(train), *numbers(held_out)}


def test_what_was_not_searched_for_is_unknown(leaky: Path):
    _, _, record = audit(leaky)
    test = load_labelled_images(config(leaky), SIZE)["test"]
    seen, from_scratch = seen_test_images(record, test), seen_test_images(NOT_PRETRAINED, test)
    assert seen is not None and not seen.any()
    assert from_scratch is not None and not from_scratch.any()
    assert seen_test_images(None, test) is None
    assert seen_test_images(dataclasses.replace(record, is_complete=False), test) is None
    assert seen_test_images(record, load_labelled_images(config(leaky), 2 * SIZE)["test"]) is None
    Image.new("RGB", (SIZE, SIZE), "white").save(leaky / "test/cat/20.png")
    assert seen_test_images(record, load_labelled_images(config(leaky), SIZE)["test"]) is None


def test_test_images_of_other_sources_are_searched_for_too(leaky: Path):
    data = config(leaky / "unlabeled")
    evaluation = load_evaluation_images(data, [str(leaky)], SIZE)
    train, held_out, record = audit_pretraining(*load_pretraining_images(data, SIZE), evaluation, leave_out=True)
    assert sorted(numbers(train) + numbers(held_out)) == list(range(30, 36))
    assert record.num_test_duplicates == 4
    with pytest.raises(ConfigError, match=r"unlabeled has no test split .*--audit\.sources"):
        load_evaluation_images(config(leaky), [str(leaky / "unlabeled")], SIZE)


def test_a_source_without_test_images_has_none_to_search_for(leaky: Path):
    _, _, record = audit(leaky / "unlabeled")
    assert record.tests == []


def test_a_source_of_duplicates_only_is_refused(image_folder: Path):
    for path in (image_folder / "unlabeled").iterdir():
        path.unlink()
    for number in (20, 21):
        plant(image_folder, f"test/cat/{number}.png", f"unlabeled/{number}.png")
    data = config(image_folder / "unlabeled")
    evaluation = load_evaluation_images(data, [str(image_folder)], SIZE)
    with pytest.raises(ConfigError, match=r"all 1 images duplicate test or validation .*--audit\.leave_out false"):
        audit_pretraining(*load_pretraining_images(data, SIZE), evaluation, leave_out=True)


# ---- prepare_data --audit-against ----


def noise(num: int, seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), np.uint8)


def exact(record: list[dict]) -> list[tuple[int, int]]:
    """Return the rows of the exact duplicates in a file, which may hold no others."""
    assert all((pair["kind"], pair["score"]) == ("exact", 1.0) for pair in record)
    return [(pair["row"], pair["against_row"]) for pair in record]


def write(folder: Path, kind: str = "PNG", **splits: np.ndarray | Sequence[np.ndarray]) -> Path:
    """Write a folder of parquet files, one for each split, with the images as files of `kind`."""
    folder.mkdir()
    for role, images in splits.items():
        column = []
        for image in images:
            Image.fromarray(image).save(file := io.BytesIO(), kind, lossless=True)
            column.append({"bytes": file.getvalue(), "path": None})
        columns = {"image": column} | ({} if role == "unlabeled" else {"label": [i % 2 for i in range(len(images))]})
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
        features = datasets.Features({name: features[name] for name in columns})
        datasets.Dataset.from_dict(columns, features).to_parquet(folder / f"{role}.parquet")
    return folder


def found(source: Path, images: str, kind: str, against: str, rows: str) -> str:
    """Return the line that the command prints about duplicates within a source."""
    return f"{images} unlabeled images of {source} are {kind} of {against} images of {source}{rows}"


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture):
    def prepare(*words: str | Path, size: int = SIZE) -> tuple[str, list[list[dict]]]:
        """Return what the command prints, and the audits that it writes."""
        cache = tmp_path / "cache"
        flags = ["--data.class_names", "null", "--data.cache_dir", cache, "--image_size", size]
        words = [str(word) for word in ["--data.source", *words, *flags]]
        prepare_data(parse.read_command(PrepareConfig, words, "prepare_data"))
        return capsys.readouterr().out, [json.loads(path.read_text()) for path in cache.glob("*.audit-*.json")]

    return prepare


def test_the_command_prints_and_writes_the_rows(tmp_path: Path, prepare):
    test = noise(12, seed=1)
    unlabeled = np.concatenate([noise(5, seed=2), test[[9, 4]], noise(1, seed=3), test[[4]]])
    source = write(tmp_path / "source", train=noise(20, seed=4), test=test, unlabeled=unlabeled)
    printed, [record] = prepare(source, "--audit-against", "test")
    assert found(source, "3 of 9", "exact duplicates", "2 of 12 test", ": rows 5 and 9, 6 and 4, 8 and 4\n") in printed
    assert exact(record) == [(5, 9), (6, 4), (8, 4)]
    assert {(pair["split"], pair["against_split"]) for pair in record} == {("unlabeled", "test")}
    assert str(next((tmp_path / "cache").glob("test-*.audit-*.json"))) in printed


def test_the_command_says_so_when_there_are_no_duplicates(tmp_path: Path, prepare):
    source = write(tmp_path / "source", train=noise(20, seed=1), test=noise(4, seed=2), unlabeled=noise(6, seed=3))
    printed, [record] = prepare(source, "--audit-against", "train")
    assert found(source, "0 of 6", "exact duplicates", "0 of 20 train", "\n") in printed
    assert record == []


def test_the_command_names_the_bad_images_of_all_splits_at_once(image_folder: Path, prepare):
    for name in ("train/cat/03.png", "test/dog/22.png"):
        (image_folder / name).write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"1 of 4 images of test .* and 1 of 20 images of train .*22\.png.*03\.png"):
        prepare(image_folder)


def test_without_the_flag_nothing_is_audited(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    printed, records = prepare(write(tmp_path / "source", train=images, unlabeled=images))
    assert "duplicates" not in printed
    assert records == []


def test_a_duplicate_in_another_file_format_is_found_at_any_image_size(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    labelled = write(tmp_path / "labelled", train=images)
    files = write(tmp_path / "files", kind="WebP", unlabeled=images[[11, 2]])
    for size in (SIZE, SIZE // 2):
        printed, _ = prepare(f"[{labelled}, {files}]", "--audit-against", "train", size=size)
        assert "rows 0 and 11, 1 and 2\n" in printed


def test_an_enlarged_image_is_a_near_duplicate_and_is_drawn(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    large = images[:1].repeat(2, axis=1).repeat(2, axis=2)
    source = write(tmp_path / "source", train=images, unlabeled=[*large, images[6]])
    printed, [record] = prepare(source, "--audit-against", "train")
    assert found(source, "1 of 2", "exact duplicates", "1 of 20 train", ": rows 1 and 6\n") in printed
    assert found(source, "1 of 2", "near-duplicates", "1 of 20 train", ": rows 0 and 0\n") in printed
    near, same = record
    assert (near["row"], near["against_row"], near["kind"]) == (0, 0, "near")
    assert 0.9 < near["score"] < 1
    assert (same["row"], same["against_row"], same["kind"], same["score"]) == (1, 6, "exact", 1.0)
    [picture] = (tmp_path / "cache").glob("*.audit-*.png")
    assert str(picture) in printed
    with Image.open(picture) as opened:
        assert min(opened.size) > 100


def test_a_comparison_is_cached_and_a_broken_file_is_replaced(tmp_path: Path, prepare):
    source = write(tmp_path / "source", train=noise(20, seed=1), unlabeled=noise(20, seed=1)[:2])
    prepare(source, "--audit-against", "train")
    [kept] = (tmp_path / "cache").glob("duplicates-*.parquet")
    pd.read_parquet(kept)[:1].to_parquet(kept)
    assert "1 of 2 unlabeled" in prepare(source, "--audit-against", "train")[0]  # it was read
    kept.write_bytes(b"not a table")
    assert "2 of 2 unlabeled" in prepare(source, "--audit-against", "train")[0]


def test_the_unlabeled_images_of_every_source_are_searched(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    first = write(tmp_path / "first", unlabeled=np.concatenate([noise(3, seed=2), images[[5]]]))
    second = write(tmp_path / "second", train=images, unlabeled=np.concatenate([images[[17]], noise(4, seed=3)]))
    printed, records = prepare(f"[{first}, {second}]", "--audit-against", "train")
    for source, rows, num in ((first, "3 and 5", 4), (second, "0 and 17", 5)):
        images, against = f"1 of {num} unlabeled images of {source}", f"1 of 20 train images of {second}"
        assert f"{images} are exact duplicates of {against}: rows {rows}\n" in printed
    assert {pair["source"] for record in records for pair in record} == {str(first), str(second)}


def test_rows_are_those_of_the_source_where_broken_images_were_skipped(image_folder: Path, prepare):
    duplicate = (image_folder / "test" / "cat" / "21.png").read_bytes()  # row 1 of test
    (image_folder / "test" / "cat" / "20.png").write_bytes(b"not an image")
    (image_folder / "unlabeled" / "31.png").write_bytes(b"not an image")
    (image_folder / "unlabeled" / "34.png").write_bytes(duplicate)
    with pytest.warns(UserWarning, match="1 of .* these images are left out"):
        printed, _ = prepare(image_folder, "--data.on_bad_image", "skip", "--audit-against", "test")
    assert found(image_folder, "1 of 5", "exact duplicates", "1 of 3 test", ": rows 4 and 1\n") in printed


def test_only_the_printed_list_of_many_pairs_is_shortened(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    printed, [record] = prepare(
        write(tmp_path / "source", train=images, unlabeled=images[::-1]), "--audit-against", "train"
    )
    assert ", 9 and 10, ...\n" in printed
    assert exact(record) == [(row, 19 - row) for row in range(20)]


@pytest.mark.parametrize(
    ("roles", "against", "message"),
    [
        (
            ("train", "test"),
            "test",
            r"no unlabeled split to audit, only .*train of .* \(20 images\).*--data.source",
        ),
        (("train", "unlabeled"), "validation", r"no validation split to audit, only .*--audit_against train"),
    ],
)
def test_a_missing_split_is_named_before_anything_is_decoded(tmp_path: Path, prepare, roles, against, message):
    source = write(tmp_path / "source", **{role: noise(20, seed=1) for role in roles})
    with pytest.raises(ConfigError, match=message):
        prepare(source, "--audit-against", against)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["duplicates-*.parquet", "*.audit-*.json"])
def test_the_message_about_an_unwritable_file_names_the_flag(tmp_path: Path, prepare, name: str):
    source = write(tmp_path / "source", train=noise(20, seed=1), unlabeled=noise(3, seed=2))
    prepare(source, "--audit-against", "train")
    [file] = (tmp_path / "cache").glob(name)
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match=rf"cannot write .*{file.suffix[1:]} .*--data\.cache_dir"):
        prepare(source, "--audit-against", "train")
