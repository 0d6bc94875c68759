"""The reconstruction picture shows real pixels: originals untouched, and visible patches exactly as they were."""

import numpy as np
import pytest
import torch

from mae_hf.config.data import DataConfig
from mae_hf.config.model import MAEConfig
from mae_hf.evaluation.reconstruction import MAX_STEPS, draw_reconstructions, save_reconstructions
from mae_hf.figures import sheets
from mae_hf.models.mae import MaskedAutoencoder, build_mae

DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


DATA = DataConfig(source="digits", image_mean=(0.3, 0.4, 0.5), image_std=(0.2, 0.3, 0.4))
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))


def small_model(norm_pix_loss: bool = False) -> MaskedAutoencoder:
    """A masked autoencoder of a few weights."""
    config = MAEConfig(
        **SHAPE, **DECODER, intermediate_size=32, decoder_intermediate_size=32, norm_pix_loss=norm_pix_loss
    )
    return build_mae(config, "sdpa").eval()


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_visible_patches_come_through_the_normalisation_unchanged(monkeypatch: pytest.MonkeyPatch, norm_pix_loss: bool):
    images, drawn = IMAGES, {}
    real = sheets.reconstruction_figure

    def keep(originals, masked, reconstructed, title):
        drawn.update(originals=originals, masked=masked, reconstructed=reconstructed, title=title)
        return real(originals, masked, reconstructed, title)

    monkeypatch.setattr(sheets, "reconstruction_figure", keep)
    draw_reconstructions(small_model(norm_pix_loss), images, DATA, "three images")
    np.testing.assert_array_equal(drawn["originals"], images.numpy())
    visible = (drawn["masked"] == images.numpy()).all(axis=-1)
    assert 0.2 < visible.mean() < 0.3  # a quarter of the patches
    np.testing.assert_array_equal(drawn["reconstructed"][visible], images.numpy()[visible])
    assert (drawn["reconstructed"][~visible] != images.numpy()[~visible]).any()
    assert ("true mean and variance" in drawn["title"]) == norm_pix_loss


@pytest.fixture
def drawn_over_time(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the pictures over time were drawn from, in turn."""
    drawn: list[tuple] = []
    real = sheets.over_time_figure
    monkeypatch.setattr(sheets, "over_time_figure", lambda *args: drawn.append(args) or real(*args))
    return drawn


def test_the_picture_over_time_holds_what_the_model_made_of_the_images_at_each_step(drawn_over_time, tmp_path):
    model, expected = small_model(), {}
    for step in (10, 20, 30):
        with torch.no_grad():
            model.decoder.decoder_pred.bias.fill_(step / 30)
        save_reconstructions(model, IMAGES, DATA, tmp_path, step)
        with np.load(tmp_path / f"reconstruction-{step:08d}.npz") as arrays:
            expected[step] = arrays["reconstructed"]
    original, masked, reconstructed, title = drawn_over_time[-1]
    assert list(reconstructed) == [10, 20, 30] and "un-normalised" not in title
    np.testing.assert_array_equal(original, IMAGES.numpy())
    visible = (masked == original).all(axis=-1)
    for step, images in reconstructed.items():
        np.testing.assert_array_equal(images, expected[step])
        np.testing.assert_array_equal(images[visible], original[visible])
    assert (reconstructed[10][~visible] < reconstructed[30][~visible]).any()
    names = {f"reconstruction-{step:08d}.{kind}" for step in (10, 20, 30) for kind in ("npz", "png")}
    assert {path.name for path in tmp_path.iterdir()} == names | {"reconstruction-over-time.png"}


def test_of_many_steps_the_first_and_the_last_are_drawn_and_the_early_ones_more_densely(drawn_over_time, tmp_path):
    for step in range(1, 33):
        np.savez(tmp_path / f"reconstruction-{step:08d}.npz", reconstructed=IMAGES.numpy())
    save_reconstructions(small_model(), IMAGES, DATA, tmp_path, 32)
    steps = list(drawn_over_time[-1][2])
    assert steps == [1, 2, 4, 8, 16, 32] and len(steps) == MAX_STEPS


def test_steps_that_a_resumed_run_has_not_reached_again_are_left_out(drawn_over_time, tmp_path):
    for step in (30, 10, 20):
        save_reconstructions(small_model(), IMAGES, DATA, tmp_path, step)
    assert [list(args[2]) for args in drawn_over_time] == [[30], [10], [10, 20]]


def test_with_normalised_targets_both_pictures_say_what_gave_their_contrast(drawn_over_time, tmp_path, monkeypatch):
    titles = []
    real = sheets.reconstruction_figure
    monkeypatch.setattr(sheets, "reconstruction_figure", lambda *args: titles.append(args[3]) or real(*args))
    save_reconstructions(small_model(norm_pix_loss=True), IMAGES, DATA, tmp_path, 5)
    for title in (titles[0], drawn_over_time[0][3]):
        assert "un-normalised with their true mean and variance" in title
