"""The networks of a comparison: the first and last weights of its runs, on the runs' test images."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from mae_hf.data.dataset import ImageSet
from mae_hf.errors import ConfigError
from mae_hf.models.classifier import build_classifier
from mae_hf.report import networks
from mae_hf.report.comparison import Comparison
from mae_hf.report.networks import cls_attention, open_networks, open_test_images

SHAPE = {"image_size": 12, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def normalised_test_images(comparison: Comparison) -> torch.Tensor:
    """The four test images of `image_folder`, float (4, 3, 12, 12), normalised by hand."""
    images = torch.zeros(4, 3, 12, 12)
    data = comparison.best["from scratch"].config.data
    for row in range(4):
        colour = (20 + row, 2 * (20 + row), 100)
        for channel in range(3):
            images[row, channel] = (colour[channel] / 255 - data.image_mean[channel]) / data.image_std[channel]
    return images


def images_of(comparison: Comparison) -> dict[str, ImageSet]:
    """The test images of each arm."""
    return {arm: open_test_images(run) for arm, run in comparison.best.items()}


def test_each_network_gives_the_features_of_the_weights_that_it_is_named_after(runs, comparison):
    opened, missing = open_networks(comparison, images_of(comparison))
    assert not missing
    scratch = comparison.best["from scratch"]
    seed = scratch.config.train.seed
    encoders = {
        networks.PRETRAINED_ENCODER: ViTModel.from_pretrained(runs[0] / "model", add_pooling_layer=False),
        networks.RANDOM_ENCODER: build_classifier(
            comparison.best["from scratch"].config.model, ("cat", "dog"), "sdpa", seed
        ).vit,
        networks.FINETUNED_ENCODER: ViTForImageClassification.from_pretrained(runs[1] / "model").vit,
        networks.SUPERVISED_ENCODER: ViTForImageClassification.from_pretrained(runs[2] / "model").vit,
    }
    assert opened.keys() == encoders.keys()
    pixel_values, rows = normalised_test_images(comparison), np.array([2, 0, 3])
    seen = []
    for name, encoder in encoders.items():
        with torch.no_grad():
            expected = encoder.eval()(pixel_values[rows]).last_hidden_state[:, 0].numpy()
        found = opened[name](list(opened[name].images.batch(rows).numpy()))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        seen.append(found)
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(seen) for b in seen[:i])  # four different networks


def test_attention_can_be_read_from_every_network(comparison):
    opened, _ = open_networks(comparison, images_of(comparison))
    for network in opened.values():
        heads = network.attention(np.arange(3))
        assert heads.shape == (3, 2, 2, 2) and (heads > 0).all()


def test_a_network_that_is_gone_is_named_and_the_others_are_opened(runs, comparison):
    (runs[0] / "model" / "config.json").unlink()
    opened, missing = open_networks(comparison, images_of(comparison))
    assert set(opened) == {networks.RANDOM_ENCODER, networks.FINETUNED_ENCODER, networks.SUPERVISED_ENCODER}
    assert missing.keys() == {networks.PRETRAINED_ENCODER} and "pretraining" in missing[networks.PRETRAINED_ENCODER]


def test_test_images_whose_labels_or_pixels_changed_are_refused(image_folder, comparison):
    run = comparison.best["from scratch"]
    object.__setattr__(run.record, "test_fingerprint", open_test_images(run).fingerprint)
    assert len(open_test_images(run)) == 4
    picture, other = image_folder / "test" / "cat" / "20.png", image_folder / "test" / "dog" / "20.png"
    before = picture.read_bytes()
    Image.new("RGB", (12, 12)).save(picture)
    with pytest.raises(ConfigError, match=r"no longer holds the 4 test images of .*scratch"):
        open_test_images(run)
    picture.write_bytes(before)
    picture.rename(other)
    with pytest.raises(ConfigError, match=r"no longer holds the 4 test images of .*scratch"):
        open_test_images(run)


def eager_encoder() -> ViTModel:
    """A small encoder whose attention is far from even."""
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**SHAPE, intermediate_size=16), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    model.set_attn_implementation("eager")
    return model


def test_attention_is_the_softmax_of_query_times_key_of_the_last_layer():
    model, pixel_values = eager_encoder(), torch.randn(3, 3, 12, 12)
    inputs = {}
    last = model.layers[-1].attention
    for name in ("q_proj", "k_proj"):
        layer = getattr(last, name)
        layer.register_forward_hook(lambda _, __, output, name=name: inputs.update({name: output}))
    found = cls_attention(model, pixel_values)
    query, key = (inputs[name].view(3, 10, 2, 4).transpose(1, 2) for name in ("q_proj", "k_proj"))
    weights = (query @ key.transpose(2, 3) / 4**0.5).softmax(dim=-1)
    expected = 10 * weights[:, :, 0, 1:].reshape(3, 2, 3, 3)  # 10 tokens: 1 is an even share
    assert found.shape == (3, 2, 3, 3) and found.std() > 0.1
    torch.testing.assert_close(found, expected)


def test_attention_of_broken_weights_is_refused():
    model = eager_encoder()
    with torch.no_grad():
        model.layers[-1].attention.q_proj.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        cls_attention(model, torch.zeros(1, 3, 12, 12))
