"""Planted copies among unlabeled images are found, all of them and nothing else, and written down by row."""

import io
import json
import tracemalloc
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mae_hf.config import ConfigError
from mae_hf.data.audit import exact_duplicates
from scripts import prepare_data

SIZE = 12


def noise(num: int, seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), np.uint8)


def by_comparison(images: np.ndarray, against: np.ndarray) -> list[list[int]]:
    """Every pair of equal images, each compared with each."""
    return [[i, j] for i, j in product(range(len(images)), range(len(against))) if (images[i] == against[j]).all()]


def write(folder: Path, kind: str = "PNG", **splits: np.ndarray | Sequence[np.ndarray]) -> Path:
    """A folder of parquet files, one a split, with the images as files of `kind`."""
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


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture):
    def prepare(*words: str | Path, size: int = SIZE) -> tuple[str, list[dict]]:
        """What the script prints, and the audits that it writes."""
        cache = tmp_path / "cache"
        flags = ["--data.class_names", "null", "--data.cache_dir", cache, "--image_size", size]
        prepare_data.main([str(word) for word in ["--data.source", *words, *flags]])
        return capsys.readouterr().out, [json.loads(path.read_text()) for path in cache.glob("*.audit.json")]

    return prepare


# ---- pairs of equal images ----


def test_copies_are_found_in_any_order():
    against = noise(40, seed=1)
    images = np.concatenate([noise(300, seed=2), against[[7, 3, 39]], noise(5, seed=3)])
    assert exact_duplicates(images, against).tolist() == [[300, 7], [301, 3], [302, 39]]


def test_nothing_is_found_where_nothing_is_copied():
    pairs = exact_duplicates(noise(30, seed=1), noise(40, seed=2))
    assert pairs.shape == (0, 2)
    assert pairs.dtype == np.int64


def test_several_copies_of_one_image_are_that_many_pairs():
    random = np.random.default_rng(0)
    originals = noise(6, seed=1)
    images, against = originals[random.integers(0, 6, 50)], originals[random.integers(1, 6, 40)]
    found = exact_duplicates(images, against).tolist()
    assert found == by_comparison(images, against)
    assert len(found) > 200


def test_one_value_of_one_pixel_is_a_difference():
    image = noise(1, seed=1)
    other = image.copy()
    other[0, -1, -1, -1] ^= 1
    assert len(exact_duplicates(image, image)) == 1
    assert len(exact_duplicates(image, other)) == 0


def test_the_same_bytes_in_another_shape_are_another_image():
    image = np.zeros((1, 4, 9, 3), np.uint8)
    assert len(exact_duplicates(image, image.reshape(1, 6, 6, 3))) == 0


def test_a_view_with_its_axes_swapped_is_compared_as_it_looks():
    images = noise(3, seed=1)
    turned = images.transpose(0, 2, 1, 3)
    assert exact_duplicates(turned, np.ascontiguousarray(turned)).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert len(exact_duplicates(turned, images)) == 0


def test_memory_does_not_grow_with_the_images_and_little_with_those_they_are_compared_with(tmp_path: Path):
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (4000, 8, 8, 3))
    images[:] = noise(4000, seed=1, size=8)

    def peak(num: int, num_against: int) -> int:
        tracemalloc.start()
        exact_duplicates(images[:num], ~images[:num_against])  # the inverse: no image equals one of these
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(300, 300)  # the first call imports
    inverse = 3 * 8 * 8
    assert peak(4000, 500) - peak(1000, 500) < 3000 * 4  # kept digests would be 3000 * 16
    assert (peak(4000, 4000) - peak(4000, 1000)) / 3000 < inverse + 48


# ---- the command ----


def test_the_command_names_the_rows_and_writes_them_down(tmp_path: Path, prepare):
    test = noise(12, seed=1)
    unlabeled = np.concatenate([noise(5, seed=2), test[[9, 4]], noise(1, seed=3), test[[4]]])
    source = write(tmp_path / "source", train=noise(20, seed=4), test=test, unlabeled=unlabeled)
    printed, [record] = prepare(source, "--audit-against", "test")
    assert "3 of 9 unlabeled images equal 2 of 12 test images: rows 5 = 9, 6 = 4, 8 = 4\n" in printed
    assert record["unlabeled"][0]["pairs_of_rows"] == [[5, 9], [6, 4], [8, 4]]
    assert (record["against"]["split"], record["against"]["images"]) == ("test", 12)
    assert str(next((tmp_path / "cache").glob("test-*.audit.json"))) in printed


def test_the_command_says_so_when_nothing_is_copied(tmp_path: Path, prepare):
    source = write(tmp_path / "source", train=noise(20, seed=1), test=noise(4, seed=2), unlabeled=noise(6, seed=3))
    printed, [record] = prepare(source, "--audit-against", "train")
    assert "0 of 6 unlabeled images equal 0 of 20 train images\n" in printed
    assert record["unlabeled"][0]["pairs_of_rows"] == []


def test_without_the_flag_nothing_is_audited(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    printed, records = prepare(write(tmp_path / "source", train=images, unlabeled=images))
    assert "equal" not in printed
    assert records == []


def test_a_copy_in_another_file_format_is_found_at_any_size_of_the_runs(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    labelled = write(tmp_path / "labelled", train=images)
    files = write(tmp_path / "files", kind="WebP", unlabeled=images[[11, 2]])
    for size in (SIZE, SIZE // 2):
        printed, _ = prepare(f"[{labelled}, {files}]", "--audit-against", "train", size=size)
        assert "rows 0 = 11, 1 = 2\n" in printed


def test_an_enlarged_copy_is_not_equal(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    large = images[:3].repeat(2, axis=1).repeat(2, axis=2)
    source = write(tmp_path / "source", train=images, unlabeled=[*large, images[6]])
    assert (
        "1 of 4 unlabeled images equal 1 of 20 train images: rows 3 = 6\n"
        in prepare(source, "--audit-against", "train")[0]
    )


def test_every_source_with_unlabeled_images_is_held_against_the_one_with_the_split(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    first = write(tmp_path / "first", unlabeled=np.concatenate([noise(3, seed=2), images[[5]]]))
    second = write(tmp_path / "second", train=images, unlabeled=np.concatenate([images[[17]], noise(4, seed=3)]))
    printed, [record] = prepare(f"[{first}, {second}]", "--audit-against", "train")
    for source, rows, num in ((first, "3 = 5", 4), (second, "0 = 17", 5)):
        line = f"1 of {num} unlabeled images of {source} equal 1 of 20 train images of {second}: rows {rows}\n"
        assert line in printed
    assert [part["source"] for part in record["unlabeled"]] == [str(first), str(second)]


def test_rows_are_those_of_the_source_where_broken_images_were_left_out(image_folder: Path, prepare):
    copy = (image_folder / "test" / "cat" / "21.png").read_bytes()  # row 1 of test
    (image_folder / "test" / "cat" / "20.png").write_bytes(b"not an image")
    (image_folder / "unlabeled" / "31.png").write_bytes(b"not an image")
    (image_folder / "unlabeled" / "34.png").write_bytes(copy)
    with pytest.warns(UserWarning, match="left out 1 of"):
        printed, _ = prepare(image_folder, "--data.on_bad_image", "skip", "--audit-against", "test")
    assert "1 of 5 unlabeled images equal 1 of 3 test images: rows 4 = 1\n" in printed


def test_many_pairs_are_shortened_on_the_screen_only(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    printed, [record] = prepare(
        write(tmp_path / "source", train=images, unlabeled=images[::-1]), "--audit-against", "train"
    )
    assert ", 9 = 10 and 10 more\n" in printed
    assert record["unlabeled"][0]["pairs_of_rows"] == [[row, 19 - row] for row in range(20)]


@pytest.mark.parametrize(
    ("roles", "against", "message"),
    [
        (
            ("train", "test"),
            "test",
            r"no unlabeled split to audit, only .*train of .* \(20 images\).*--data.source",
        ),
        (("train", "unlabeled"), "validation", r"no validation split to audit against, only .*--audit_against train"),
    ],
)
def test_a_missing_split_is_named_before_anything_is_decoded(tmp_path: Path, prepare, roles, against, message):
    source = write(tmp_path / "source", **{role: noise(20, seed=1) for role in roles})
    with pytest.raises(ConfigError, match=message):
        prepare(source, "--audit-against", against)
    assert not (tmp_path / "cache").exists()


def test_an_audit_that_cannot_be_written_says_which_flag_mends_it(tmp_path: Path, prepare):
    source = write(tmp_path / "source", train=noise(20, seed=1), unlabeled=noise(3, seed=2))
    prepare(source, "--audit-against", "train")
    [file] = (tmp_path / "cache").glob("*.audit.json")
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match=r"audit\.json cannot be written .*--data\.cache_dir"):
        prepare(source, "--audit-against", "train")
