"""The right rows reach each stage: no test image is used before the end, and labels belong to their images."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import open_stores
from mae_hf.data.dataset import (
    DeviceImages,
    ImageSet,
    _copy_whole,
    holds_all,
    load_evaluation_images,
    load_image_files,
    load_labelled_images,
    load_pretraining_images,
)
from mae_hf.data.splits import Split
from mae_hf.errors import ConfigError


def config(source: object, **options) -> DataConfig:
    return DataConfig(
        **{
            "source": source if isinstance(source, list) else str(source),
            "class_names": None,
            "validation_fraction": 0.2,
            **options,
        }
    )


def numbers(images: ImageSet) -> list[int]:
    """The number that each image's colour spells (see conftest.py)."""
    return images.batch(np.arange(len(images)))[:, 0, 0, 0].tolist()


def test_pretraining_uses_unlabeled_and_train_and_holds_out_validation(image_folder):
    train, held_out = load_pretraining_images(config(image_folder), 12)
    labelled = load_labelled_images(config(image_folder), 12)
    assert sorted(numbers(train) + numbers(held_out)) == [*range(20), *range(30, 36)]
    assert numbers(held_out) == numbers(labelled["validation"])
    assert sorted(numbers(labelled["train"]) + numbers(held_out)) == list(range(20))
    assert numbers(labelled["test"]) == [20, 21, 22, 23]


def test_validation_has_each_class_by_its_share_and_depends_on_the_seed(image_folder):
    validation = load_labelled_images(config(image_folder), 12)["validation"]
    assert validation.labels.tolist() == [0, 0, 1, 1]
    others = [load_labelled_images(config(image_folder, split_seed=seed), 12)["validation"] for seed in (0, 1, 2)]
    assert numbers(others[0]) == numbers(validation)
    assert len({tuple(numbers(other)) for other in others}) > 1


def test_labels_and_class_names_belong_to_their_images(image_folder):
    for images in load_labelled_images(config(image_folder), 12).values():
        expected = [0 if number < 10 or number in (20, 21) else 1 for number in numbers(images)]
        assert images.labels.tolist() == expected
        assert images.class_names == ("cat", "dog")


def test_labels_stay_with_their_images_when_some_are_skipped(image_folder):
    for name in ("cat/00.png", "cat/04.png", "dog/12.png"):
        (image_folder / "train" / name).write_bytes(b"bad")
    with pytest.warns(UserWarning, match="3 of 20 .* these images are left out"):
        found = load_labelled_images(config(image_folder, on_bad_image="skip"), 12)
    assert len(found["train"]) + len(found["validation"]) == 17
    for role in ("train", "validation"):
        assert found[role].labels.tolist() == [int(number >= 10) for number in numbers(found[role])]


def test_pretraining_never_opens_the_test_split(image_folder):
    for file in (image_folder / "test").rglob("*.png"):
        file.write_bytes(b"cannot be decoded")
    load_pretraining_images(config(image_folder), 12)
    with pytest.raises(ConfigError, match=r"no image of test in .* can be decoded"):
        load_labelled_images(config(image_folder), 12, roles=("test",))


def test_the_sources_own_validation_split_is_used_unchanged(image_folder):
    shutil.copytree(image_folder / "test", image_folder / "validation")
    for file in list((image_folder / "test").rglob("*.png")):
        file.write_bytes(b"not opened")
    train, held_out = load_pretraining_images(config(image_folder), 12)
    assert numbers(held_out) == [20, 21, 22, 23]
    assert sorted(numbers(train)) == [*range(20), *range(30, 36)]


def test_without_labels_a_part_of_the_unlabeled_images_is_held_out(image_folder):
    train, held_out = load_pretraining_images(config(image_folder / "unlabeled"), 12)
    assert len(held_out) == 1
    assert sorted(numbers(train) + numbers(held_out)) == list(range(30, 36))
    assert (set(train.labels), train.class_names) == ({-1}, ())


def test_several_sources_are_joined_and_a_batch_may_mix_them(image_folder):
    sources = [str(image_folder / "unlabeled"), str(image_folder / "train"), "digits"]
    train, held_out = load_pretraining_images(config(sources), 12)
    assert len(train) == 6 + 16 + 1000 + 240
    assert len(held_out) == 4 + 60
    assert set(train.labels) == set(held_out.labels) == {-1}  # classes of different sources
    everything = train.batch(np.arange(len(train)))
    rows = np.random.default_rng(0).permutation(len(train))[:100]
    rows[:3] = 0, 7, len(train) - 1
    np.testing.assert_array_equal(train.batch(rows), everything[rows])
    files = [file for split in ("unlabeled", "train") for file in sorted((image_folder / split).rglob("*.png"))]
    from_disk = {int(file.stem): np.asarray(Image.open(file)) for file in files}
    for number, image in zip(numbers(train)[:22], everything[:22], strict=True):
        np.testing.assert_array_equal(image, from_disk[number])


def test_a_batch_shares_no_memory_with_the_cache(image_folder):
    images = load_labelled_images(config(image_folder), 12, roles=("test",))["test"]
    batch = images.batch([3, 0, 3])
    assert (batch.shape, batch.dtype) == ((3, 12, 12, 3), torch.uint8)
    assert batch[:, 0, 0, 0].tolist() == [23, 20, 23]
    batch.zero_()
    assert numbers(images) == [20, 21, 22, 23]
    with pytest.raises(IndexError):
        images.batch([4])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process its own memory")
def test_the_memory_of_a_process_does_not_grow_with_the_images(tmp_path):
    """100,000 images of 96 px, 2.8 GB; the file is sparse, so that it takes no disk."""

    def own_memory() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10

    cached = DataConfig(cache_dir=str(tmp_path))
    one = np.zeros((1, 96, 96, 3), np.uint8)
    many = np.broadcast_to(one[0], (100_000, 96, 96, 3))
    [store] = open_stores([Split("drawn", "unlabeled", one, None, None, "many")], 96, cached)
    with open(store.path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": many.shape})
        file.truncate(file.tell() + many.size)

    before = own_memory()
    [store] = open_stores([Split("drawn", "unlabeled", many, None, None, "many")], 96, cached)
    assert store.was_there
    images = ImageSet([(store, np.arange(100_000))])
    assert images.labels.tolist() == [-1] * 100_000
    order = np.random.default_rng(0).permutation(100_000)
    for start in range(0, 100_000, 512):
        assert images.batch(order[start : start + 512])[-1, -1, -1, -1] == 0
    assert own_memory() - before < 100


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(image_folder, tmp_path):
    first = load_pretraining_images(config(image_folder), 12)[0]
    moved = tmp_path / "elsewhere"
    shutil.copytree(image_folder, moved)
    assert load_pretraining_images(config(moved), 12)[0].fingerprint == first.fingerprint
    assert load_pretraining_images(config(moved, split_seed=1), 12)[0].fingerprint != first.fingerprint
    Image.new("RGB", (12, 12)).save(moved / "train" / "cat" / "00.png")
    assert load_pretraining_images(config(moved), 12)[0].fingerprint != first.fingerprint


def test_test_is_carved_from_train_on_request(image_folder):
    shutil.rmtree(image_folder / "test")
    with pytest.raises(
        ConfigError, match=r"has no labelled test split, only train \(20 images\), .* \(--data.test_fraction 0.2\)"
    ):
        load_labelled_images(config(image_folder), 12)
    carved = load_labelled_images(config(image_folder, test_fraction=0.2), 12)
    assert {role: len(images) for role, images in carved.items()} == {"train": 13, "validation": 3, "test": 4}
    assert sorted(number for images in carved.values() for number in numbers(images)) == list(range(20))
    assert carved["test"].labels.tolist() == [0, 0, 1, 1]
    seen = [
        number
        for images in load_pretraining_images(config(image_folder, test_fraction=0.2), 12)
        for number in numbers(images)
    ]
    assert not set(seen) & set(numbers(carved["test"]))


@pytest.fixture
def unlabelled_test(image_folder) -> Path:
    """The image folder, with test images that are not in class folders."""
    for file in (image_folder / "test").rglob("*.png"):
        file.rename(image_folder / "test" / file.name)
    for name in ("cat", "dog"):
        (image_folder / "test" / name).rmdir()
    return image_folder


def test_a_test_split_without_labels_is_refused_where_labels_are_needed(unlabelled_test):
    with pytest.raises(ConfigError, match=r"^test of .* has no labels: put its images into a folder per class"):
        load_labelled_images(config(unlabelled_test), 12)
    assert len(load_labelled_images(config(unlabelled_test), 12, roles=("train", "validation"))["train"]) == 16


def test_a_test_split_without_labels_is_audited_against_and_not_trained_on(unlabelled_test):
    train, held_out = load_pretraining_images(config(unlabelled_test), 12)
    assert sorted(numbers(train) + numbers(held_out)) == [*range(20), *range(30, 36)]
    [test] = load_evaluation_images(config(unlabelled_test), (), 12)["test"]
    assert numbers(test) == [20, 21, 22, 23]
    assert (set(test.labels), test.class_names) == ({-1}, ())


@pytest.mark.parametrize("roles", [("train",), ("validation",), ("test",)])
def test_a_source_without_labels_cannot_be_fine_tuned_on(image_folder, roles):
    with pytest.raises(ConfigError, match=r"has no labelled (train|test) split, only unlabeled \(6 images\)"):
        load_labelled_images(config(image_folder / "unlabeled"), 12, roles)


def test_a_source_of_test_images_alone_cannot_be_pretrained_on(image_folder):
    for name in ("train", "unlabeled"):
        shutil.rmtree(image_folder / name)
    with pytest.raises(ConfigError, match=r"has neither an unlabeled nor a train split: name another source"):
        load_pretraining_images(config(image_folder), 12)
    assert len(load_labelled_images(config(image_folder), 12, roles=("test",))["test"]) == 4


def test_a_source_with_too_few_images_for_validation_is_refused(tmp_path: Path):
    Image.new("RGB", (12, 12)).save(tmp_path / "only.png")
    with pytest.raises(ConfigError, match=r"validation_fraction 0.2 leaves none of the 1 images of unlabeled"):
        load_pretraining_images(config(tmp_path), 12)


def test_labels_from_two_sources_are_refused(image_folder):
    with pytest.raises(ConfigError, match="labelled images come from one source"):
        load_labelled_images(config(["digits", str(image_folder)]), 12)


@pytest.mark.parametrize(
    ("load", "splits"),
    [
        (lambda folder: load_labelled_images(config(folder), 12), ("train", "test")),
        (lambda folder: load_labelled_images(config(folder, label_fraction=0.9), 12), ("train", "test")),
        (lambda folder: load_pretraining_images(config(folder), 12), ("unlabeled", "train")),
        (lambda folder: load_evaluation_images(config(folder), (), 12), ("test", "train", "unlabeled")),
    ],
)
def test_one_message_names_the_bad_images_of_all_splits(image_folder, tmp_path, load, splits):
    """The last case is the first that pre-training loads, which trains on the splits that are not test."""
    files = {split: next((image_folder / split).rglob("*.png")) for split in ("unlabeled", "train", "test")}
    for file in files.values():
        file.write_bytes(b"no image")
    with pytest.raises(ConfigError) as raised:
        load(image_folder)
    counts = {"unlabeled": "1 of 6 images", "train": "1 of 20 images", "test": "1 of 4 images"}
    message = str(raised.value)
    which = " and ".join(f"{counts[split]} of {split} in {image_folder}" for split in splits)
    assert message.startswith(f"{which} cannot be decoded: {files[splits[0]]} (")
    assert all(str(files[split]) in message for split in splits)
    [lists] = re.findall(r"all are listed in (.+): replace such files", message)
    listed = {line.split(": ")[0] for file in lists.split(" and ") for line in Path(file).read_text().splitlines()}
    assert listed == {str(files[split]) for split in splits}


def test_image_files_are_decoded_like_the_images_of_a_source(tmp_path):
    Image.new("RGB", (30, 40), (7, 14, 100)).save(tmp_path / "seven.png")
    Image.new("L", (12, 12), 9).save(tmp_path / "grey.png")
    images = load_image_files([str(tmp_path / "seven.png"), str(tmp_path / "grey.png")], 12, DataConfig())
    assert images.shape == (2, 12, 12, 3)
    assert (images[0] == torch.tensor([7, 14, 100])).all()
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"broken.png cannot be decoded.*--data.source"):
        load_image_files([str(tmp_path / "broken.png")], 12, DataConfig())


def test_batches_on_a_cpu_are_read_from_the_cache(image_folder: Path):
    images = load_labelled_images(DataConfig(source=str(image_folder)), 12, roles=("train",))["train"]
    on_cpu = DeviceImages(images, torch.device("cpu"), "always")
    rows = np.array([5, 0, 5])
    assert torch.equal(on_cpu.batch(rows), images.batch(rows))
    assert on_cpu.labels.tolist() == images.labels.tolist()


def test_the_whole_set_is_copied_in_order(image_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mae_hf.data.dataset.COPIED_AT_ONCE", 5)  # 18 images: the last chunk is not full
    images = load_labelled_images(DataConfig(source=str(image_folder)), 12, roles=("train",))["train"]
    whole = _copy_whole(images, torch.device("cpu"))
    assert torch.equal(whole, images.batch(range(len(images))))


@pytest.mark.parametrize(
    ("on_device", "num_bytes", "held"),
    [("auto", 250, True), ("auto", 251, False), ("always", 5000, True), ("never", 1, False)],
)
def test_a_gpu_holds_all_images_up_to_a_quarter_of_its_free_memory_or_as_configured(on_device, num_bytes, held):
    assert holds_all(num_bytes, 1000, on_device) is held


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("on_device", ["auto", "always", "never"])
def test_a_gpu_gets_the_same_batches_and_the_host_does_not_wait(image_folder: Path, on_device: str):
    images = load_labelled_images(DataConfig(source=str(image_folder)), 12, roles=("train",))["train"]
    on_gpu = DeviceImages(images, torch.device("cuda"), on_device)
    rows = np.array([5, 0, 5])
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = on_gpu.batch(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(batch.cpu(), images.batch(rows))
