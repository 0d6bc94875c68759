"""Experiment: how many planted duplicates the audit finds, what else it calls a duplicate, and what it costs.

python docs/experiments/near_duplicates.py recall UNLABELED STL10 FIGURE.png   # by kind, and what was not planted
python docs/experiments/near_duplicates.py cost UNLABELED STL10 100000         # time and memory for that many

UNLABELED and STL10 are sources as in `--data.source`.
"""

import io
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from mae_hf import figures
from mae_hf.config.data import DataConfig
from mae_hf.data.cache import open_stores
from mae_hf.data.sources import load_splits
from mae_hf.leakage.matches import pairs_figure
from mae_hf.leakage.near_duplicates import find_duplicates

NUM_PLANTED = 100  # originals; each is planted once in every kind
BICUBIC = Image.Resampling.BICUBIC


def compress(image: Image.Image, kind: str) -> Image.Image:
    """Return the image after compression at quality 75."""
    image.save(file := io.BytesIO(), kind, quality=75)
    return Image.open(file).convert("RGB")


def crop(image: Image.Image, part: float, x: float, y: float) -> Image.Image:
    """Return a crop of this part of the side at (x, y), each 0 to 1, enlarged to the image's size."""
    side = image.size[0]
    kept = round(side * part)
    left, top = round((side - kept) * x), round((side - kept) * y)
    return image.crop((left, top, left + kept, top + kept)).resize((side, side), BICUBIC)


def kinds(random: np.random.Generator) -> dict[str, Callable[[Image.Image], Image.Image]]:
    """Return the changes to an image by name."""

    def off_centre(image: Image.Image) -> Image.Image:
        return crop(image, 0.9, random.uniform(), random.choice([0, 1]))

    return {
        "same pixels": lambda image: image,
        "WebP q75": lambda image: compress(image, "WebP"),
        "JPEG q75": lambda image: compress(image, "JPEG"),
        "resized 96 to 64 to 96": lambda image: image.resize((64, 64), BICUBIC).resize((96, 96), BICUBIC),
        "90 % centre crop": lambda image: crop(image, 0.9, 0.5, 0.5),
        "90 % crop at an edge": off_centre,
        "brightness x 1.2": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
        "contrast x 0.7": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
        "contrast x 1.3": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
        "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "90 % crop at an edge, x 1.2, JPEG q75": lambda image: compress(
            ImageEnhance.Brightness(off_centre(image)).enhance(1.2), "JPEG"
        ),
        "80 % centre crop": lambda image: crop(image, 0.8, 0.5, 0.5),
    }


def load(source: str, roles: tuple[str, ...]) -> np.ndarray:
    """Return the images of some splits, in memory."""
    splits = load_splits(DataConfig(source=source), source)
    stores = open_stores([splits[role] for role in roles if role in splits], 96, DataConfig())
    return np.concatenate([store.images for store in stores])


def measure_recall(unlabeled: np.ndarray, labelled: np.ndarray, figure: str) -> None:
    """Plant duplicates of labelled images, print how many were found, and draw the other pairs."""
    random = np.random.default_rng(1)
    originals = np.sort(random.choice(len(labelled), NUM_PLANTED, replace=False))
    planted = [
        np.stack([np.asarray(change(Image.fromarray(labelled[row]))) for row in originals])
        for change in kinds(random).values()
    ]
    found = find_duplicates(np.concatenate(planted), labelled)
    hits = set(found["image"][originals[found["image"] % NUM_PLANTED] == found["against"]])
    print("| kind | the duplicate is unlabeled | the original is, the duplicate a test image |")
    for number, name in enumerate(kinds(random)):
        there = sum(row // NUM_PLANTED == number for row in hits)
        pairs = find_duplicates(labelled[originals], planted[number])
        back = (pairs["image"] == pairs["against"]).sum()
        print(f"| {name} | {there / NUM_PLANTED:.1%} | {back / NUM_PLANTED:.1%} |", flush=True)
    found = find_duplicates(unlabeled, labelled)
    near = found[found["kind"] == "near"].assign(row=found["image"], against_row=found["against"])
    print(f"{len(unlabeled)} x {len(labelled)} without planted ones: {len(found) - len(near)} exact", end=", ")
    print(f"{len(near)} near, scores", np.sort(near["score"]).round(3).tolist())
    figures.save(pairs_figure(unlabeled, labelled, near, "not planted"), figure)


def measure_cost(unlabeled: np.ndarray, labelled: np.ndarray, num: str) -> None:
    """Print time and memory for `num` images, the unlabeled ones repeated, memory-mapped."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        many = np.lib.format.open_memmap(file.name, "w+", np.uint8, (int(num), 96, 96, 3))
        for start in range(0, len(many), len(unlabeled)):
            many[start : start + len(unlabeled)] = unlabeled[: len(many) - start]
        many.flush()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        peak, done = [0.0], threading.Event()
        watch = threading.Thread(target=watch_memory, args=(peak, done))
        watch.start()
        start_time = time.perf_counter()
        find_duplicates(np.load(file.name, mmap_mode="r"), labelled)
        seconds, cpu = time.perf_counter() - start_time, resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
        done.set()
        watch.join()
        print(f"{seconds:.0f} s, CPU time {cpu:.0f} s, {torch.get_num_threads()} threads,", end=" ")
        print(f"at most {peak[0]:.2f} GiB, of which {labelled.nbytes / 2**30:.2f} are the {len(labelled)} test images")


def watch_memory(peak: list[float], done: threading.Event) -> None:
    """Record the peak memory in GiB, without mapped files."""
    while not done.wait(0.2):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        peak[0] = max(peak[0], int(line.split()[1]) / 2**20)


def main() -> None:
    """Run the measurement that the first argument names."""
    what, unlabeled, stl10, *rest = sys.argv[1:]
    labelled = load(stl10, ("test", "train"))
    images = np.concatenate([load(unlabeled, ("unlabeled",)), load(stl10, ("unlabeled",))])
    measure_recall(images, labelled, *rest) if what == "recall" else measure_cost(images, labelled, *rest)


if __name__ == "__main__":
    main()
