"""Every image of any folder is listed with its name and label; a folder that suits training is read as for training."""

import os
from pathlib import Path

import pytest
from PIL import Image

from mae_hf.__main__ import check_paths
from mae_hf.config.commands import (
    CompareConfig,
    EmbedConfig,
    EvaluateConfig,
    FewLabelsConfig,
    PredictConfig,
    ReconstructConfig,
)
from mae_hf.config.data import DataConfig
from mae_hf.data.locations import check_images, check_output
from mae_hf.data.sources import list_images, load_splits
from mae_hf.data.splits import name_images
from mae_hf.errors import ConfigError

FILES = {  # file -> split and label
    "a.png": (None, None),
    "Cats/b.JPG": (None, "Cats"),
    "Cats/old/c.png": (None, "old"),
    "Test/d.png": ("test", None),
    "Test/Dogs/e.png": ("test", "Dogs"),
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder that training refuses: images beside and in split folders and class folders, and other files."""
    folder = tmp_path / "mixed"
    for number, name in enumerate((*FILES, ".hidden/f.png", "__MACOSX/g.png", "Cats/.h.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name, format="PNG")
    (folder / "notes.txt").write_text("no image")
    return folder


def listed(*sources: object, like_training: bool = False) -> list[dict]:
    splits = list_images(DataConfig(source=[str(source) for source in sources]), like_training=like_training)
    return [row for split in splits for row in name_images(split).to_pylist()]


@pytest.mark.parametrize("like_training", [False, True])
def test_every_image_of_a_folder_in_any_layout_is_listed(mixed: Path, like_training: bool):
    found = {row["file"]: (row["split"], row["label"]) for row in listed(mixed, like_training=like_training)}
    assert found == FILES


def test_names_that_are_not_utf8_are_listed_with_replacements(tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / os.fsdecode(b"\xfe.png"), format="PNG")
    (row,) = listed(tmp_path)
    assert (row["file"], row["label"]) == ("\ufffd/\ufffd.png", "\ufffd")


def test_image_files_have_the_names_that_were_typed(mixed: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(mixed)
    rows = listed("Cats/b.JPG", mixed / "a.png", "notes.txt")
    assert [row["file"] for row in rows] == ["Cats/b.JPG", str(mixed / "a.png"), "notes.txt"]
    assert {(row["split"], row["label"]) for row in rows} == {(None, None)}


def test_a_folder_as_for_training_is_read_as_training_reads_it(image_folder: Path):
    config = DataConfig(source=str(image_folder))
    expected = {role: split.fingerprint for role, split in load_splits(config, config.sources[0]).items()}
    assert {split.role: split.fingerprint for split in list_images(config, like_training=True)} == expected
    walked, trained = listed(image_folder), listed(image_folder, like_training=True)
    for rows in (walked, trained):
        rows.sort(key=lambda row: row["file"])
    unlabelled = [row | {"label": None} if row["split"] == "unlabeled" else row for row in walked]
    assert unlabelled == trained


def test_a_source_without_files_is_named_by_split_and_row():
    rows = listed("digits")
    assert len(rows) == 1797 and {row["file"] for row in rows} == {None}
    assert rows[1000] == {"file": None, "split": "train", "row": 0, "label": rows[1000]["label"]}
    assert {row["label"] for row in rows[:1000]} == {None}
    assert {row["label"] for row in rows[1000:]} == set("0123456789")


def test_a_replaced_file_changes_the_fingerprint(mixed: Path):
    config = DataConfig(source=str(mixed))
    before = [split.fingerprint for split in list_images(config, like_training=True)]
    assert [split.fingerprint for split in list_images(config, like_training=True)] == before
    os.utime(mixed / "a.png", (1, 1))
    after = [split.fingerprint for split in list_images(config, like_training=True)]
    assert after[0] != before[0] and after[1:] == before[1:]


def test_a_folder_without_images_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ConfigError, match=r"holds no images, parquet files or STL-10 binaries"):
        listed(tmp_path)


def test_sources_and_output_that_cannot_be_right_are_refused(mixed: Path, tmp_path: Path):
    check_images([str(mixed)], str(tmp_path / "new" / "out.csv"))
    for sources, output, message in (
        ([mixed / "a.png", mixed / "x.png"], "out.csv", r"x\.png is not a file: name image files, or one folder"),
        ([mixed, "digits"], "out.csv", r"mixed, digits is not a file"),
        ([mixed / "x.png"], "out.csv", r"x\.png is neither a folder nor a parquet file that exists"),
        ([mixed], mixed / "out.csv", r"out\.csv would be written into the source .*mixed: choose a file elsewhere"),
        ([mixed / "a.png"], mixed / "a.png", r"would be written into the source"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_images([str(source) for source in sources], str(output))


@pytest.mark.parametrize("folder", ["/proc", "/dev/null"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, folder: str):
    """Root may write everywhere by its permissions, but not into /proc."""
    check_output(str(tmp_path / "new" / "out.csv"), "--output", "file")
    check_output(str(tmp_path / "new"), "--output_dir", "folder")
    assert not list(tmp_path.iterdir())
    source = {"model": "user/name", "data": DataConfig(source="digits")}
    for config in (
        EmbedConfig(**source, output=f"{folder}/x.parquet"),
        PredictConfig(**source, output=f"{folder}/x.csv"),
        ReconstructConfig(**source, output=f"{folder}/x.png"),
        EvaluateConfig(**source, output_dir=f"{folder}/x"),
        FewLabelsConfig(**source, output_dir=f"{folder}/x"),
        CompareConfig(arm=[f"a={tmp_path}", f"b={tmp_path}"], output_dir=f"{folder}/x"),
    ):
        with pytest.raises(ConfigError, match=rf"{folder}/x.* cannot be written .*: choose .* \(--output"):
            check_paths(config)
    with pytest.raises(ConfigError, match=r"is a folder: name a file in it \(--output\)"):
        check_output(str(tmp_path), "--output", "file")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is not a folder: choose another --output_dir"):
        check_output(str(tmp_path / "file"), "--output_dir", "folder")
