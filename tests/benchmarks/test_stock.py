"""The baseline is the real Trainer, with transforms that agree with torchvision's."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from few_turns import few, small_run
from PIL import Image
from scipy import stats

from benchmarks import drawn, stock
from mae_hf.config.augment import CropConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.data.augment.crop_flip import normalize, to_pixels


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    return small_run(tmp_path_factory.mktemp("stock"))


@pytest.mark.parametrize("transform", [stock.augmented, stock.whole])
def test_a_whole_image_is_normalised_as_in_mae_hf(run: PretrainConfig, transform):
    image = drawn.draw_image(0, 16)
    found = transform(image, run)
    expected = (np.asarray(image) / 255 - run.data.image_mean) / run.data.image_std
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)
    ours = normalize(to_pixels(torch.from_numpy(np.array(image))[None]), run.data.image_mean, run.data.image_std)
    torch.testing.assert_close(found, ours[0], atol=1e-5, rtol=0)


def test_a_crop_is_pillows_and_half_of_them_are_mirrored(run: PretrainConfig):
    config = replace(run, augment=CropConfig(crop_scale=(0.2, 1.0)))
    image, mirrored = drawn.draw_image(0, 16), 0
    for seed in range(200):
        random.seed(seed)
        left, top, width, height = stock.crop_box(16, 16, (0.2, 1.0))
        crop = image.crop((left, top, left + width, top + height)).resize((16, 16), Image.Resampling.BICUBIC)
        expected = stock.normalised(crop, run.data)
        random.seed(seed)
        found = stock.augmented(image, config)
        is_mirrored = not torch.equal(found, expected)
        assert torch.equal(found.flip(-1) if is_mirrored else found, expected)
        mirrored += is_mirrored
    assert 70 < mirrored < 130


def test_crops_follow_the_rule_of_random_resized_crop():
    random.seed(0)
    boxes = np.array([stock.crop_box(4000, 4000, (0.2, 0.5)) for _ in range(4000)])
    left, top, width, height = boxes.T
    assert (left >= 0).all() and (left + width <= 4000).all()
    assert (top >= 0).all() and (top + height <= 4000).all()
    assert stats.kstest(width * height / 4000**2, stats.uniform(0.2, 0.3).cdf).pvalue > 0.01
    assert stats.kstest(np.log(width / height), stats.uniform(np.log(3 / 4), np.log(16 / 9)).cdf).pvalue > 0.01
    assert stats.kstest(left / (4000 - width), stats.uniform.cdf).pvalue > 0.01
    assert stats.kstest(top / (4000 - height), stats.uniform.cdf).pvalue > 0.01


def test_if_no_crop_fits_the_centre_is_taken():
    assert stock.crop_box(100, 12, (1.0, 1.0)) == (42, 0, 16, 12)
    assert stock.crop_box(12, 100, (1.0, 1.0)) == (0, 42, 12, 16)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_trainer_pre_trains_in_its_own_loop(run: PretrainConfig, bf16: bool):
    assert few(stock.pretrain, 3, config=run, folder=Path(run.output_dir), bf16=bf16) == [8, 8, 8]


def test_the_trainer_fine_tunes_with_labels(run: PretrainConfig):
    assert few(stock.finetune, 3, config=run, folder=Path(run.output_dir)) == [8, 8, 8]
    images = stock.with_transform(Path(run.output_dir), partial(stock.whole, config=run))
    batch = stock.collate_labelled([images[row] for row in (3, 2_004)])
    assert batch["labels"].tolist() == [3, 4]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)


def test_features_are_taken_in_batches_of_64(run: PretrainConfig):
    assert few(stock.extract_features, 3, config=run, folder=Path(run.output_dir)) == [64, 64, 64]
