"""Generated images cost a decoder as much as photographs, and are the same for all contenders."""

import io
from pathlib import Path

import numpy as np
import pytest

from benchmarks import drawn
from mae_hf.errors import ConfigError


def test_a_png_of_96_pixels_has_the_size_of_a_photograph():
    lengths = []
    for number in range(10):
        file = io.BytesIO()
        drawn.draw_image(number, 96).save(file, "PNG")
        lengths.append(len(file.getvalue()))
    assert 15_000 < min(lengths) <= max(lengths) < 20_000


def test_neighbouring_pixels_are_alike_and_images_differ():
    first, second = (np.asarray(drawn.draw_image(number, 96), np.float64) for number in (0, 1))
    assert np.abs(np.diff(first, axis=1)).mean() < 0.3 * first.std()
    assert np.abs(first - second).mean() > 10


def test_stock_and_mae_hf_see_the_same_images_and_labels(tmp_path: Path):
    drawn.draw(tmp_path, 16)
    images, stored = drawn.dataset(tmp_path), drawn.image_set(tmp_path, 16)
    assert len(images) == len(stored) == 100_000
    for row in (0, 7, 2007, 99_999):
        image = np.asarray(images[row]["image"])
        np.testing.assert_array_equal(image, stored.batch([row])[0])
        np.testing.assert_array_equal(image, drawn.draw_image(row % 2000, 16))
        assert images[row]["label"] == stored.labels[row]
    assert images.features["label"].names == list(stored.class_names)


def test_repeated_images_have_separate_bytes_on_disk(tmp_path: Path):
    drawn.draw(tmp_path, 16)
    drawn.repeat(tmp_path, 16, 4_500)
    assert (tmp_path / "repeated.npy").stat().st_size > 4_500 * 16 * 16 * 3
    few, many = drawn.repeated_set(tmp_path, 1_000), drawn.repeated_set(tmp_path, 4_500)
    assert (len(few), len(many)) == (1_000, 4_500)
    np.testing.assert_array_equal(many.batch([4_321])[0], drawn.draw_image(321, 16))


def test_too_little_space_is_reported_before_images_are_written(tmp_path: Path):
    drawn.draw(tmp_path, 16)
    with pytest.raises(ConfigError, match=r"need \d+ MiB in .* are free: choose another folder \(TMPDIR"):
        drawn.repeat(tmp_path, 16, 10**13)
    assert not (tmp_path / "repeated.npy").exists()
