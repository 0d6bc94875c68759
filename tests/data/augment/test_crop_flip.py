"""Crops and flips against Pillow, crop boxes against torchvision's distribution, normalisation against numpy."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from mae_hf.config.augment import AugmentConfig, CropConfig
from mae_hf.data.augment.crop_flip import (
    augment,
    crop_boxes,
    crop_resize_batched,
    crop_resize_each,
    normalize,
    to_pixels,
)
from mae_hf.data.augment.erase import erase
from mae_hf.data.augment.mix import mix
from mae_hf.data.random import Draws

S = 48
MEAN, STD = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)


def noise_images(num, size=S):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, size, size, 3), dtype=np.uint8))


def drawn_images(num, size=S):
    """Smooth colour gradients with a hard-edged disc each."""
    y, x = np.mgrid[:size, :size] / size
    images = []
    for i in range(num):
        image = np.stack([128 + 110 * np.sin(3 * x + i + c) * np.cos(2 * y - c) for c in range(3)], axis=-1)
        image[(x - 0.5) ** 2 + (y - 0.3 - i / num / 2) ** 2 < 0.04] = (255, 10 * i % 256, 0)
        images.append(image)
    return torch.from_numpy(np.stack(images).astype(np.uint8))


def pillow_crop(image, box, flip):
    top, left, height, width = box
    picture = Image.fromarray(image).crop((left, top, left + width, top + height))
    picture = picture.resize(image.shape[:2], Image.Resampling.BICUBIC)
    return np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture)


@pytest.mark.parametrize("crop_resize", [crop_resize_each, crop_resize_batched])
@pytest.mark.parametrize("make_images", [noise_images, drawn_images])
def test_crop_resize_and_flip_are_within_two_grey_levels_of_pillow(crop_resize, make_images):
    images = make_images(64)
    boxes = crop_boxes(S, (0.05, 1.0), Draws(1, 0, np.arange(64), 0))
    boxes[0] = [0, 0, S, S]
    boxes[1] = [7, S - 1, 9, 1]
    flip = np.arange(64) % 2 == 0
    expected = np.stack([pillow_crop(*each) for each in zip(images.numpy(), boxes, flip, strict=True)])
    pixels = crop_resize(images, boxes, flip)
    assert pixels.shape == (64, 3, S, S)
    assert pixels.dtype == torch.uint8
    difference = np.abs(pixels.permute(0, 2, 3, 1).numpy().astype(int) - expected)
    assert difference.max() <= 2
    assert (difference == 0).mean() > 0.98


def torchvision_box(size, scale, generator):
    """RandomResizedCrop.get_params of torchvision, restated."""
    for _ in range(10):
        area = size * size * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= size and 0 < height <= size:
            return generator.integers(0, size - height + 1), generator.integers(0, size - width + 1), height, width
    return 0, 0, size, size


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.95, 1.0)])
def test_crop_boxes_have_the_distribution_of_torchvisions_rule(scale):
    generator = np.random.default_rng(0)
    expected = np.array([torchvision_box(96, scale, generator) for _ in range(4000)])
    boxes = crop_boxes(96, scale, Draws(0, 0, np.arange(4000), 0))
    for column, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(boxes[:, column], expected[:, column], method="asymp").pvalue > 0.001, name
    aspect, expected_aspect = boxes[:, 3] / boxes[:, 2], expected[:, 3] / expected[:, 2]
    assert stats.ks_2samp(aspect, expected_aspect, method="asymp").pvalue > 0.001


def test_the_crops_of_three_images_never_change():
    boxes = crop_boxes(96, (0.2, 1.0), Draws(7, 3, np.arange(3), 0))
    assert boxes.tolist() == [[29, 23, 58, 58], [3, 6, 93, 86], [23, 14, 67, 76]]


def test_boxes_stay_inside_the_image_and_reach_all_borders():
    boxes = crop_boxes(12, (0.05, 1.0), Draws(3, 1, np.arange(20_000), 0))
    top, left, height, width = boxes.T
    assert min(top.min(), left.min()) == 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() == 12 == (left + width).max()


def test_an_image_is_augmented_alike_alone_and_in_any_batch():
    images, config, draws = drawn_images(16), AugmentConfig(), Draws(4, 2, np.arange(100, 116), 0)
    together = augment(images, config, draws)
    alone = torch.cat([augment(images[i : i + 1], config, draws[i : i + 1]) for i in range(16)])
    assert torch.equal(together, alone)
    order = np.random.default_rng(1).permutation(16)
    assert torch.equal(augment(images[order], config, draws[order]), together[order])


def test_seed_epoch_and_row_each_change_the_crop():
    images, config = noise_images(1), CropConfig(flip=False)
    base = augment(images, config, Draws(0, 0, np.array([5]), 0))
    for seed, epoch, row in ((0, 0, 6), (1, 0, 5), (0, 1, 5)):
        assert not torch.equal(augment(images, config, Draws(seed, epoch, np.array([row]), 0)), base)


def test_half_of_the_images_are_mirrored_unless_flip_is_off():
    images, draws = drawn_images(1).expand(400, -1, -1, -1), Draws(0, 0, np.arange(400), 0)
    mirrored = augment(images, CropConfig(crop_scale=(1.0, 1.0)), draws).eq(to_pixels(images).flip(-1))
    assert 150 < mirrored.flatten(1).all(1).sum() < 250
    unflipped = augment(images, CropConfig(crop_scale=(1.0, 1.0), flip=False), draws)
    assert torch.equal(unflipped, to_pixels(images))


def test_pretraining_has_no_randaugment_and_zero_operations_switch_it_off():
    images, draws = drawn_images(8), Draws(0, 0, np.arange(8), 0)
    crops = augment(images, CropConfig(), draws)
    assert torch.equal(augment(images, AugmentConfig(rand_augment_ops=0), draws), crops)
    assert not torch.equal(augment(images, AugmentConfig(rand_augment_ops=2), draws), crops)


def test_augmenting_on_an_accelerator_never_reads_a_value_back():
    # A meta tensor has no values: reading one on the host, or mixing in a CPU tensor, raises.
    images, draws = drawn_images(40).to("meta"), Draws(0, 0, np.arange(40), 0)
    pixels = augment(images, AugmentConfig(), draws)
    assert pixels.shape == (40, 3, S, S)
    assert pixels.dtype == torch.uint8
    pixel_values = normalize(pixels, MEAN, STD)
    assert erase(pixel_values, 0.25, draws).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_never_waits_for_the_gpu_while_a_batch_is_prepared():
    images, labels, config = drawn_images(64).cuda(), torch.arange(64).cuda() % 10, AugmentConfig()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4):  # each batch draws one of mixup and CutMix
            draws = Draws(0, step, np.arange(64), step)
            pixel_values = normalize(augment(images, config, draws), MEAN, STD)
            pixel_values = erase(pixel_values, config.erase_probability, draws)
            mix(pixel_values, labels, 10, config, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_decoded_images_are_not_changed():
    images = drawn_images(8)
    before = images.clone()
    normalize(augment(images, AugmentConfig(), Draws(0, 0, np.arange(8), 0)), MEAN, STD)
    normalize(to_pixels(images), MEAN, STD)
    assert torch.equal(images, before)


def test_normalize_gives_the_values_of_the_image_processor():
    images = noise_images(4)
    values = normalize(to_pixels(images), MEAN, STD)
    expected = ((images.numpy().astype(np.float64) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    assert values.dtype == torch.float32
    assert values.is_contiguous()
    np.testing.assert_allclose(values.numpy(), expected, atol=2e-6)
    np.testing.assert_allclose(normalize(to_pixels(images).float(), MEAN, STD).numpy(), expected, atol=2e-6)
