"""The loss of a step, computed by hand from the decoded images of its rows."""

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTMAEForPreTraining

from mae_hf.config.augment import AugmentConfig, CropConfig
from mae_hf.config.data import DataConfig
from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.config.train import TrainConfig
from mae_hf.data.dataset import DeviceImages, ImageSet, load_labelled_images
from mae_hf.data.random import Draws
from mae_hf.data.sampler import BatchSampler
from mae_hf.models.classifier import build_classifier
from mae_hf.models.mae import build_mae
from mae_hf.training.losses import finetuning_loss, pretraining_loss

DATA = DataConfig(source="digits", image_mean=(0.3, 0.4, 0.5), image_std=(0.2, 0.3, 0.4))
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
ROWS, EPOCH = np.array([40, 3, 17]), 2
WHOLE = {"crop_scale": (1.0, 1.0), "flip": False}  # every crop is the whole image, or a square has no room for it


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_labelled_images(DATA, 16, roles=("train",))["train"]


@pytest.fixture
def on_cpu(images: ImageSet) -> DeviceImages:
    return DeviceImages(images, torch.device("cpu"), "auto")


def normalised(images: ImageSet) -> torch.Tensor:
    pixels = images.batch(ROWS).numpy() / 255
    return torch.from_numpy(((pixels - DATA.image_mean) / DATA.image_std).transpose(0, 3, 1, 2)).float()


def test_the_loss_of_pre_training_equals_stocks_for_the_same_images_and_masks(images, on_cpu):
    shape = MAEConfig(**SHAPE, **DECODER, intermediate_size=32, decoder_intermediate_size=32, loss="mse")
    config = PretrainConfig(data=DATA, model=shape, augment=CropConfig(**WHOLE))
    model = build_mae(shape, "sdpa")
    stock = ViTMAEForPreTraining(model.config)
    stock.load_state_dict(model.state_dict())
    noise = torch.from_numpy(Draws(config.train.seed, EPOCH, ROWS, 0).uniform("mask", 16)).float()
    expected = stock(normalised(images), noise=noise).loss
    loss_of = pretraining_loss(model, on_cpu, config)
    torch.testing.assert_close(loss_of(Draws(0, EPOCH, ROWS, 0)), expected)
    assert not torch.isclose(loss_of(Draws(0, EPOCH + 1, ROWS, 0)), expected)  # other masks


def test_the_loss_of_fine_tuning_is_the_cross_entropy_with_smoothed_labels(images, on_cpu):
    plain = {"rand_augment_ops": 0, "mixup": 0.0, "cutmix": 0.0, "erase_probability": 0.0}
    config = FinetuneConfig(data=DATA, augment=AugmentConfig(**WHOLE, **plain))
    model = ViTForImageClassification(ViTConfig(**SHAPE, intermediate_size=32, num_labels=10)).eval()
    found = finetuning_loss(model, on_cpu, 10, config)(Draws(0, EPOCH, ROWS, 0))
    labels = torch.from_numpy(images.labels[ROWS])
    expected = torch.nn.functional.cross_entropy(model(normalised(images)).logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(found, expected)


def test_mixing_erasing_and_rand_augment_each_change_the_loss_of_fine_tuning(on_cpu):
    model = ViTForImageClassification(ViTConfig(**SHAPE, intermediate_size=32, num_labels=10)).eval()
    plain = {"rand_augment_ops": 0, "mixup": 0.0, "cutmix": 0.0, "erase_probability": 0.0}
    losses = [
        finetuning_loss(model, on_cpu, 10, FinetuneConfig(data=DATA, augment=AugmentConfig(**WHOLE, **plain | change)))
        for change in ({}, {"mixup": 0.8}, {"cutmix": 1.0}, {"erase_probability": 1.0}, {"rand_augment_ops": 2})
    ]
    assert len({loss_of(Draws(0, 0, ROWS, 0)).item() for loss_of in losses}) == 5


@pytest.mark.parametrize(("num_processes", "accumulation_steps"), [(1, 2), (2, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_split_batch_has_the_loss_and_gradients_of_the_whole_batch_to_twelve_digits(
    monkeypatch, images, on_cpu, stage, num_processes, accumulation_steps
):
    """In double precision, where rounding can hide nothing: crops, masks, mixup, cutmix, erasing and drop-path."""
    to_float = torch.Tensor.float  # the losses are computed in float32 whatever the weights are: here they are not
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_float(x))
    if stage == "pretrain":
        shape = MAEConfig(**SHAPE, **DECODER, intermediate_size=32, decoder_intermediate_size=32)
        model = build_mae(shape, "sdpa").double().train()
        loss_of = pretraining_loss(model, on_cpu, PretrainConfig(data=DATA, model=shape))
    else:
        config = FinetuneConfig(
            data=DATA,
            model=ClassifierConfig(
                **SHAPE | {"num_hidden_layers": 3}, intermediate_size=32, init="scratch", drop_path=0.5
            ),
            augment=AugmentConfig(erase_probability=0.5, mixup=0.8, cutmix=1.0),
        )
        model = build_classifier(config.model, images.class_names, "sdpa", seed=0).double().train()
        torch.nn.init.normal_(model.classifier.weight)  # almost zero at the start, when every loss would be alike
        loss_of = finetuning_loss(model, on_cpu, 10, config)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole = BatchSampler(TrainConfig(batch_size=8).plan(len(images), 1), seed=0)
    split = TrainConfig(batch_size=8, per_device_batch_size=8 // (num_processes * accumulation_steps))
    plan = split.plan(len(images), num_processes)
    for step in range(6):
        (rows,) = whole.micro_batches(step)
        expected = loss_of(Draws(0, whole.plan.epoch(step), rows, step))
        parts = [
            loss_of(Draws(0, whole.plan.epoch(step), rows, step))
            for index in range(num_processes)
            for rows in BatchSampler(plan, 0, index).micro_batches(step)
        ]
        assert len({part.item() for part in parts}) == len(parts) > 1
        found = torch.stack(parts).mean()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        gradients = (torch.autograd.grad(loss, weights) for loss in (found, expected))
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
