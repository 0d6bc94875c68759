"""The store on disk is whole or made anew; images that cannot be decoded are all named."""

import dataclasses
import hashlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import Store, open_stores
from mae_hf.data.sources import load_splits
from mae_hf.data.splits import Split
from mae_hf.errors import ConfigError, PlainWarning

CONFIG = DataConfig(class_names=None)
SKIP = DataConfig(class_names=None, on_bad_image="skip")
RANDOM = np.random.default_rng(0)


def pixels(*shape: int, high: int = 256, dtype=np.uint8) -> np.ndarray:
    return RANDOM.integers(0, high, shape).astype(dtype)


def open_store(split: Split, image_size: int, config: DataConfig) -> Store:
    [store] = open_stores([split], image_size, config)
    return store


def split_of(images: np.ndarray, fingerprint: str) -> Split:
    return Split("arrays", "train", images, np.zeros(len(images), np.int64), ("one",), fingerprint)


def test_a_store_holds_every_image_in_order_without_holding_it_in_memory(tmp_path):
    images = pixels(700, 8, 8, 3)
    store = open_store(split_of(images, "order"), 8, CONFIG)
    assert isinstance(store.images, np.memmap)
    assert not store.images.flags.writeable
    np.testing.assert_array_equal(store.images, images)
    np.testing.assert_array_equal(np.load(store.path), images)
    np.testing.assert_array_equal(store.rows, np.arange(700))


def test_the_images_are_never_in_memory_all_at_once():
    split = split_of(np.broadcast_to(pixels(1, 96, 96, 3), (1200, 96, 96, 3)), "memory")  # 32 MiB decoded
    tracemalloc.start()
    open_store(split, 96, CONFIG)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20


def test_images_in_files_of_many_kinds_and_in_parquet_are_decoded(tmp_path):
    drawn = [Image.fromarray(pixels(20, 20, 3)) for _ in range(4)]
    folder = tmp_path / "files"
    folder.mkdir()
    for image, name in zip(drawn, ("a.png", "b.jpg", "c.webp", "d.bmp"), strict=True):
        image.save(folder / name)
    files = load_splits(CONFIG, str(folder))["unlabeled"]
    expected = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(folder.iterdir())]
    np.testing.assert_array_equal(open_store(files, 20, CONFIG).images, expected)
    encoded = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(folder.iterdir())]
    table = datasets.Dataset.from_dict({"image": encoded}).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "train.parquet")
    parquet = load_splits(CONFIG, str(tmp_path / "train.parquet"))["unlabeled"]
    np.testing.assert_array_equal(open_store(parquet, 20, CONFIG).images, expected)


def test_a_complete_store_is_not_decoded_again(image_folder):
    split = load_splits(CONFIG, str(image_folder))["train"]
    before = open_store(split, 12, CONFIG)
    shutil.rmtree(image_folder)
    after = open_store(split, 12, CONFIG)
    np.testing.assert_array_equal(after.images, before.images)
    assert after.digest == before.digest


def test_another_size_or_another_file_makes_another_store(image_folder):
    first = open_store(load_splits(CONFIG, str(image_folder))["train"], 12, CONFIG)
    assert open_store(first.split, 10, CONFIG).images.shape == (20, 10, 10, 3)
    Image.new("RGB", (12, 12), "red").save(image_folder / "train" / "cat" / "00.png")
    second = open_store(load_splits(CONFIG, str(image_folder))["train"], 12, CONFIG)
    assert (second.images[0] == (255, 0, 0)).all()
    assert second.digest != first.digest


def test_another_resize_or_border_makes_another_store_and_the_name_of_a_cropped_one_stays(image_folder):
    split = load_splits(CONFIG, str(image_folder))["train"]
    key = hashlib.sha256(f"2 10 train {split.fingerprint}".encode()).hexdigest()[:20]
    assert open_store(split, 10, CONFIG).path.name == f"train-10-{key}.npy"
    ways = [("squash", 0.1), ("squash", 0.2), ("pad", 0.1), ("pad", 0.2), ("crop", 0.1)]
    configs = [dataclasses.replace(CONFIG, resize=resize, image_mean=(mean,) * 3) for resize, mean in ways]
    names = [open_store(split, 10, config).path.name for config in configs]
    assert names[0] == names[1] and len(set(names)) == 4 and names[4] == f"train-10-{key}.npy"


def test_a_replaced_file_makes_another_store_for_every_kind_of_source(tmp_path):
    """The same names, sizes and numbers of rows, at another time; the store of the old file stays as it is."""

    def write_parquet(image: np.ndarray) -> Path:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "BMP")
        column = [{"bytes": file.getvalue(), "path": None}]
        table = datasets.Dataset.from_dict({"image": column}).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / "unlabeled.parquet")
        return tmp_path / "unlabeled.parquet"

    def write_folder(image: np.ndarray) -> Path:
        (tmp_path / "folder").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "folder" / "a.bmp")
        return tmp_path / "folder"

    def write_binaries(image: np.ndarray) -> Path:
        (tmp_path / "binaries").mkdir(exist_ok=True)
        (tmp_path / "binaries" / "unlabeled_X.bin").write_bytes(image.transpose(2, 1, 0).tobytes())
        return tmp_path / "binaries"

    def store_of(path: Path, second: int):
        file = next(path.iterdir()) if path.is_dir() else path
        os.utime(file, (second, second))  # two writes within a tick of the clock look alike
        return open_store(load_splits(CONFIG, str(path))["unlabeled"], 96, CONFIG)

    images = pixels(2, 96, 96, 3)
    for write in (write_parquet, write_folder, write_binaries):
        first, second = (store_of(write(image), 10**9 + i) for i, image in enumerate(images))
        assert first.path != second.path
        np.testing.assert_array_equal([first.images[0], second.images[0]], images)
        np.testing.assert_array_equal(np.load(first.path)[0], images[0])


def test_a_store_says_whether_it_was_in_the_cache():
    split = split_of(pixels(3, 8, 8, 3), "there")
    assert [open_store(split, 8, CONFIG).was_there for _ in range(2)] == [False, True]


def damage(array: Path, harm: str) -> None:
    """Leave the files of a store of five 8x8 images as crashes and full disks do."""
    record, content = array.with_suffix(".json"), array.read_bytes()
    if harm == "an image is cut off":
        array.write_bytes(content[: -8 * 8 * 3])
    elif harm == "a few bytes are cut off":
        array.write_bytes(content[:-10])
    elif harm == "the array is empty":
        array.write_bytes(b"")
    elif harm == "the array is missing":
        array.unlink()
    elif harm == "the header is noise":
        array.write_bytes(bytes(reversed(content[:128])) + content[128:])
    elif harm == "the array has fewer images":
        np.save(array, np.zeros((4, 8, 8, 3), np.uint8))
    elif harm == "the array has another type":
        np.save(array, np.zeros((5, 8, 8, 3), np.int8))
    elif harm == "the record is missing":
        record.unlink()
    elif harm == "the record is cut short":
        record.write_text(record.read_text()[:30])
    elif harm == "the record is no record":
        record.write_text("[1, 2]")


@pytest.mark.parametrize(
    "harm",
    [
        "an image is cut off",
        "a few bytes are cut off",
        "the array is empty",
        "the array is missing",
        "the header is noise",
        "the array has fewer images",
        "the array has another type",
        "the record is missing",
        "the record is cut short",
        "the record is no record",
    ],
)
def test_a_store_that_is_not_whole_is_silently_made_anew(harm, recwarn, capsys):
    images = pixels(5, 8, 8, 3)
    whole = open_store(split_of(images, harm), 8, CONFIG)
    files = {path: path.read_bytes() for path in (whole.path, whole.path.with_suffix(".json"))}
    damage(whole.path, harm)
    assert any(not path.exists() or path.read_bytes() != content for path, content in files.items())
    mended = open_store(split_of(images, harm), 8, CONFIG)
    np.testing.assert_array_equal(mended.images, images)
    assert (mended.digest, mended.was_there) == (whole.digest, False)
    assert {path: path.read_bytes() for path in files} == files
    assert open_store(split_of(images, harm), 8, CONFIG).was_there
    assert not recwarn.list
    assert capsys.readouterr() == ("", "")


BUILD = """
import sys
from mae_hf.config.data import DataConfig
from mae_hf.data.sources import load_splits
from mae_hf.data.cache import open_stores
config = DataConfig(cache_dir=sys.argv[1])
split = load_splits(config, sys.argv[2])["unlabeled"]
print("ready", flush=True)
sys.stdin.readline()
[store] = open_stores([split], 96, config)
print(store.was_there, store.digest, int(store.images.sum()))
"""


def test_two_processes_can_build_the_same_store_at_once(tmp_path):
    images = pixels(1500, 96, 96, 3)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "unlabeled_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
    command = [sys.executable, "-c", BUILD, str(tmp_path / "cache"), str(tmp_path / "source")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    expected = f"False {hashlib.sha256(images.data).hexdigest()} {images.sum(dtype=np.int64)}\n"
    assert [process.communicate(timeout=120) for process in processes] == [(expected, "")] * 2
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not tie a process to a core")
def test_the_number_of_decoding_threads_is_the_number_of_usable_cores():
    class Watched(Split):
        def encoded(self, start, stop):
            threads.add(threading.get_ident())
            return super().encoded(start, stop)

    threads: set[int] = set()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        open_store(Watched("arrays", "unlabeled", pixels(500, 8, 8, 3), None, None, "one core"), 8, CONFIG)
    finally:
        os.sched_setaffinity(0, cores)
    assert len(threads - {threading.get_ident()}) == 1


# ---- images that cannot be decoded ----


@pytest.fixture
def broken_folder(image_folder: Path) -> Path:
    """train/cat/03.png cut short, train/dog/15.png no image at all."""
    whole = image_folder / "train" / "cat" / "03.png"
    whole.write_bytes(whole.read_bytes()[:45])
    (image_folder / "train" / "dog" / "15.png").write_bytes(b"this is no image")
    return image_folder


@pytest.mark.parametrize("on_bad_image", ["raise", "skip"])
def test_all_files_that_cannot_be_decoded_are_named_at_once(broken_folder, tmp_path, on_bad_image):
    config = DataConfig(class_names=None, cache_dir=str(tmp_path / "cache"), on_bad_image=on_bad_image)
    split = load_splits(config, str(broken_folder))["train"]
    if on_bad_image == "skip":
        with pytest.warns(PlainWarning) as caught:
            open_store(split, 12, config)
        [message] = {str(warning.message) for warning in caught}
        assert message.startswith("2 of 20 images of train")
    else:
        with pytest.raises(ConfigError) as raised:
            open_store(split, 12, config)
        message = str(raised.value)
        assert message.endswith("replace such files, or leave them out (--data.on_bad_image skip)")
    cat, dog = (broken_folder / "train" / name for name in ("cat/03.png", "dog/15.png"))
    assert re.search(rf"{cat} \(.+\); {dog} \(it is no image in one of the formats", message)
    [listed] = (tmp_path / "cache").glob("*.bad.txt")
    assert str(listed) in message
    assert [line.split(": ")[0] for line in listed.read_text().splitlines()] == [str(cat), str(dog)]


def test_of_many_bad_files_ten_are_in_the_message_and_all_in_the_list(image_folder, tmp_path):
    for file in (image_folder / "train" / "cat").iterdir():
        file.write_bytes(b"bad")
    (image_folder / "train" / "dog" / "10.png").write_bytes(b"bad")
    config = DataConfig(class_names=None, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"^11 of 20 images of train") as raised:
        open_store(load_splits(config, str(image_folder))["train"], 12, config)
    assert "09.png" in str(raised.value) and "10.png" not in str(raised.value)
    [listed] = (tmp_path / "cache").glob("*.bad.txt")
    assert len(listed.read_text().splitlines()) == 11


def test_bad_files_are_reported_once_per_process_and_by_the_first_rank_alone(broken_folder, tmp_path):
    code = """if True:
        from mae_hf.commands import exits
        def main():
            from mae_hf.config.data import DataConfig
            from mae_hf.data.cache import open_stores
            from mae_hf.data.sources import load_splits
            config = DataConfig(class_names=None, on_bad_image="skip", cache_dir="cache")
            for _ in range(3):
                open_stores([load_splits(config, "pictures")["train"]], 12, config)
        exits.run(main)
    """
    command = [sys.executable, "-c", code]
    for rank, num in (("0", 1), ("1", 0)):
        environment = os.environ | {"RANK": rank, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        lines = [line for line in done.stderr.splitlines() if "left out" in line]
        assert len(lines) == num, done.stderr
        assert all(line.startswith("warning: 2 of 20 images of train in pictures") for line in lines)


def test_an_undecodable_row_of_parquet_is_named(tmp_path):
    good = io.BytesIO()
    Image.new("RGB", (4, 4)).save(good, "WEBP")
    encoded = [{"bytes": good.getvalue(), "path": None}, {"bytes": b"bad", "path": "x.webp"}, None]
    table = datasets.Dataset.from_dict({"image": encoded, "label": [0, 0, 0]}).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "train.parquet")
    split = load_splits(CONFIG, str(tmp_path / "train.parquet"))["train"]
    with pytest.raises(ConfigError, match=r"decoded: row 1 of train in .*train.parquet \(x.webp\) .*; row 2 of train"):
        open_store(split, 4, CONFIG)
    with pytest.warns(UserWarning, match="2 of 3 images .* these images are left out"):
        assert open_store(split, 4, SKIP).rows.tolist() == [0]


def test_skipped_images_are_counted_and_the_others_keep_their_rows(broken_folder):
    split = load_splits(SKIP, str(broken_folder))["train"]
    for _ in range(2):  # decoded, then read back
        with pytest.warns(UserWarning, match=r"2 of 20 images .*: .*cat/03.png"):
            store = open_store(split, 12, SKIP)
        kept = [row for row in range(20) if row not in (3, 15)]
        assert store.rows.tolist() == kept
        assert store.images[:, 0, 0, 0].tolist() == kept  # the colour is the row
    with pytest.raises(ConfigError, match=r"cat/03.png .*--data.on_bad_image skip"):
        open_store(split, 12, CONFIG)


def test_a_split_without_one_good_image_is_refused_even_with_skip(tmp_path):
    (tmp_path / "a.png").write_bytes(b"bad")
    split = load_splits(SKIP, str(tmp_path))["unlabeled"]
    with pytest.raises(ConfigError, match=r"no image of unlabeled in .* can be decoded"):
        open_store(split, 8, SKIP)


def test_a_decompression_bomb_cannot_be_decoded(image_folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # an error from twice as many, 12x12 are 144
    with pytest.raises(ConfigError, match=r"can be decoded \(.*decompression bomb"):
        open_store(load_splits(CONFIG, str(image_folder))["train"], 12, CONFIG)


# ---- the disk ----


def test_a_disk_that_fills_up_during_decoding_leaves_no_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot be written .*: choose another \(--data.cache_dir\)"):
            open_store(split_of(pixels(700, 8, 8, 3), "fills up"), 8, DataConfig(cache_dir=str(tmp_path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_complete", [True, False])
def test_leftovers_of_killed_processes_are_swept_and_files_in_use_are_not(tmp_path, is_complete):
    config = DataConfig(cache_dir=str(tmp_path))
    split = split_of(pixels(4, 8, 8, 3), f"killed {is_complete}")
    array = open_store(split, 8, config).path
    if not is_complete:
        array.unlink()
    left = [tmp_path / f".{name}.{'0f' * 8}.partial" for name in (array.name, "duplicates-a.parquet", "stream-a.json")]
    in_use, others = tmp_path / f".{array.name}.{'1e' * 8}.partial", tmp_path / ".mine.partial"
    for file in (*left, in_use, others):
        file.write_bytes(b"half")
    for file in (*left, others):
        os.utime(file, (0, file.stat().st_mtime - 700))
    assert open_store(split, 8, config).was_there == is_complete
    assert sorted(tmp_path.iterdir()) == sorted([array, array.with_suffix(".json"), in_use, others])


DECODE_FOR_LONG = """if True:
    import sys
    from mae_hf.commands import exits
    def main():
        import numpy as np
        from mae_hf.config.data import DataConfig
        from mae_hf.data.cache import open_stores
        from mae_hf.data.splits import Split
        images = np.broadcast_to(np.zeros((), np.uint8), (100_000, 700, 700, 3))
        open_stores([Split("drawn", "unlabeled", images, None, None, "long")], 96, DataConfig(cache_dir=sys.argv[1]))
    exits.run(main)
"""


def test_a_signal_during_decoding_ends_in_one_line_and_leaves_no_file(tmp_path):
    (tmp_path / "script.py").write_text(DECODE_FOR_LONG)
    cache = tmp_path / "cache"
    command = [sys.executable, str(tmp_path / "script.py"), str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240  # a busy machine takes a minute to load the libraries
    while not any(file.stat().st_size > 2**20 for file in cache.glob(".*.partial")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    sent = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143 and time.monotonic() - sent < 15
    assert [line for line in errors.splitlines() if line.strip()][-1].startswith("stopped: SIGTERM")
    assert "Traceback" not in errors
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    config = DataConfig(cache_dir=str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"file cannot be written .*: choose another \(--data.cache_dir\)"):
        open_store(split_of(pixels(2, 8, 8, 3), "unwritable"), 8, config)


def test_the_configured_cache_folder_precedes_the_environments(tmp_path, monkeypatch):
    monkeypatch.setenv("MAE_HF_CACHE", str(tmp_path / "environment"))
    split = split_of(pixels(2, 8, 8, 3), "cache")
    assert open_store(split, 8, CONFIG).path.parent == tmp_path / "environment"
    named = DataConfig(cache_dir=str(tmp_path / "named"))
    store = open_store(split, 8, named)
    assert store.path.parent == tmp_path / "named"
    assert json.loads(store.path.with_suffix(".json").read_text())["source"] == "arrays"
