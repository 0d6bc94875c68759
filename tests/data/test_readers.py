"""Parquet files, tables of images and Hub names become splits by name, whatever the layout."""

import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mae_hf.config.data import DataConfig
from mae_hf.data.locations import check_source
from mae_hf.data.readers import expand_address, read_datasets
from mae_hf.data.sources import load_splits
from mae_hf.errors import ConfigError
from mae_hf.models.locate import find_model


def write_parquet(file: Path, colours: list[int], **columns: list) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.new("RGB", (4, 4), (colour, 0, 0)) for colour in colours]
    dataset = datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image())
    dataset.to_parquet(file)


def reds(dataset: datasets.Dataset) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in dataset["image"]]


@pytest.mark.parametrize("layout", ["{}-00000-of-00001", "data/{}-00000-of-00001", "{}/0000", "{}"])
def test_the_split_is_read_from_the_name_of_the_file_or_of_its_folder(tmp_path, layout):
    for colour, split in enumerate(("train", "test", "unlabeled")):
        write_parquet(tmp_path / f"{layout.format(split)}.parquet", [colour])
    found = read_datasets(str(tmp_path), None)
    assert {name: reds(split) for name, split in found.items()} == {"train": [0], "test": [1], "unlabeled": [2]}


def test_a_local_source_is_no_download(tmp_path, capfd):
    write_parquet(tmp_path / "train.parquet", [1])
    capfd.readouterr()
    read_datasets(str(tmp_path), None)
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled(), "downloads from the Hub are shown"


def test_the_parts_of_a_split_are_joined_in_order(tmp_path):
    for part in range(3):
        write_parquet(tmp_path / f"train-0000{part}-of-00003.parquet", [2 * part, 2 * part + 1])
    assert reds(read_datasets(str(tmp_path), None)["train"]) == [0, 1, 2, 3, 4, 5]


def test_files_without_a_split_in_their_names_are_train(tmp_path):
    write_parquet(tmp_path / "a.parquet", [1])
    write_parquet(tmp_path / "b.parquet", [2])
    assert {name: reds(split) for name, split in read_datasets(str(tmp_path), None).items()} == {"train": [1, 2]}
    assert reds(read_datasets(str(tmp_path / "b.parquet"), None)["train"]) == [2]


def test_splits_may_differ_in_their_columns(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1], label=[0])
    write_parquet(tmp_path / "unlabeled.parquet", [2])
    assert read_datasets(str(tmp_path), None)["unlabeled"].column_names == ["image"]


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: first-*.parquet
  - split: test
    path: second.parquet
---
"""


def test_the_readme_of_a_folder_says_which_files_make_a_split(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    for colour, name in enumerate(("first-a", "first-b", "second", "other")):
        write_parquet(tmp_path / f"{name}.parquet", [colour])
    found = read_datasets(str(tmp_path), None)
    assert {name: reds(split) for name, split in found.items()} == {"train": [0, 1], "test": [2]}


def test_a_replaced_file_is_read_anew_and_changes_the_fingerprint(tmp_path):
    """`datasets.load_dataset(folder)` serves the old images here (5.2.0)."""
    (tmp_path / "README.md").write_text(CARD)
    write_parquet(tmp_path / "second.parquet", [7])
    write_parquet(tmp_path / "first-a.parquet", [1, 2])
    before = read_datasets(str(tmp_path), None)["train"]
    write_parquet(tmp_path / "first-a.parquet", [3, 4])
    after = read_datasets(str(tmp_path), None)["train"]
    assert reds(after) == [3, 4]
    assert after._fingerprint != before._fingerprint


def peak_of_reading(folder, num_pieces: int) -> int:
    """The increase of a process's peak memory, in MiB, for a parquet file of this many pieces of 8 MiB."""
    image = datasets.Features({"image": datasets.Image()}).arrow_schema
    with pq.ParquetWriter(folder / "train.parquet", image, compression="none") as writer:
        for number in range(num_pieces):
            column = [{"bytes": np.random.default_rng([number, i]).bytes(2**15), "path": None} for i in range(256)]
            writer.write_table(pa.table({"image": column}, image))
    code = """if True:
        import sys
        from mae_hf.data.readers import read_datasets
        def most_memory():
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10
        before = most_memory()
        read_datasets(sys.argv[1], None)
        print(most_memory() - before)
    """
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_parquet_file_is_not_held_in_memory_while_it_is_read(tmp_path):
    peaks = []
    for num_pieces in (30, 90):  # 240 and 720 MiB
        (tmp_path / str(num_pieces)).mkdir()
        peaks.append(peak_of_reading(tmp_path / str(num_pieces), num_pieces))
    assert peaks[1] - peaks[0] < 400  # 160 to 240, mapped pages of the cache; 600 if pyarrow may buffer all of a file


@pytest.mark.parametrize(
    "config", ["{default: true, data_files: a.parquet}", "{config_name: 7, data_files: {train: 7}}"]
)
def test_a_readme_with_fields_of_wrong_types_is_refused(tmp_path, config):
    (tmp_path / "README.md").write_text(f"---\nconfigs: [{config}]\n---\n")
    write_parquet(tmp_path / "a.parquet", [1])
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        read_datasets(str(tmp_path), None)


def test_a_folder_with_several_configs_is_refused(tmp_path):
    configs = [f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("large", "small")]
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    write_parquet(tmp_path / "a.parquet", [1])
    with pytest.raises(
        ConfigError, match=r"configs large, small: name the folder or file of one config \(--data.source\)"
    ):
        read_datasets(str(tmp_path), None)


def test_labels_may_be_numbers_in_a_table_beside_the_images_but_not_words(image_folder):
    images = sorted((image_folder / "train" / "cat").iterdir())
    for labels, problem in (("01", None), ("ab", "not class numbers: save it as ClassLabel")):
        lines = [f"{file.name},{labels[row % 2]}" for row, file in enumerate(images)]
        (image_folder / "train" / "cat" / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
        with nullcontext() if problem is None else pytest.raises(ConfigError, match=problem):
            split = load_splits(DataConfig(class_names=None), str(image_folder / "train" / "cat"))["train"]
            assert split.labels.tolist() == [row % 2 for row in range(len(images))]


def test_a_hub_id_may_begin_with_the_name_of_a_local_folder(tmp_path, monkeypatch):
    (tmp_path / "me").mkdir()
    monkeypatch.chdir(tmp_path)
    check_source("me/dataset")
    check_source("me/dataset", streaming=True)
    assert find_model("me/model", "fix") is None


@pytest.mark.parametrize("source", ["nowhere", "./no/such/folder", "gone.parquet", "data/gone.parquet"])
def test_a_missing_path_is_named_with_possible_sources(source):
    with pytest.raises(ConfigError, match=rf"^{source} is neither .*digits.*user/name.*\(--data.source\)$"):
        check_source(source)


def test_the_error_of_an_unreachable_hub_dataset_says_what_to_type():
    with pytest.raises(ConfigError, match=r"^mae-hf-nobody/nothing at revision v1 .* --config digits"):
        read_datasets("mae-hf-nobody/nothing", "v1")


def test_braces_in_an_address_stand_for_numbers_with_their_zeros():
    assert expand_address("https://host/a{08..10}.tar") == [f"https://host/a{n}.tar" for n in ("08", "09", "10")]
    both = expand_address("https://host/{0..1}/b{0..2}.tar?x={y}")
    assert both == [f"https://host/{a}/b{b}.tar?x={{y}}" for a in (0, 1) for b in (0, 1, 2)]
    assert expand_address("https://host/a.tar") == ["https://host/a.tar"]


def test_a_broken_parquet_file_is_one_line(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 this is not parquet")
    with pytest.raises(ConfigError, match=r"^[^\n]+ cannot be read as a dataset: [^\n]+$"):
        read_datasets(str(tmp_path / "train.parquet"), None)
