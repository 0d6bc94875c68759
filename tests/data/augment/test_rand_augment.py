"""RandAugment's operations against Pillow's, strengths against timm's table, draws against their distribution."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from mae_hf.data.augment import rand_augment as ra
from mae_hf.data.random import Draws

S = 48
GREY = (128, 128, 128)


def make_images():
    """Noise, smooth waves, low contrast, one flat grey and one flat except for a pixel: uint8 (B, S, S, 3)."""
    noise = np.random.default_rng(0).integers(0, 256, (3, S, S, 3), dtype=np.uint8)
    y, x = np.mgrid[:S, :S]
    waves = [np.stack([128 + 120 * np.sin((a * x + b * y) / 7 + c) for c in range(3)], -1) for a, b in ((1, 0), (1, 2))]
    flat = np.full((S, S, 3), 77)
    dotted = flat.copy()
    dotted[3, 5] = (200, 0, 78)
    return np.concatenate([noise, noise[:1] // 8 + 60, np.stack([*waves, flat, dotted]).astype(np.uint8)])


def apply(operation, images, amount):
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    result = ra.OPERATIONS[operation][0](pixels, torch.full((len(images), 1, 1, 1), float(amount)))
    return result.round().clamp(0, 255).permute(0, 2, 3, 1).numpy().astype(int)


def apply_pillow(function, images):
    return np.stack([np.asarray(function(Image.fromarray(image))) for image in images]).astype(int)


def solarize_add_table(amount):
    return [min(255, i + amount) if i < 128 else i for i in range(256)] * 3


COLOUR_CASES = [
    ("auto_contrast", 0, ImageOps.autocontrast),
    ("equalize", 0, ImageOps.equalize),
    ("invert", 0, ImageOps.invert),
    *[("posterize", bits, lambda i, bits=bits: ImageOps.posterize(i, bits)) for bits in (1, 2, 4, 8)],
    *[("solarize", t, lambda i, t=t: ImageOps.solarize(i, t)) for t in (0, 26, 200, 256)],
    *[("solarize_add", a, lambda i, a=a: i.point(solarize_add_table(a))) for a in (0, 50, 110)],
    *[
        (operation, factor, lambda i, e=enhancer, f=factor: e(i).enhance(f))
        for factor in (0.1, 0.7, 1.0, 1.81)
        for operation, enhancer in (
            ("color", ImageEnhance.Color),
            ("contrast", ImageEnhance.Contrast),
            ("brightness", ImageEnhance.Brightness),
            ("sharpness", ImageEnhance.Sharpness),
        )
    ],
]


@pytest.mark.parametrize(("operation", "amount", "pillow"), COLOUR_CASES)
def test_a_colour_operation_is_within_one_grey_level_of_pillow(operation, amount, pillow):
    images = make_images()
    difference = np.abs(apply(operation, images, amount) - apply_pillow(pillow, images))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99


def affine(*coefficients):
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=GREY
    )


GEOMETRIC_CASES = [
    *[("rotate", a, lambda i, a=a: i.rotate(a, Image.Resampling.BILINEAR, fillcolor=GREY)) for a in (-29.0, 13.0)],
    *[("shear_x", s, affine(1, s, 0, 0, 1, 0)) for s in (-0.3, 0.2)],
    *[("shear_y", s, affine(1, 0, 0, s, 1, 0)) for s in (-0.3, 0.2)],
    *[("translate_x", s, affine(1, 0, s * S, 0, 1, 0)) for s in (-0.44, 0.13)],
    *[("translate_y", s, affine(1, 0, 0, 0, 1, s * S)) for s in (-0.44, 0.13)],
]


@pytest.mark.parametrize(("operation", "amount", "pillow"), GEOMETRIC_CASES)
def test_a_geometric_operation_equals_pillows_away_from_the_border(operation, amount, pillow):
    images = make_images()
    # A black image, moved by Pillow, shows where its border went: there we blend with the fill and Pillow does not.
    outside = apply_pillow(pillow, np.zeros((1, S, S, 3), dtype=np.uint8))[0, :, :, 0] == 128
    inside = ndimage.binary_erosion(~outside, np.ones((3, 3)))
    beyond = ndimage.binary_erosion(outside, np.ones((3, 3)))
    assert inside.mean() > 0.3
    assert beyond.mean() > 0.01
    difference = np.abs(apply(operation, images, amount) - apply_pillow(pillow, images))
    assert difference[:, inside | beyond].max() <= 1


@pytest.mark.parametrize("operation", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_a_geometric_operation_of_amount_zero_changes_nothing(operation):
    images = make_images()
    np.testing.assert_array_equal(apply(operation, images, 0.0), images)


@pytest.mark.parametrize("operation", [operation for operation, _ in ra.OPERATIONS.values()])
def test_each_image_of_a_batch_gets_its_own_amount(operation):
    pixels = torch.from_numpy(make_images()[:4]).permute(0, 3, 1, 2).float()
    amount = torch.tensor([0.1, 0.2, 0.0, 0.3]).view(4, 1, 1, 1)
    alone = torch.cat([operation(pixels[i : i + 1], amount[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(operation(pixels, amount), alone, rtol=0, atol=1e-3)


# Level 9 and, for the signed ones, its negation: the arguments of timm's increasing set, worked out by hand.
TIMM_LEVEL_9 = {
    "rotate": (-27.0, 27.0),
    "posterize": (1, 1),
    "solarize": (26, 26),
    "solarize_add": (99, 99),
    "color": (0.19, 1.81),
    "contrast": (0.19, 1.81),
    "brightness": (0.19, 1.81),
    "sharpness": (0.19, 1.81),
    "shear_x": (-0.27, 0.27),
    "shear_y": (-0.27, 0.27),
    "translate_x": (-0.405, 0.405),
    "translate_y": (-0.405, 0.405),
}


def test_the_strengths_at_level_nine_equal_timms():
    levels, signs = np.array([9.0, 9.0]), np.array([-1.0, 1.0])
    amounts = {name: to_amount(levels, signs) for name, (_, to_amount) in ra.OPERATIONS.items()}
    assert set(amounts) == {"auto_contrast", "equalize", "invert", *TIMM_LEVEL_9}
    for name, expected in TIMM_LEVEL_9.items():
        np.testing.assert_allclose(amounts[name], expected, err_msg=name)


def test_posterize_never_blackens_an_image():
    to_amount = ra.OPERATIONS["posterize"][1]
    np.testing.assert_array_equal(to_amount(np.array([0.0, 5.0, 10.0]), np.ones(3)), [4, 2, 1])


def test_half_of_the_operations_are_skipped_and_all_are_equally_frequent():
    chosen, _, _ = ra.draw_operations(2, 9.0, Draws(0, 0, np.arange(20_000), 0))
    assert chosen.shape == (2, 20_000)
    for slot in chosen:
        counts = np.bincount(slot + 1, minlength=16)
        assert len(counts) == 16
        assert stats.chisquare(counts, 20_000 * np.array([0.5] + 15 * [0.5 / 15])).pvalue > 0.001
    pairs = np.histogram2d(*chosen, bins=(16, 16))[0]
    assert stats.chi2_contingency(pairs).pvalue > 0.001


def test_levels_are_normal_around_the_magnitude_and_signs_are_even():
    _, levels, signs = ra.draw_operations(1, 5.0, Draws(0, 0, np.arange(10_000), 0))
    assert stats.kstest(levels[0], "norm", args=(5.0, 0.5)).pvalue > 0.001
    assert set(signs[0]) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.04
    _, levels, _ = ra.draw_operations(1, 10.0, Draws(0, 0, np.arange(10_000), 0))
    assert levels.max() == 10
    assert levels.min() > 7


def test_the_operations_of_three_images_never_change():
    chosen, levels, signs = ra.draw_operations(2, 9.0, Draws(7, 3, np.arange(3), 0))
    assert chosen.tolist() == [[-1, 6, -1], [5, -1, 11]]
    np.testing.assert_allclose(levels[0], [9.506700318932861, 9.46895738526351, 8.800182987373235], rtol=1e-14)
    assert signs.tolist() == [[-1, 1, 1], [1, -1, -1]]


def test_each_image_gets_its_drawn_operations_in_order():
    images = np.repeat(make_images()[3:4], 300, axis=0)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    draws = Draws(0, 0, np.arange(300), 0)
    result = ra.rand_augment(pixels, 2, 9.0, draws)
    chosen, levels, signs = ra.draw_operations(2, 9.0, draws)
    for i in range(300):
        expected = images[i : i + 1]
        for slot in range(2):
            if chosen[slot, i] >= 0:
                operation = list(ra.OPERATIONS)[chosen[slot, i]]
                to_amount = ra.OPERATIONS[operation][1]
                amount = to_amount(levels[slot, i : i + 1], signs[slot, i : i + 1])[0]
                expected = apply(operation, expected, amount).astype(np.uint8)
        np.testing.assert_array_equal(result[i].permute(1, 2, 0), expected[0])


def test_the_input_is_not_changed():
    pixels = torch.from_numpy(make_images()).permute(0, 3, 1, 2)
    before = pixels.clone()
    result = ra.rand_augment(pixels, 2, 9.0, Draws(0, 0, np.arange(len(pixels)), 0))
    assert torch.equal(pixels, before)
    assert not torch.equal(result, before)
    assert result.dtype == torch.uint8
    assert result.shape == pixels.shape
