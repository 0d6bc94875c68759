"""Test images that are planted among those of pre-training are left out or remembered, and known again later."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import ImageSet, load_labelled_images, load_pretraining_images, load_test_images
from mae_hf.errors import ConfigError
from mae_hf.leakage.record import NOT_PRETRAINED, audit_pretraining, describe_audit, seen_test_images

SIZE = 12


def config(source: Path | list[str], **options: object) -> DataConfig:
    source = source if isinstance(source, list) else str(source)
    return DataConfig(**{"source": source, "validation_fraction": 0.2, **options})


def numbers(images: ImageSet) -> list[int]:
    """The number that each image's colour spells (see conftest.py)."""
    return images.batch(np.arange(len(images)))[:, 0, 0, 0].tolist()


def plant(folder: Path, original: str, copy: str) -> None:
    (folder / copy).write_bytes((folder / original).read_bytes())


@pytest.fixture
def leaky(image_folder: Path) -> Path:
    """Test images 20, 21 and 23 are unlabeled ones too, 20 twice; 22 is a train image."""
    for number, copies in ((20, ("36", "37")), (21, ("00",)), (23, ("33b",))):
        for copy in copies:
            plant(image_folder, f"test/{'cat' if number < 22 else 'dog'}/{number}.png", f"unlabeled/{copy}.png")
    plant(image_folder, "test/dog/22.png", "train/dog/30.png")
    return image_folder


def audit(source: Path, leave_out: bool = True, **options: object) -> tuple[ImageSet, ImageSet, dict]:
    data = config(source, **options)
    train, held_out = load_pretraining_images(data, SIZE)
    return audit_pretraining(train, held_out, load_test_images(data, (), SIZE), leave_out)


def test_copies_of_test_images_are_left_out_of_both_sets_and_nothing_else(leaky: Path):
    before = [numbers(images) for images in load_pretraining_images(config(leaky), SIZE)]
    train, held_out, record = audit(leaky)
    after = [numbers(train), numbers(held_out)]
    assert after == [[number for number in part if number not in (20, 21, 22, 23)] for part in before]
    assert len(before[0]) + len(before[1]) - len(train) - len(held_out) == 5
    assert record["num_copies"] == 5
    assert record["seen"] == []
    [test] = record["tests"]
    assert (test["images"], test["num_copied"], test["num_seen"]) == (4, 4, 0)
    assert describe_audit(record) == "5 images are copies of 4 of the 4 test images: left out"
    assert json.loads(json.dumps(record)) == record


def test_the_pairs_are_named_by_their_rows(leaky: Path):
    _, _, record = audit(leaky)
    rows = {(pair["split"], pair["row"], pair["against_row"], pair["kind"]) for pair in record["pairs"]}
    # by name: 00 30 31 32 33 33b 34 35 36 37, and the 21st train image
    unlabeled = {(0, 1), (5, 3), (8, 0), (9, 0)}
    assert rows == {*(("unlabeled", *pair, "equal") for pair in unlabeled), ("train", 20, 2, "equal")}


def test_copies_that_stay_are_known_when_the_test_images_are_scored(leaky: Path):
    (leaky / "train/dog/30.png").unlink()
    train, _, record = audit(leaky, leave_out=False)
    assert numbers(train) == numbers(load_pretraining_images(config(leaky), SIZE)[0])
    assert record["tests"][0]["num_seen"] == 3
    assert len(record["seen"]) == 3
    test = load_labelled_images(config(leaky), SIZE)["test"]
    assert seen_test_images(record, test).tolist() == [True, True, False, True]
    assert describe_audit(record).endswith("4 images are copies of 3 of the 4 test images: not left out")


def test_no_copies_are_said_to_be_none_and_change_no_set(image_folder: Path):
    before = load_pretraining_images(config(image_folder), SIZE)
    *after, record = audit(image_folder)
    assert [images.fingerprint for images in after] == [images.fingerprint for images in before]
    assert describe_audit(record) == "no image is a copy of one of the 4 test images"


def test_a_copy_that_is_only_held_out_was_not_seen(image_folder: Path):
    held_out = config(image_folder)
    [number, *_] = numbers(load_pretraining_images(held_out, SIZE)[1])
    name = f"train/{'cat' if number < 10 else 'dog'}/{number:02}.png"
    plant(image_folder, name, "test/cat/20.png")
    _, _, record = audit(image_folder, leave_out=False)
    assert record["num_copies"] == 1
    assert record["seen"] == []


def test_a_test_set_that_is_carved_from_train_is_no_copy_of_itself(image_folder: Path):
    for path in (image_folder / "test").rglob("*.png"):
        path.rename(image_folder / "train" / path.parent.name / path.name)
    (image_folder / "test/cat").rmdir(), (image_folder / "test/dog").rmdir(), (image_folder / "test").rmdir()
    plant(image_folder, "train/cat/00.png", "unlabeled/40.png")
    train, held_out, record = audit(image_folder, test_fraction=0.5)
    test = numbers(load_test_images(config(image_folder, test_fraction=0.5), (), SIZE)[0])
    assert record["num_copies"] == (0 in test)
    assert not set(test) & {*numbers(train), *numbers(held_out)}


def test_what_was_not_looked_for_is_not_known(leaky: Path):
    _, _, record = audit(leaky)
    test = load_labelled_images(config(leaky), SIZE)["test"]
    assert not seen_test_images(record, test).any()
    assert seen_test_images(None, test) is None
    assert seen_test_images(record, load_labelled_images(config(leaky), 2 * SIZE)["test"]) is None
    Image.new("RGB", (SIZE, SIZE), "white").save(leaky / "test/cat/20.png")
    assert seen_test_images(record, load_labelled_images(config(leaky), SIZE)["test"]) is None
    assert not seen_test_images(NOT_PRETRAINED, test).any()
    assert describe_audit(NOT_PRETRAINED).startswith("trained from scratch")


def test_sources_without_test_images_are_said_to_have_none(leaky: Path):
    _, _, record = audit(leaky / "unlabeled")
    assert record["tests"] == []
    assert "--audit.sources" in describe_audit(record)


def test_test_images_of_other_sources_are_looked_for_too(leaky: Path):
    data = config(leaky / "unlabeled")
    train, held_out = load_pretraining_images(data, SIZE)
    tests = load_test_images(data, [str(leaky)], SIZE)
    train, held_out, record = audit_pretraining(train, held_out, tests, leave_out=True)
    assert sorted(numbers(train) + numbers(held_out)) == list(range(30, 36))
    assert record["num_copies"] == 4


def test_another_source_without_test_images_is_named(leaky: Path):
    with pytest.raises(ConfigError, match=r"unlabeled has no test split with labels .*--audit\.sources"):
        load_test_images(config(leaky), [str(leaky / "unlabeled")], SIZE)


def test_a_source_of_nothing_but_copies_is_refused(image_folder: Path):
    for path in (image_folder / "unlabeled").iterdir():
        path.unlink()
    for number in (20, 21):
        plant(image_folder, f"test/cat/{number}.png", f"unlabeled/{number}.png")
    data = config(image_folder / "unlabeled")
    tests = load_test_images(data, [str(image_folder)], SIZE)
    with pytest.raises(ConfigError, match=r"all 1 images are copies of test images.*--audit\.leave_out false"):
        audit_pretraining(*load_pretraining_images(data, SIZE), tests, leave_out=True)
