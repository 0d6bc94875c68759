"""Random erasing: boxes and noise against their distributions in timm, and the rest unchanged."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mae_hf.data.augment.erase import erase, erased_boxes
from mae_hf.data.random import Draws

S = 24
PIXEL = 100.0  # no normal number is that large: a value that differs from it was erased


def erase_flat(rows, probability=0.25, seed=0, epoch=0):
    """Images with the value PIXEL everywhere, after erasing: float (B, 3, S, S)."""
    return erase(torch.full((len(rows), 3, S, S), PIXEL), probability, Draws(seed, epoch, rows, 0)).numpy()


def timm_box(size, generator):
    """The box of timm's RandomErasing, restated; None after ten tries."""
    for _ in range(10):
        area = generator.uniform(0.02, 1 / 3) * size * size
        aspect = math.exp(generator.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width < size and height < size:
            return generator.integers(0, size - height + 1), generator.integers(0, size - width + 1), height, width
    return None


def test_boxes_have_the_distribution_of_timms_rule():
    generator = np.random.default_rng(0)
    expected = np.array([box for _ in range(4000) if (box := timm_box(96, generator))])
    boxes = erased_boxes(96, 1.0, Draws(0, 0, np.arange(4000), 0))
    for column, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(boxes[:, column], expected[:, column], method="asymp").pvalue > 0.001, name
    area, expected_area = boxes[:, 2:].prod(axis=1), expected[:, 2:].prod(axis=1)
    assert stats.ks_2samp(area, expected_area, method="asymp").pvalue > 0.001
    aspect, expected_aspect = boxes[:, 3] / boxes[:, 2], expected[:, 3] / expected[:, 2]
    assert stats.ks_2samp(aspect, expected_aspect, method="asymp").pvalue > 0.001


def test_the_boxes_of_three_images_never_change():
    boxes = erased_boxes(96, 1.0, Draws(7, 3, np.arange(3), 0))
    assert boxes.tolist() == [[4, 3, 16, 17], [39, 12, 32, 66], [46, 55, 24, 21]]


def test_boxes_stay_inside_the_image_and_reach_all_borders():
    top, left, height, width = erased_boxes(12, 1.0, Draws(3, 1, np.arange(20_000), 0)).T
    assert min(top.min(), left.min()) == 0
    assert min(height.min(), width.min()) >= 1
    assert max(height.max(), width.max()) < 12
    assert (top + height).max() == 12 == (left + width).max()


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_probability_is_the_fraction_of_images_that_are_erased(probability):
    num_erased = int((erase_flat(np.arange(2000), probability) != PIXEL).any(axis=(1, 2, 3)).sum())
    assert stats.binomtest(num_erased, 2000, probability).pvalue > 0.001


def test_one_box_becomes_standard_normal_noise_in_all_channels_and_the_rest_stays():
    rows, noise = np.arange(50, 350), []
    boxes = erased_boxes(S, 0.25, Draws(0, 0, rows, 0))
    for values, (top, left, height, width) in zip(erase_flat(rows), boxes, strict=True):
        box = np.zeros((3, S, S), bool)
        box[:, top : top + height, left : left + width] = True
        np.testing.assert_array_equal(values != PIXEL, box)
        noise.append(values[box])
    assert stats.kstest(np.concatenate(noise), "norm").pvalue > 0.001
    assert len(np.unique(np.concatenate(noise))) > 0.99 * sum(map(len, noise))  # not one draw for all pixels or images


def test_an_image_is_erased_alike_alone_and_in_any_batch():
    rows = np.arange(100, 140)
    together = erase_flat(rows)
    np.testing.assert_array_equal(np.concatenate([erase_flat(rows[i : i + 1]) for i in range(40)]), together)
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_array_equal(erase_flat(rows[order]), together[order])


def test_seed_epoch_and_row_each_change_the_box_and_the_noise():
    base = erase_flat(np.array([5]), 1.0)
    for row, seed, epoch in ((6, 0, 0), (5, 1, 0), (5, 0, 1)):
        assert not np.array_equal(erase_flat(np.array([row]), 1.0, seed, epoch), base)


def test_the_input_is_not_changed():
    pixel_values = torch.zeros(8, 3, S, S)
    erased = erase(pixel_values, 1.0, Draws(0, 0, np.arange(8), 0))
    assert not pixel_values.any()
    assert erased.any()
    assert erased.dtype == torch.float32
