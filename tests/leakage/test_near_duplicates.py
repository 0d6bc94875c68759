"""Changed duplicates of drawn pictures are found, and distinct pictures are not called duplicates."""

import io
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_digits

from mae_hf.leakage import near_duplicates
from mae_hf.leakage.near_duplicates import exact_duplicates, find_duplicates

SIZE = 12
BICUBIC = Image.Resampling.BICUBIC


def noise(num: int, seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), np.uint8)


def drawing(seed: int, size: int = 96) -> Image.Image:
    """Draw shapes of many colours and sizes on a shaded background with a little grain."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (size, size), tuple(random.integers(80, 200, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    for _ in range(25):
        x, y = random.integers(-10, size, 2)
        width, height = random.integers(4, size // 2, 2)
        shape = draw.ellipse if random.uniform() < 0.5 else draw.rectangle
        shape((x, y, x + width, y + height), fill=tuple(random.integers(0, 256, 3).tolist()))
    shade = np.linspace(1, random.uniform(0.5, 1), size)
    pixels = np.asarray(picture) * shade[:, None, None] + random.normal(0, 4, (size, size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def drawings(seeds: range, change: Callable[[Image.Image], Image.Image] = lambda image: image) -> np.ndarray:
    return np.stack([np.asarray(change(drawing(seed))) for seed in seeds])


def pairs_of(found: pd.DataFrame) -> list[list[int]]:
    return found[["image", "against"]].values.tolist()


def compress(image: Image.Image, kind: str) -> Image.Image:
    image.save(file := io.BytesIO(), kind, quality=75)
    return Image.open(file).convert("RGB")


def crop(image: Image.Image, left: int, top: int) -> Image.Image:
    """90 % of the side, enlarged again."""
    return image.crop((left, top, left + 86, top + 86)).resize((96, 96), BICUBIC)


CHANGES = {
    "JPEG": lambda image: compress(image, "JPEG"),
    "WebP": lambda image: compress(image, "WebP"),
    "resized": lambda image: image.resize((64, 64), BICUBIC).resize((96, 96), BICUBIC),
    "centre crop": lambda image: crop(image, 5, 5),
    "corner crop": lambda image: crop(image, 0, 10),
    "crop at an edge": lambda image: crop(image, 10, 4),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "all at once": lambda image: compress(ImageEnhance.Brightness(crop(image, 10, 10)).enhance(1.2), "JPEG"),
}


# ---- near-duplicates ----


@pytest.fixture(scope="module")
def originals() -> np.ndarray:
    return drawings(range(40))


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_duplicate_is_found_on_either_side(originals: np.ndarray, kind: str):
    changed = drawings(range(10, 15), CHANGES[kind])
    distinct = drawings(range(100, 110))
    expected = [[10 + i, 10 + i] for i in range(5)]
    cases = [(np.concatenate([distinct, changed]), originals, 0), (originals, changed, 10)]
    for images, against, first in cases:
        found = find_duplicates(images, against)
        assert [[left, right + first] for left, right in pairs_of(found)] == expected
        assert set(found.kind) == {"near"}
        assert found.score.min() > near_duplicates.NEAR


def test_distinct_pictures_are_no_duplicates(originals: np.ndarray):
    assert len(find_duplicates(drawings(range(100, 160)), originals)) == 0


def test_equal_pixels_have_score_1_and_a_change_makes_them_near(originals: np.ndarray):
    images = np.concatenate([originals[[7]], drawings(range(9, 10), CHANGES["JPEG"])])
    found = find_duplicates(images, originals)
    assert pairs_of(found) == [[0, 7], [1, 9]]
    assert found.kind.tolist() == ["exact", "near"]
    assert found.score[0] == 1 > found.score[1]


def test_pictures_without_fine_structure_are_duplicates_only_if_they_are_equal():
    slopes = np.linspace(60, 200, 96)[:, None, None] + np.arange(6)[:, None, None, None] + np.zeros((1, 96, 96, 3))
    skies = np.concatenate([slopes.astype(np.uint8), np.full((2, 96, 96, 3), 90, np.uint8)])
    found = find_duplicates(skies, skies)
    assert set(found.kind) == {"exact"}
    assert pairs_of(found) == [[i, i] for i in range(6)] + [[6, 6], [6, 7], [7, 6], [7, 7]]


@pytest.mark.parametrize("size", [32, 96])
def test_enlarged_small_images_are_duplicates_only_if_they_are_equal(size: int):
    """Without the rule about detail, hundreds of pairs of 8 x 8 digits would be near-duplicates."""
    pixels = np.round(load_digits().images[:60] * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(digit).convert("RGB").resize((size, size), BICUBIC)) for digit in pixels]
    assert len(find_duplicates(np.stack(large[:30]), np.stack(large[30:]))) == 0


def test_the_size_of_chunks_makes_no_difference(originals: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    images = np.concatenate([drawings(range(3), CHANGES["corner crop"]), originals[5:9]])
    whole = find_duplicates(images, originals)
    monkeypatch.setattr(near_duplicates, "CHUNK", 3)
    parts = find_duplicates(images, originals)
    assert pairs_of(whole) == pairs_of(parts) == [[i, i] for i in range(3)] + [[i, i + 2] for i in range(3, 7)]
    np.testing.assert_allclose(whole.score, parts.score, atol=1e-4)


# ---- exact duplicates ----


def by_comparison(images: np.ndarray, against: np.ndarray) -> list[tuple[int, int]]:
    """Return every pair of equal images by comparing each with each."""
    return [(i, j) for i, j in product(range(len(images)), range(len(against))) if (images[i] == against[j]).all()]


def test_exact_duplicates_are_those_of_a_comparison_of_each_with_each():
    random = np.random.default_rng(0)
    for num, num_against in ((300, 40), (1, 1), (30, 0), (0, 30)):
        images, against = (random.integers(0, 2, (n, 1, 3, 3), np.uint8) for n in (num, num_against))
        assert list(exact_duplicates(images, against)) == by_comparison(images, against)


def test_one_changed_bit_or_another_shape_makes_another_image():
    image = noise(1, seed=1)
    other = image.copy()
    other[0, -1, -1, -1] ^= 1
    assert list(exact_duplicates(image, image)) == [(0, 0)]
    assert list(exact_duplicates(image, other)) == []
    image = np.zeros((1, 4, 9, 3), np.uint8)
    assert list(exact_duplicates(image, image.reshape(1, 6, 6, 3))) == []


def test_a_view_with_swapped_axes_is_compared_as_it_looks():
    images = noise(3, seed=1)
    turned = images.transpose(0, 2, 1, 3)
    assert list(exact_duplicates(turned, np.ascontiguousarray(turned))) == [(0, 0), (1, 1), (2, 2)]
    assert list(exact_duplicates(turned, images)) == []


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path):
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (4000, 8, 8, 3))
    images[:] = noise(4000, seed=1, size=8)
    against = ~images[:500]  # the inverse: no image equals one of these

    def peak(num: int) -> int:
        tracemalloc.start()
        assert not list(exact_duplicates(images[:num], against))
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(300)  # the first call imports
    assert peak(4000) - peak(1000) < 3000 * 4  # digests of all images would take 3000 * 16
