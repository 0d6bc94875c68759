"""Mixup, CutMix and label smoothing against a plain restatement of the papers."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mae_hf.config.augment import AugmentConfig
from mae_hf.config.train import FinetuneTrainConfig
from mae_hf.data.augment.mix import check_pairs, cut_box, mix
from mae_hf.data.random import Draws
from mae_hf.errors import ConfigError

C, S = 5, 12


def of_batch(step, seed=0):
    """Draws for one image; mixing uses only the numbers of the batch."""
    return Draws(seed, 0, np.arange(1), step)


def make_batch(num=6):
    generator = np.random.default_rng(0)
    pixel_values = torch.from_numpy(generator.normal(size=(num, 3, S, S)).astype(np.float32))
    labels = torch.from_numpy(generator.integers(0, C, num))
    return pixel_values, labels


def run(config, step, num=6):
    pixel_values, labels = make_batch(num)
    mixed, targets = mix(pixel_values, labels, C, config, of_batch(step))
    assert mixed.shape == pixel_values.shape
    assert mixed.dtype == torch.float32
    assert targets.shape == (num, C)
    assert targets.dtype == torch.float32
    np.testing.assert_allclose(targets.sum(1).numpy(), 1, atol=1e-6)
    return pixel_values.numpy(), labels.numpy(), mixed.numpy(), targets.numpy()


def smoothed(labels, smoothing):
    """Label smoothing: (1 - e) one-hot + e / C."""
    targets = np.full((len(labels), C), smoothing / C)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return targets


def mixup_weight(pixels, mixed):
    """The lam for which mixed = lam x + (1 - lam) x reversed, by least squares."""
    partners = pixels[::-1]
    difference = pixels - partners
    return float(((mixed - partners) * difference).sum() / (difference**2).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_mixup_and_cutmix_only_labels_are_smoothed(smoothing):
    pixels, labels, mixed, targets = run(AugmentConfig(mixup=0, cutmix=0, label_smoothing=smoothing), 0)
    np.testing.assert_array_equal(mixed, pixels)
    np.testing.assert_allclose(targets, smoothed(labels, smoothing), atol=1e-7)


@pytest.mark.parametrize("num", [6, 7, 1])
def test_mixup_is_one_convex_combination_of_images_and_of_targets(num):
    for step in range(20):
        pixels, labels, mixed, targets = run(AugmentConfig(mixup=0.8, cutmix=0), step, num)
        lam = mixup_weight(pixels, mixed) if num > 1 else 1.0
        assert 0 <= lam <= 1 + 1e-6
        np.testing.assert_allclose(mixed, lam * pixels + (1 - lam) * pixels[::-1], atol=1e-5)
        expected = lam * smoothed(labels, 0.1) + (1 - lam) * smoothed(labels[::-1], 0.1)
        np.testing.assert_allclose(targets, expected, atol=1e-5)


@pytest.mark.parametrize("num", [6, 7])
def test_cutmix_pastes_one_box_of_the_partner_and_weighs_labels_by_its_exact_area(num):
    areas = []
    for step in range(60):
        pixels, labels, mixed, targets = run(AugmentConfig(mixup=0, cutmix=1.0), step, num)
        pasted = (mixed != pixels).any(1)
        moved = np.arange(num) != num // 2 if num % 2 else np.full(num, True)
        box = pasted[0]
        assert (pasted[moved] == box).all()
        assert not pasted[~moved].any()
        ys, xs = np.nonzero(box)
        area = 0
        if len(ys):
            area = (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
            assert box.sum() == area
        np.testing.assert_array_equal(mixed, np.where(box, pixels[::-1], pixels))
        lam = 1 - area / S**2
        expected = lam * smoothed(labels, 0.1) + (1 - lam) * smoothed(labels[::-1], 0.1)
        np.testing.assert_allclose(targets, expected, atol=1e-6)
        areas.append(area)
    assert len(set(areas)) > 10


@pytest.mark.parametrize(("weight", "y", "x"), [(0.0, 0.5, 0.5), (0.3, 0.0, 0.99), (0.75, 0.5, 0.1), (1.0, 0.2, 0.2)])
def test_the_box_equals_timms_rand_bbox(weight, y, x):
    size = 96
    cut = int(size * math.sqrt(1 - weight))
    center_y, center_x = int(y * size), int(x * size)
    expected = np.clip([center_y - cut // 2, center_y + cut // 2, center_x - cut // 2, center_x + cut // 2], 0, size)
    assert cut_box(size, weight, y, x) == tuple(expected)


@pytest.mark.parametrize("alpha", [0.8, 0.2])
def test_the_weight_of_mixup_is_beta_distributed(alpha):
    config = AugmentConfig(mixup=alpha, cutmix=0)
    weights = []
    for step in range(400):
        pixels, _, mixed, _ = run(config, step)
        weights.append(np.clip(mixup_weight(pixels, mixed), 0, 1))
    assert stats.kstest(weights, "beta", args=(alpha, alpha)).pvalue > 0.001


def test_with_mixup_and_cutmix_each_batch_draws_one_of_them_evenly():
    used_cutmix = 0
    for step in range(200):
        pixels, _, mixed, _ = run(AugmentConfig(mixup=0.8, cutmix=1.0), step)
        copied = (mixed == pixels) | (mixed == pixels[::-1])
        used_cutmix += bool(copied.all())
    assert stats.binomtest(used_cutmix, 200, 0.5).pvalue > 0.001


def test_mixing_depends_on_seed_and_step_and_does_not_change_its_input():
    pixel_values, labels = make_batch()
    before = pixel_values.clone()
    first = mix(pixel_values, labels, C, AugmentConfig(), of_batch(2, seed=1))
    again = mix(pixel_values, labels, C, AugmentConfig(), of_batch(2, seed=1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert torch.equal(pixel_values, before)
    for seed, step in ((2, 2), (1, 3)):
        assert not torch.equal(mix(pixel_values, labels, C, AugmentConfig(), of_batch(step, seed))[0], first[0])


def test_a_micro_batch_is_mixed_like_the_whole_batch():
    pixel_values, labels = make_batch(8)
    for step in range(8):  # both methods
        whole, targets = mix(pixel_values, labels, C, AugmentConfig(), of_batch(step))
        for places in ([0, 7], [1, 2, 5, 6], [3, 4]):
            part, part_targets = mix(pixel_values[places], labels[places], C, AugmentConfig(), of_batch(step))
            assert torch.equal(part, whole[places])
            assert torch.equal(part_targets, targets[places])


def test_micro_batches_of_odd_size_are_refused_because_they_would_separate_pairs():
    split = {"batch_size": 12, "per_device_batch_size": 3}
    for num_processes in (1, 2):
        plan = FinetuneTrainConfig(**split).plan(24, num_processes)
        with pytest.raises(
            ConfigError, match=r"an even number of images per device, not 3: .*--train\.per_device_batch_size"
        ):
            check_pairs(AugmentConfig(), plan)
        check_pairs(AugmentConfig(mixup=0, cutmix=0), plan)
    check_pairs(AugmentConfig(), FinetuneTrainConfig(**split | {"per_device_batch_size": 6}).plan(24, 2))
    check_pairs(AugmentConfig(), FinetuneTrainConfig(batch_size=13).plan(24, 1))
