"""Generated images with the size and smoothness of photographs, so that a benchmark needs no data.

All contenders get the same 2,000 images in 100,000 rows: as PNG bytes in a `datasets.Dataset`, or decoded in a store.
With that many rows, no epoch ends during a measurement.
"""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import Store, open_stores
from mae_hf.data.dataset import ImageSet
from mae_hf.data.splits import Split
from mae_hf.errors import require

NUM_DRAWN = 2_000
NUM_ROWS = 100_000
CLASS_NAMES = tuple(f"class {number}" for number in range(10))
CELLS = (3, 6, 12, 24, 48)  # per side, of the colour fields that are added up
WEIGHTS = (0.4, 0.25, 0.15, 0.12, 0.08)
NOISE = 4.0  # grey levels

_PNGS, _BLOCKS = "drawn.arrow", "repeated.npy"


def draw_image(number: int, image_size: int) -> Image.Image:
    """Return image `number`: random colour fields from coarse to fine, and a little noise."""
    generator = np.random.default_rng(number)
    pixels = generator.normal(0, NOISE, (image_size, image_size, 3))
    for cells, weight in zip(CELLS, WEIGHTS, strict=True):
        field = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += weight * np.asarray(field.resize((image_size, image_size), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw(folder: Path, image_size: int) -> None:
    """Write the images into `folder`, encoded and decoded."""

    def encode(number: int) -> dict[str, bytes | None]:
        file = io.BytesIO()
        draw_image(number, image_size).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    with ThreadPoolExecutor() as pool:
        pngs = list(pool.map(encode, range(NUM_DRAWN)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASS_NAMES))})
    columns = {"image": pngs, "label": [number % len(CLASS_NAMES) for number in range(NUM_DRAWN)]}
    with pa.ipc.new_stream(str(folder / _PNGS), features.arrow_schema) as writer:
        writer.write_table(pa.table(columns, schema=features.arrow_schema), max_chunksize=100)
    image_set(folder, image_size)


def dataset(folder: Path) -> datasets.Dataset:
    """Return the images for stock: memory-mapped PNG bytes `image`, and `label`."""
    return datasets.concatenate_datasets([_drawn(folder)] * (NUM_ROWS // NUM_DRAWN))


def image_set(folder: Path, image_size: int) -> ImageSet:
    """Return the images for mae_hf: a store of images decoded from the PNG bytes."""
    drawn = _drawn(folder)
    encoded = drawn.cast_column("image", datasets.Image(decode=False))
    split = Split("drawn", "train", encoded, np.array(drawn["label"]), CLASS_NAMES, fingerprint="drawn")
    [store] = open_stores([split], image_size, DataConfig(cache_dir=str(folder)))
    return ImageSet([(store, np.arange(NUM_ROWS) % NUM_DRAWN)])


def repeat(folder: Path, image_size: int, num: int) -> None:
    """Write `num` decoded images into one file, by repeating the generated ones.

    Raises:
        ConfigError: the disk has too little space.
    """
    needed, free = num * image_size**2 * 3, shutil.disk_usage(folder).free
    require(
        needed < free,
        f"{num:,} images need {needed >> 20} MiB in {folder.parent}, but {free >> 20} are free: choose another folder "
        "(TMPDIR=FOLDER python -m benchmarks.speed ...), or leave out --measure size",
    )
    images = image_set(folder, image_size).batch(np.arange(NUM_DRAWN)).numpy()
    file = np.lib.format.open_memmap(folder / _BLOCKS, "w+", np.uint8, (num, image_size, image_size, 3))
    for start in range(0, num, NUM_DRAWN):
        file[start : start + NUM_DRAWN] = images[: num - start]
    file.flush()


def repeated_set(folder: Path, num: int) -> ImageSet:
    """Return the first `num` images of the file that `repeat` wrote. Each has separate bytes on disk."""
    images = np.load(folder / _BLOCKS, mmap_mode="r")
    split = Split("repeated", "unlabeled", images, None, None, fingerprint="repeated")
    return ImageSet(
        [(Store(split, images, np.arange(len(images)), (), "repeated", folder / _BLOCKS, True), np.arange(num))]
    )


def _drawn(folder: Path) -> datasets.Dataset:
    return datasets.Dataset.from_file(str(folder / _PNGS))
