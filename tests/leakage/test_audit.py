"""Planted copies among unlabeled images are found, all of them and nothing else, and written down by row."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mae_hf.commands import prepare_data
from mae_hf.errors import ConfigError

SIZE = 12


def noise(num: int, seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), np.uint8)


def equal(row: int, against_row: int) -> dict:
    """What the file says of a pair of equal images."""
    return {"row": row, "against_row": against_row, "kind": "equal", "score": 1.0}


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


# ---- the command ----


def test_the_command_names_the_rows_and_writes_them_down(tmp_path: Path, prepare):
    test = noise(12, seed=1)
    unlabeled = np.concatenate([noise(5, seed=2), test[[9, 4]], noise(1, seed=3), test[[4]]])
    source = write(tmp_path / "source", train=noise(20, seed=4), test=test, unlabeled=unlabeled)
    printed, [record] = prepare(source, "--audit-against", "test")
    assert "3 of 9 unlabeled images equal 2 of 12 test images: rows 5 = 9, 6 = 4, 8 = 4\n" in printed
    assert record["unlabeled"][0]["pairs"] == [equal(5, 9), equal(6, 4), equal(8, 4)]
    assert (record["against"]["split"], record["against"]["images"]) == ("test", 12)
    assert str(next((tmp_path / "cache").glob("test-*.audit.json"))) in printed


def test_the_command_says_so_when_nothing_is_copied(tmp_path: Path, prepare):
    source = write(tmp_path / "source", train=noise(20, seed=1), test=noise(4, seed=2), unlabeled=noise(6, seed=3))
    printed, [record] = prepare(source, "--audit-against", "train")
    assert "0 of 6 unlabeled images equal 0 of 20 train images\n" in printed
    assert record["unlabeled"][0]["pairs"] == []


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


def test_an_enlarged_copy_is_not_equal_but_near_and_both_are_in_the_picture(tmp_path: Path, prepare):
    images = noise(20, seed=1)
    large = images[:1].repeat(2, axis=1).repeat(2, axis=2)
    source = write(tmp_path / "source", train=images, unlabeled=[*large, images[6]])
    printed, [record] = prepare(source, "--audit-against", "train")
    assert "1 of 2 unlabeled images equal 1 of 20 train images: rows 1 = 6\n" in printed
    assert "1 of 2 unlabeled images are near copies of 1 of 20 train images: rows 0 ~ 0 (0.9" in printed
    near, same = record["unlabeled"][0]["pairs"]
    assert (near["row"], near["against_row"], near["kind"]) == (0, 0, "near")
    assert 0.9 < near["score"] < 1
    assert same == equal(1, 6)
    [picture] = (tmp_path / "cache").glob("*.audit-*.png")
    assert str(picture) in printed
    with Image.open(picture) as opened:
        assert min(opened.size) > 100


def test_an_audit_is_kept_beside_the_images_and_a_broken_one_is_made_again(tmp_path: Path, prepare):
    source = write(tmp_path / "source", train=noise(20, seed=1), unlabeled=noise(20, seed=1)[:2])
    prepare(source, "--audit-against", "train")
    [kept] = (tmp_path / "cache").glob("copies-*.npz")
    with np.load(kept) as whole:
        forged = {**whole, "pairs": whole["pairs"][:1], "scores": whole["scores"][:1], "equal": whole["equal"][:1]}
    np.savez(kept, **forged)
    assert "1 of 2 unlabeled images equal 1 of" in prepare(source, "--audit-against", "train")[0]  # it was read
    kept.write_bytes(b"not an archive")
    assert "2 of 2 unlabeled images equal 2 of" in prepare(source, "--audit-against", "train")[0]


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
    assert record["unlabeled"][0]["pairs"] == [equal(row, 19 - row) for row in range(20)]


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
