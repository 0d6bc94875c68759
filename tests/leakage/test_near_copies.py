"""Copies of drawn pictures are found whatever was done to them, and distinct pictures are not called copies."""

import io
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_digits

from mae_hf.leakage import near_copies
from mae_hf.leakage.near_copies import exact_duplicates, find_copies

SIZE = 12
BICUBIC = Image.Resampling.BICUBIC


def noise(num: int, seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), np.uint8)


def drawing(seed: int, size: int = 96) -> Image.Image:
    """Shapes of many colours and sizes on a ground that gets darker from one corner on, with a little grain."""
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


# ---- near copies ----


@pytest.fixture(scope="module")
def originals() -> np.ndarray:
    return drawings(range(40))


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_copy_is_found_on_either_side(originals: np.ndarray, kind: str):
    changed = drawings(range(10, 15), CHANGES[kind])
    strangers = drawings(range(100, 110))
    expected = [[10 + i, 10 + i] for i in range(5)]
    cases = [(np.concatenate([strangers, changed]), originals, 0), (originals, changed, 10)]
    for images, against, first in cases:
        found = find_copies(images, against)
        assert [[left, right + first] for left, right in found.pairs] == expected
        assert not found.equal.any()
        assert found.scores.min() > near_copies.NEAR


def test_distinct_pictures_are_no_copies(originals: np.ndarray):
    assert len(find_copies(drawings(range(100, 160)), originals)) == 0


def test_equal_pixels_have_score_1_and_a_change_makes_them_near(originals: np.ndarray):
    images = np.concatenate([originals[[7]], drawings(range(9, 10), CHANGES["JPEG"])])
    found = find_copies(images, originals)
    assert found.pairs.tolist() == [[0, 7], [1, 9]]
    assert found.equal.tolist() == [True, False]
    assert found.scores[0] == 1 > found.scores[1]


def test_pictures_without_fine_structure_are_copies_only_if_they_are_equal():
    slopes = np.linspace(60, 200, 96)[:, None, None] + np.arange(6)[:, None, None, None] + np.zeros((1, 96, 96, 3))
    skies = np.concatenate([slopes.astype(np.uint8), np.full((2, 96, 96, 3), 90, np.uint8)])
    found = find_copies(skies, skies)
    assert found.equal.all()
    assert found.pairs.tolist() == [[i, i] for i in range(6)] + [[6, 6], [6, 7], [7, 6], [7, 7]]


@pytest.mark.parametrize("size", [32, 96])
def test_small_images_that_were_enlarged_are_copies_only_if_they_are_equal(size: int):
    """Digits of 8 x 8 pixels: without their rule, hundreds of these pairs would be near copies."""
    pixels = np.round(load_digits().images[:60] * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(digit).convert("RGB").resize((size, size), BICUBIC)) for digit in pixels]
    assert len(find_copies(np.stack(large[:30]), np.stack(large[30:]))) == 0


def test_chunks_make_no_difference(originals: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    images = np.concatenate([drawings(range(3), CHANGES["corner crop"]), originals[5:9]])
    whole = find_copies(images, originals)
    monkeypatch.setattr(near_copies, "CHUNK", 3)
    parts = find_copies(images, originals)
    assert (
        whole.pairs.tolist() == parts.pairs.tolist() == [[i, i] for i in range(3)] + [[i, i + 2] for i in range(3, 7)]
    )
    np.testing.assert_allclose(whole.scores, parts.scores, atol=1e-4)


def test_images_of_two_sizes_are_not_compared():
    with pytest.raises(ValueError, match=r"images of \(12, 12, 3\) cannot be compared with images of \(16, 16, 3\)"):
        find_copies(noise(2, seed=1), noise(2, seed=1, size=16))


def by_comparison(images: np.ndarray, against: np.ndarray) -> list[list[int]]:
    """Every pair of equal images, each compared with each."""
    return [[i, j] for i, j in product(range(len(images)), range(len(against))) if (images[i] == against[j]).all()]


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
