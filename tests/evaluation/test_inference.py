"""Whole sets of images through a model: each once, in order, with masks that never change."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import ViTConfig, ViTForImageClassification, ViTMAEForPreTraining, ViTModel

from mae_hf.config.data import DataConfig
from mae_hf.config.model import MAEConfig
from mae_hf.data.dataset import ImageSet, load_labelled_images
from mae_hf.evaluation.inference import class_probabilities, fixed_noise, held_out_loss, infer, pooled_features
from mae_hf.models.mae import build_mae

DATA = DataConfig(source="digits", class_names=None, image_mean=(0.3, 0.4, 0.5), image_std=(0.2, 0.3, 0.4))
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_labelled_images(DATA, 16, roles=("validation",))["validation"]


def normalised(images: ImageSet) -> torch.Tensor:
    """By hand: scaled to 0..1, minus the mean, over the standard deviation, channels first."""
    pixels = images.batch(np.arange(len(images))).numpy() / 255
    return torch.from_numpy(((pixels - DATA.image_mean) / DATA.image_std).transpose(0, 3, 1, 2)).float()


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_probabilities_are_the_softmax_of_stock_logits_in_order(images: ImageSet, batch_size: int):
    model = ViTForImageClassification(ViTConfig(**SHAPE, intermediate_size=32, num_labels=10)).eval()
    expected = model(normalised(images)).logits.softmax(dim=-1).detach().numpy()
    found = infer(Accelerator(cpu=True), class_probabilities, model, images, DATA, batch_size)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_features_are_the_cls_token_and_the_mean_of_the_patches(images: ImageSet):
    encoder = ViTModel(ViTConfig(**SHAPE, intermediate_size=32), add_pooling_layer=False).eval()
    tokens = encoder(normalised(images)).last_hidden_state.detach().numpy()
    found = infer(Accelerator(cpu=True), pooled_features, encoder, images, DATA, batch_size=7)
    np.testing.assert_allclose(found[:, 0], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 1], tokens[:, 1:].mean(axis=1), atol=1e-5)


def test_the_held_out_loss_is_the_mean_over_images_whatever_the_batch_size(images: ImageSet):
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = MAEConfig(**SHAPE, intermediate_size=32, **decoder, decoder_intermediate_size=32, loss="mse")
    model = build_mae(config, "sdpa").eval()
    noise = fixed_noise(np.arange(len(images)), 16, torch.device("cpu"))
    stock = ViTMAEForPreTraining(model.config).eval()
    stock.load_state_dict(model.state_dict())
    expected = stock(normalised(images), noise=noise).loss.item()
    for batch_size in (7, 1000):
        found = held_out_loss(Accelerator(cpu=True), model, images, DATA, 16, batch_size)
        assert found == pytest.approx(expected, rel=1e-5)


def test_held_out_masks_belong_to_the_image_not_to_the_batch():
    whole = fixed_noise(np.arange(10), 16, torch.device("cpu"))
    part = fixed_noise(np.array([7, 3]), 16, torch.device("cpu"))
    torch.testing.assert_close(part, whole[[7, 3]])
    assert len({tuple(row.argsort()[:4].tolist()) for row in whole}) > 5
