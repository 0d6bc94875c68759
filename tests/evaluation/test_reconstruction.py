"""The reconstruction picture shows real pixels: originals untouched, and visible patches exactly as they were."""

import numpy as np
import pytest
import torch

from mae_hf import figures
from mae_hf.config import DataConfig, MAEConfig
from mae_hf.evaluation.reconstruction import draw_reconstructions
from mae_hf.models.mae import build_mae

DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_visible_patches_come_through_the_normalisation_unchanged(monkeypatch: pytest.MonkeyPatch, norm_pix_loss: bool):
    config = MAEConfig(
        **SHAPE, **DECODER, intermediate_size=32, decoder_intermediate_size=32, norm_pix_loss=norm_pix_loss
    )
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    drawn = {}
    real = figures.reconstruction_figure

    def keep(originals, masked, reconstructed, title):
        drawn.update(originals=originals, masked=masked, reconstructed=reconstructed, title=title)
        return real(originals, masked, reconstructed, title)

    monkeypatch.setattr(figures, "reconstruction_figure", keep)
    data = DataConfig(source="digits", image_mean=(0.3, 0.4, 0.5), image_std=(0.2, 0.3, 0.4))
    draw_reconstructions(build_mae(config, "sdpa").eval(), images, data, "three images")
    np.testing.assert_array_equal(drawn["originals"], images.numpy())
    visible = (drawn["masked"] == images.numpy()).all(axis=-1)
    assert 0.2 < visible.mean() < 0.3  # a quarter of the patches
    np.testing.assert_array_equal(drawn["reconstructed"][visible], images.numpy()[visible])
    assert (drawn["reconstructed"][~visible] != images.numpy()[~visible]).any()
    assert ("true mean and variance" in drawn["title"]) == norm_pix_loss
