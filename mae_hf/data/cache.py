"""The decoded images of a split: a memory-mapped uint8 array on disk, made once, shared by all runs and processes.

Shapes: N images, S side of the square image.

How an image becomes pixels: its EXIF orientation is applied; grey, palette, CMYK, 1-bit and 16-bit images become RGB,
transparency is laid over white; the shorter side is resized to S (Pillow's bicubic, only if the size differs) and the
centre is kept.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from mae_hf.config.data import DataConfig
from mae_hf.data.cores import num_cores
from mae_hf.data.splits import Split
from mae_hf.errors import ConfigError, clean, require

FORMAT_VERSION = 2  # raise it when an image would be decoded to other pixels
# What Pillow may open, each read by its own decoder; the others of Pillow's 40 are never asked, and no Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 2**26  # 67 million, a square of 8,192: less than 2 GiB while it is decoded
CHUNK = 16  # images that a thread decodes at a time
CHUNKS_AHEAD = 16
STALE = 600.0  # seconds without a new image after which a file that is being decoded has been left behind
FIX = "replace it, or leave such images out (--data.on_bad_image skip)"


@dataclass(frozen=True, eq=False)
class Store:
    """The decoded images of a split.

    Args:
        split: where they come from.
        images: np.uint8 (N, S, S, 3), memory-mapped, read-only.
        rows: np.int64 (N,), the row of the split that each image is; some are missing where images were skipped.
        digest: SHA-256 of the pixels.
        path: the array's file.
        was_there: found in the cache, not decoded now.
    """

    split: Split
    images: np.ndarray
    rows: np.ndarray
    digest: str
    path: Path
    was_there: bool


def to_rgb_square(image: Image.Image, image_size: int) -> np.ndarray:
    """An image of any mode and size as np.uint8 (S, S, 3), by the rule at the top of this file."""
    image.load()  # a PNG may have its EXIF after its pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image = _to_rgb(image)
    if image.size == (image_size, image_size):
        return np.array(image)  # each copy that Pillow would make costs 3 % of decoding
    (width, height), short = image.size, min(image.size)
    # a fraction of a pixel is cut off, as the image processor that is saved with the model does
    new_width = max(image_size, int(width * image_size / short))
    new_height = max(image_size, int(height * image_size / short))
    left, top = (new_width - image_size) // 2, (new_height - image_size) // 2
    # The crop as the box of the resize: the same pixels, and a long thin image is not enlarged as a whole.
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min(width, (left + image_size) * x), min(height, (top + image_size) * y))
    return np.array(image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box))


def decode(encoded: bytes | str | np.ndarray, image_size: int) -> np.ndarray | str:
    """An image as np.uint8 (S, S, 3), or the reason why it cannot be decoded.

    Args:
        encoded: bytes of an image file, its path, or raw pixels.
        image_size: side S.
    """
    try:
        if isinstance(encoded, np.ndarray):
            if encoded.shape == (image_size, image_size, 3):
                return np.ascontiguousarray(encoded)
            return to_rgb_square(Image.fromarray(encoded), image_size)
        if isinstance(encoded, str) and not Path(encoded).is_file():
            return "there is no such file"  # a pipe or a device is none, and would be waited for
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}"
            return to_rgb_square(image, image_size)
    except UnidentifiedImageError:
        return f"it is no image in one of the formats {', '.join(FORMATS)}"
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes, or for a bomb
        return clean((str(error).strip() or type(error).__name__).splitlines()[0])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        # 16 bits, which Pillow may hold in 32; floats have no fixed range: up to 1, else up to 255
        scale = (255 if np.nan_to_num(values).max() <= 1 else 1) if image.mode == "F" else 1 / 257
        grey = np.empty(values.shape, np.uint8)
        for top in range(0, len(values), 64):  # some rows at a time: in float64 an image is 8 times as large
            rows = np.nan_to_num(values[top : top + 64].astype(np.float64))
            grey[top : top + 64] = np.clip(np.round(rows * scale), 0, 255)
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def open_store(split: Split, image_size: int, config: DataConfig) -> Store:
    """The decoded images of a split, read from the cache, or decoded into it first.

    Args:
        split: the split to decode.
        image_size: side S of the images.
        config: says where the cache is and what happens to an image that cannot be decoded.

    Raises:
        ConfigError: an image cannot be decoded, the disk is full, or the cache cannot be written.
    """
    folder = cache_folder(config)
    key = hashlib.sha256(f"{FORMAT_VERSION} {image_size} {split.role} {split.fingerprint}".encode()).hexdigest()[:20]
    array_file = folder / f"{split.role}-{image_size}-{key}.npy"
    store = _read(array_file, split, image_size, was_there=True)
    if store is None:
        try:
            _build(array_file, split, image_size, config)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written ({error}): choose another (--data.cache_dir)") from error
        store = _read(array_file, split, image_size, was_there=False)
    if store is None:
        raise ConfigError(f"{array_file} cannot be read back: choose another folder (--data.cache_dir)")
    num_skipped = len(split) - len(store.rows)
    if num_skipped:
        record = json.loads(array_file.with_suffix(".json").read_text())
        first = f"{split.where(record['skipped'][0])} cannot be decoded ({record['error']})"
        require(config.on_bad_image == "skip", f"{first}: {FIX}")
        what = f"left out {num_skipped} of {len(split)} images of {split.source}: {first}"
        warnings.warn(clean(what), stacklevel=2)
    return store


def cache_folder(config: DataConfig) -> Path:
    """Where decoded images are kept."""
    return Path(config.cache_dir or os.environ.get("MAE_HF_CACHE") or "~/.cache/mae_hf").expanduser()


def _read(array_file: Path, split: Split, image_size: int, was_there: bool) -> Store | None:
    """The store if it is there and whole, else None."""
    try:
        record = json.loads(array_file.with_suffix(".json").read_text())
        rows = np.delete(np.arange(len(split)), record["skipped"])
        header, shape = _header(len(rows), image_size)
        with open(array_file, "rb") as file:
            found, num_bytes = file.read(len(header)), os.fstat(file.fileno()).st_size
        if num_bytes != len(header) + math.prod(shape) or record.pop("check") != _check(found, record):
            return None
        images = np.memmap(array_file, np.uint8, "r", len(header), shape)
        return Store(split, images, rows, record["sha256"], array_file, was_there)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _build(array_file: Path, split: Split, image_size: int, config: DataConfig) -> None:
    """Decodes a split into `array_file`, and what was skipped into a JSON file beside it, written last."""
    array_file.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: another process, or another machine on a shared disk, may build the same store now
    temporary = array_file.with_suffix(f".{secrets.token_hex(8)}.tmp")
    skipped: list[int] = []
    first_error = ""
    digest = hashlib.sha256()
    try:
        temporary.touch()
        _sweep(array_file, temporary.stat().st_mtime)
        needed, free = len(split) * image_size**2 * 3, shutil.disk_usage(array_file.parent).free
        require(
            needed < free,
            f"{split.role} of {split.source} needs {needed >> 20} MiB in {array_file.parent}, {free >> 20} are free: "
            "choose another folder (--data.cache_dir)",
        )
        with open(temporary, "wb") as file:
            file.write(_header(len(split), image_size)[0])
            for row, result in enumerate(_decoded(split, image_size)):
                if isinstance(result, np.ndarray):
                    digest.update(result.data)
                    file.write(result.data)
                    continue
                require(config.on_bad_image == "skip", f"{split.where(row)} cannot be decoded ({result}): {FIX}")
                first_error = first_error or result
                skipped.append(row)
            require(
                len(skipped) < len(split),
                f"no image of {split.role} in {split.source} can be decoded ({first_error}): are these images? "
                "(--data.source)",
            )
            file.seek(0)
            header = _header(len(split) - len(skipped), image_size)[0]  # as long as the first: NumPy leaves room
            file.write(header)
            file.flush()
            os.fsync(file.fileno())
        record = {"source": split.source, "skipped": skipped, "error": first_error, "sha256": digest.hexdigest()}
        os.replace(temporary, array_file)
        temporary.write_text(json.dumps({**record, "check": _check(header, record)}))
        os.replace(temporary, array_file.with_suffix(".json"))
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(array_file: Path, now: float) -> None:
    """Removes what processes that were killed have left of an array, each as large as it; `now` by the disk's clock."""
    for left in array_file.parent.glob(f"{array_file.stem}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process may sweep, too
            if now - left.stat().st_mtime > STALE:
                left.unlink()


def _header(num: int, image_size: int) -> tuple[bytes, tuple[int, ...]]:
    """The first bytes of an array's file, and the array's shape."""
    file, shape = io.BytesIO(), (num, image_size, image_size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue(), shape


def _check(header: bytes, record: dict[str, Any]) -> str:
    """SHA-256 of an array's header and of what is recorded about it, so that neither is changed without the other."""
    return hashlib.sha256(header + json.dumps(record).encode()).hexdigest()


def _decoded(split: Split, image_size: int) -> Iterator[np.ndarray | str]:
    """The images of a split in order, decoded in threads (Pillow releases the GIL); a reason for one that fails."""

    def decode_chunk(start: int) -> list[np.ndarray | str]:
        return [decode(encoded, image_size) for encoded in split.encoded(start, min(start + CHUNK, len(split)))]

    num_threads = num_cores()
    description = f"decoding {split.role} of {split.source}"
    with (
        ThreadPoolExecutor(num_threads) as pool,
        tqdm(total=len(split), desc=description, unit="image", disable=None) as progress,
    ):
        starts = iter(range(0, len(split), CHUNK))
        # so many are held, whatever the number of images; enough to decode on while this thread waits for the disk
        chunks = deque(pool.submit(decode_chunk, start) for start in islice(starts, num_threads + CHUNKS_AHEAD))
        while chunks:
            images = chunks.popleft().result()
            chunks.extend(pool.submit(decode_chunk, start) for start in islice(starts, 1))
            yield from images
            progress.update(len(images))
