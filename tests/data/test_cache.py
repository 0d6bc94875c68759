"""Images of every mode and size become the pixels that the rule promises; the store on disk is whole or made anew."""

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import namedtuple
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import open_store, to_rgb_square
from mae_hf.data.sources import load_splits
from mae_hf.data.splits import Split
from mae_hf.errors import ConfigError

CONFIG = DataConfig(class_names=None)
SKIP = DataConfig(class_names=None, on_bad_image="skip")
RANDOM = np.random.default_rng(0)


def from_file(image: Image.Image, kind: str, **options) -> Image.Image:
    """The image as it comes back from a file of its own."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def pixels(*shape: int, high: int = 256, dtype=np.uint8) -> np.ndarray:
    return RANDOM.integers(0, high, shape).astype(dtype)


def split_of(images: np.ndarray, fingerprint: str) -> Split:
    return Split("arrays", "train", images, np.zeros(len(images), np.int64), ("one",), fingerprint)


# ---- the rule ----


def test_rgb_of_the_right_size_is_kept_bit_for_bit():
    image = pixels(12, 12, 3)
    np.testing.assert_array_equal(to_rgb_square(from_file(Image.fromarray(image), "PNG"), 12), image)


def test_grey_is_repeated_and_one_bit_is_black_and_white():
    grey = pixels(12, 12)
    np.testing.assert_array_equal(to_rgb_square(from_file(Image.fromarray(grey), "PNG"), 12), np.stack([grey] * 3, -1))
    bits = Image.fromarray((grey > 100).astype(np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(to_rgb_square(from_file(bits, "PNG"), 12)[..., 1], (grey > 100) * 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = pixels(12, 12, high=65536, dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(
            to_rgb_square(from_file(Image.fromarray(grey), kind), 12)[..., 2], np.round(grey / 65535 * 255)
        )


@pytest.mark.parametrize("highest", [1, 255])
def test_floats_up_to_one_or_up_to_255_are_scaled(highest):
    values = np.linspace(0, highest, 144).reshape(12, 12).astype(np.float32)
    result = to_rgb_square(from_file(Image.fromarray(values), "TIFF"), 12)
    np.testing.assert_allclose(result[..., 0], values / highest * 255, atol=0.51)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    image = pixels(12, 12, len(mode))
    colour, alpha = image[..., :-1].astype(float), image[..., -1:] / 255
    result = to_rgb_square(from_file(Image.fromarray(image, mode), "PNG"), 12)
    np.testing.assert_allclose(result, np.broadcast_to(colour * alpha + 255 * (1 - alpha), (12, 12, 3)), atol=1)


def test_a_palette_gives_its_colours_and_its_transparent_one_is_white():
    palette, index = pixels(4, 3), pixels(12, 12, high=4)
    image = Image.fromarray(index, "L").convert("P")
    image.putpalette(palette.ravel().tolist())
    np.testing.assert_array_equal(to_rgb_square(from_file(image, "PNG"), 12), palette[index])
    palette[2] = 255
    np.testing.assert_array_equal(to_rgb_square(from_file(image, "PNG", transparency=2), 12), palette[index])


def test_cmyk_becomes_rgb():
    inks = np.repeat(pixels(1, 1, 4), 12, 0).repeat(12, 1)
    ink = inks.astype(float) / 255
    result = to_rgb_square(from_file(Image.fromarray(inks, "CMYK"), "TIFF"), 12)
    np.testing.assert_allclose(result, 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:]), atol=2)
    assert to_rgb_square(from_file(Image.fromarray(inks, "CMYK"), "JPEG"), 12).shape == (12, 12, 3)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_the_orientation_in_exif_is_applied(orientation, turns):
    image = pixels(12, 12, 3)
    exif = Image.Exif()
    exif[274] = orientation
    result = to_rgb_square(from_file(Image.fromarray(image), "PNG", exif=exif), 12)
    np.testing.assert_array_equal(result, np.rot90(image, turns))


@pytest.mark.parametrize("size", [(130, 97), (97, 130), (40, 200), (224, 224), (64, 64), (96, 151), (3, 2)])
def test_other_sizes_are_resized_by_the_shorter_side_and_cropped_to_the_centre(size):
    image = Image.fromarray(pixels(size[1], size[0], 3)).resize((max(2, size[0] // 3), size[1] // 3 or 1)).resize(size)
    scale = 96 / min(size)
    whole = image.resize((int(size[0] * scale), int(size[1] * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 96) // 2, (whole.height - 96) // 2
    expected = np.asarray(whole.crop((left, top, left + 96, top + 96)), int)
    np.testing.assert_allclose(to_rgb_square(image, 96), expected, atol=1)


def test_a_long_thin_image_is_not_enlarged_as_a_whole():
    start = time.thread_time()
    result = to_rgb_square(Image.new("RGB", (60_000, 1), (1, 2, 3)), 96)  # as a whole it would be 5,760,000 x 96
    assert (result == (1, 2, 3)).all()
    assert time.thread_time() - start < 0.5


# ---- the store ----


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


def test_the_second_time_nothing_is_decoded(image_folder):
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


def test_a_replaced_file_of_any_kind_of_source_makes_another_store(tmp_path):
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


def test_a_store_says_whether_it_was_there():
    split = split_of(pixels(3, 8, 8, 3), "there")
    assert [open_store(split, 8, CONFIG).was_there for _ in range(2)] == [False, True]


def damage(array: Path, harm: str) -> None:
    """Does to the files of a store of five 8x8 images what crashes, full disks and people do."""
    record = array.with_suffix(".json")
    content, recorded = array.read_bytes(), json.loads(record.read_text())
    if harm == "an image is cut off":
        array.write_bytes(content[: -8 * 8 * 3])
    elif harm == "a few bytes are cut off":
        array.write_bytes(content[:-10])
    elif harm == "the array is empty":
        array.write_bytes(b"")
    elif harm == "the array is longer":
        array.write_bytes(content + bytes(8 * 8 * 3))
    elif harm == "the array is gone":
        array.unlink()
    elif harm == "the header is of another shape":
        array.write_bytes(content.replace(b"(5, 8, 8, 3)", b"(4, 8, 8, 3)"))
    elif harm == "the header is of another type":
        array.write_bytes(content.replace(b"|u1", b"|i1"))
    elif harm == "the header is noise":
        array.write_bytes(bytes(reversed(content[:128])) + content[128:])
    elif harm == "another array":
        np.save(array, np.zeros((4, 8, 8, 3), np.uint8))
    elif harm == "the record is gone":
        record.unlink()
    elif harm == "the record is cut short":
        record.write_text(record.read_text()[:30])
    elif harm == "the record is no record":
        record.write_text("[1, 2]")
    elif harm == "the record lacks its check":
        record.write_text(json.dumps({key: value for key, value in recorded.items() if key != "check"}))
    elif harm == "the record is of other pixels":
        record.write_text(json.dumps({**recorded, "sha256": "0" * 64}))
    elif harm == "the record has skipped an image":
        record.write_text(json.dumps({**recorded, "skipped": [1]}))
        array.write_bytes(content[: -8 * 8 * 3])


@pytest.mark.parametrize(
    "harm",
    [
        "an image is cut off",
        "a few bytes are cut off",
        "the array is empty",
        "the array is longer",
        "the array is gone",
        "the header is of another shape",
        "the header is of another type",
        "the header is noise",
        "another array",
        "the record is gone",
        "the record is cut short",
        "the record is no record",
        "the record lacks its check",
        "the record is of other pixels",
        "the record has skipped an image",
    ],
)
def test_a_store_that_is_not_whole_is_made_anew_without_a_word(harm, recwarn, capsys):
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
from mae_hf.data.cache import open_store
config = DataConfig(cache_dir=sys.argv[1])
split = load_splits(config, sys.argv[2])["unlabeled"]
print("ready", flush=True)
sys.stdin.readline()
store = open_store(split, 96, config)
print(store.was_there, store.digest, int(store.images.sum()))
"""


def test_two_processes_that_build_the_same_store_at_once_both_get_it_whole(tmp_path):
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
def test_no_more_threads_decode_than_there_are_cores_for_this_process():
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


def test_an_undecodable_file_is_named_and_nothing_is_left_behind(broken_folder, tmp_path):
    config = DataConfig(class_names=None, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"train/cat/03.png cannot be decoded \(.*--data.on_bad_image skip"):
        open_store(load_splits(config, str(broken_folder))["train"], 12, config)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_undecodable_row_of_parquet_is_named(tmp_path):
    good = io.BytesIO()
    Image.new("RGB", (4, 4)).save(good, "WEBP")
    encoded = [{"bytes": good.getvalue(), "path": None}, {"bytes": b"bad", "path": "x.webp"}, None]
    table = datasets.Dataset.from_dict({"image": encoded, "label": [0, 0, 0]}).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "train.parquet")
    split = load_splits(CONFIG, str(tmp_path / "train.parquet"))["train"]
    with pytest.raises(ConfigError, match=r"^row 1 of train in .*train.parquet \(x.webp\) cannot be decoded"):
        open_store(split, 4, CONFIG)
    with pytest.warns(UserWarning, match="left out 2 of 3 images"):
        assert open_store(split, 4, SKIP).rows.tolist() == [0]


def test_skipped_images_are_counted_and_the_others_keep_their_rows(broken_folder):
    split = load_splits(SKIP, str(broken_folder))["train"]
    for _ in range(2):  # decoded, then read back
        with pytest.warns(UserWarning, match=r"left out 2 of 20 images .*: .*cat/03.png cannot be decoded"):
            store = open_store(split, 12, SKIP)
        kept = [row for row in range(20) if row not in (3, 15)]
        assert store.rows.tolist() == kept
        assert store.images[:, 0, 0, 0].tolist() == kept  # the colour is the row
    with pytest.raises(ConfigError, match=r"cat/03.png cannot be decoded .*--data.on_bad_image skip"):
        open_store(split, 12, CONFIG)


def test_a_split_without_one_good_image_is_refused_even_with_skip(tmp_path):
    (tmp_path / "a.png").write_bytes(b"bad")
    split = load_splits(SKIP, str(tmp_path))["unlabeled"]
    with pytest.raises(ConfigError, match=r"no image of unlabeled in .* can be decoded"):
        open_store(split, 8, SKIP)


def test_a_decompression_bomb_cannot_be_decoded(image_folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # an error from twice as many, 12x12 are 144
    with pytest.raises(ConfigError, match=r"00.png cannot be decoded \(.*decompression bomb"):
        open_store(load_splits(CONFIG, str(image_folder))["train"], 12, CONFIG)


# ---- the disk ----


def test_a_full_disk_is_noticed_before_anything_is_decoded(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    split = split_of(np.broadcast_to(np.zeros((96, 96, 7), np.uint8), (1000, 96, 96, 7)), "full")  # cannot be decoded
    with pytest.raises(
        ConfigError, match=r"needs 26 MiB in .*, 5 are free: choose another folder \(--data.cache_dir\)"
    ):
        open_store(split, 96, DataConfig(cache_dir=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot be written .*: choose another \(--data.cache_dir\)"):
            open_store(split_of(pixels(700, 8, 8, 3), "fills up"), 8, DataConfig(cache_dir=str(tmp_path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_have_left_is_swept_and_what_another_one_decodes_now_is_not(tmp_path):
    config = DataConfig(cache_dir=str(tmp_path))
    split = split_of(pixels(4, 8, 8, 3), "killed")
    array = open_store(split, 8, config).path
    array.unlink()
    left, decoding, others = (tmp_path / f"{name}.tmp" for name in (f"{array.stem}.00ff", f"{array.stem}.11ee", "mine"))
    for file in (left, decoding, others):
        file.write_bytes(b"half")
    for file in (left, others):
        os.utime(file, (0, file.stat().st_mtime - 700))
    open_store(split, 8, config)
    assert not left.exists() and decoding.exists() and others.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    config = DataConfig(cache_dir=str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"file cannot be written .*: choose another \(--data.cache_dir\)"):
        open_store(split_of(pixels(2, 8, 8, 3), "unwritable"), 8, config)


def test_the_cache_is_the_configured_folder_then_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MAE_HF_CACHE", str(tmp_path / "environment"))
    split = split_of(pixels(2, 8, 8, 3), "cache")
    assert open_store(split, 8, CONFIG).path.parent == tmp_path / "environment"
    named = DataConfig(cache_dir=str(tmp_path / "named"))
    store = open_store(split, 8, named)
    assert store.path.parent == tmp_path / "named"
    assert json.loads(store.path.with_suffix(".json").read_text())["source"] == "arrays"
