"""The masked autoencoder against the reference of mae_reference.py and against stock transformers."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from mae_reference import Reference, patches_of, sincos_table
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel, ViTModel

from mae_hf.config.model import MAEConfig
from mae_hf.errors import ConfigError, RunError
from mae_hf.models.initialization import check_positions, tells_patches_apart
from mae_hf.models.layers import CPU_ATTENTION
from mae_hf.models.mae import MaskedAutoencoder, build_mae, export_encoder, mae_config, reconstruct_pixels

CONFIG = MAEConfig(
    image_size=32,
    patch_size=8,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=96,
    decoder_hidden_size=32,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=4,
    decoder_intermediate_size=64,
)
TABLES = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")


def model_with(config: MAEConfig = CONFIG, seed: int = 0) -> MaskedAutoencoder:
    """Return a model in which no weight, bias or norm has a value that would hide an error."""
    torch.manual_seed(seed)
    model = build_mae(config, "sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(size: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.rand(size, 16, generator=generator)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae")
    model_with().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("loss", ["l1", "mse", "huber"])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_predictions_mask_and_loss_equal_the_reference(loss, norm_pix_loss, attn_implementation):
    config = replace(CONFIG, loss=loss, norm_pix_loss=norm_pix_loss, mask_ratio=0.7)
    model = model_with(config)
    model.set_attn_implementation(attn_implementation)
    images, noise = batch()
    reference = Reference(model.state_dict(), heads=3, decoder_heads=4, patch_size=8)
    expected = reference.forward(images, noise, 0.7, loss, norm_pix_loss)
    outputs = model(images, noise=noise)
    assert outputs.loss.item() == pytest.approx(expected[0], abs=1e-5)
    torch.testing.assert_close(outputs.logits.double(), expected[1], rtol=0, atol=1e-5)
    assert torch.equal(outputs.mask, expected[2])


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_the_attention_implementation_reaches_the_decoder(attn_implementation, saved):
    for model in (
        build_mae(CONFIG, attn_implementation),
        MaskedAutoencoder.from_pretrained(saved, attn_implementation=attn_implementation),
    ):
        assert model.vit.config._attn_implementation == attn_implementation
        assert model.decoder.decoder_layers[0].attention.config._attn_implementation == attn_implementation


WIDE = replace(CONFIG, hidden_size=192, intermediate_size=384, decoder_hidden_size=128, decoder_intermediate_size=256)


def expected_distribution(name: str, shape: torch.Size) -> tuple[str, float]:
    """Return the distribution in the paper's code (`initialize_weights` and `_init_weights`, with timm's fused qkv)."""
    if name.endswith(("cls_token", "mask_token")):
        return "normal", 0.02
    if "projection" in name:  # a Conv2d(3, 192, 8), its weight seen as Linear(192, 192) and its bias left as it was
        return "uniform", (6 / (3 * 64 + 192)) ** 0.5 if name.endswith("weight") else (1 / (3 * 64)) ** 0.5
    if "norm" in name:
        return "constant", 1.0 if name.endswith("weight") else 0.0
    if name.endswith("bias"):
        return "constant", 0.0
    if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
        return "uniform", (6 / (shape[1] + 3 * shape[1])) ** 0.5
    return "uniform", (6 / (shape[0] + shape[1])) ** 0.5


@pytest.mark.parametrize(
    "build",
    [
        lambda: MaskedAutoencoder(mae_config(WIDE)),
        lambda: MaskedAutoencoder._from_config(mae_config(WIDE), attn_implementation="eager"),
        lambda: build_mae(WIDE, "sdpa"),
    ],
)
def test_every_weight_starts_as_in_the_papers_code(build):
    torch.manual_seed(0)
    model = build()
    for name, parameter in model.named_parameters():
        if name in TABLES:
            table = torch.from_numpy(sincos_table(parameter.shape[2], 4))[None]
            torch.testing.assert_close(parameter.double(), table, rtol=0, atol=1e-6)
            assert not parameter.requires_grad
            continue
        assert parameter.requires_grad
        kind, size = expected_distribution(name, parameter.shape)
        values = parameter.detach().double()
        if kind == "constant":
            assert (values == size).all(), name
            continue
        deviation = size if kind == "normal" else size / 3**0.5
        spread = 4 / len(values.flatten()) ** 0.5  # four standard errors
        assert values.std().item() == pytest.approx(deviation, rel=spread), name
        assert abs(values.mean().item()) < spread * deviation, name
        if kind == "uniform":
            assert 0.95 * size < values.abs().max() <= size, name
        else:
            assert values.abs().max() > 1.9 * size, name


def test_two_rows_of_the_position_tables_are_never_equal():
    model = build_mae(CONFIG, "sdpa")
    for name in TABLES:
        assert len(model.get_parameter(name)[0].unique(dim=0)) == 17


def test_shuffling_the_patches_of_an_image_changes_the_loss():
    model = build_mae(CONFIG, "sdpa")
    images, noise = batch(1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = model.unpatchify(model.patchify(images)[:, order])
    difference = model(images, noise=noise).loss - model(shuffled, noise=noise[:, order]).loss
    assert difference.abs() > 1e-4


def without(model: ViTMAEForPreTraining, *tables: str) -> ViTMAEForPreTraining:
    with torch.no_grad():
        for name in tables:
            model.get_parameter(name).zero_()
    return model


def test_the_position_check_accepts_a_correct_model():
    check_positions(build_mae(CONFIG, "sdpa"))
    check_positions(build_mae(CONFIG, "eager").to(torch.bfloat16))


@pytest.mark.parametrize(("tables", "named"), [(TABLES, TABLES[0]), (TABLES[:1], TABLES[0]), (TABLES[1:], TABLES[1])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_position_check_refuses_a_model_with_an_empty_table(tables, named, dtype):
    model = without(model_with(), *tables).to(dtype)
    with pytest.raises(RunError, match=f"does not know where a patch is.*{named}"):
        check_positions(model)


def test_a_table_of_one_patch_has_nothing_to_tell_apart():
    table = torch.zeros(1, 2, 4)
    assert tells_patches_apart(table)
    assert not tells_patches_apart(table.fill_(torch.inf))
    assert not tells_patches_apart(torch.zeros(1, 3, 4))


def test_the_position_check_refuses_a_new_stock_model():
    with pytest.raises(RunError, match="does not know where a patch is"):
        check_positions(ViTMAEForPreTraining(mae_config(CONFIG)))


@pytest.mark.parametrize("value", [float("nan"), 0.5])
def test_the_position_check_refuses_a_table_that_is_constant_or_not_finite(value):
    model = build_mae(CONFIG, "sdpa")
    nn.init.constant_(model.decoder.decoder_pos_embed, value)
    with pytest.raises(RunError, match="decoder_pos_embed"):
        check_positions(model)


def test_noise_for_another_number_of_images_is_refused():
    model, (images, noise) = build_mae(CONFIG, "sdpa"), batch()
    for wrong in (noise[:1], noise[:, :4], noise[0]):
        with pytest.raises(ValueError, match=r"noise has shape .* the images need \(3, 16\)"):
            model(images, noise=wrong)


def test_images_of_another_size_and_resized_positions_are_refused():
    model, (images, _) = build_mae(CONFIG, "sdpa"), batch()
    with pytest.raises(ValueError, match=r"images of shape .3, 24, 24., the model takes .3, 32, 32."):
        model(images[..., :24, :24])
    with pytest.raises(ValueError, match="interpolate_pos_encoding"):
        model(images, interpolate_pos_encoding=True)


def test_half_precision_weights_take_float_pixels_and_give_a_float_loss():
    model, (images, noise) = model_with(), batch()
    expected = model(images, noise=noise).loss
    loss = model.to(torch.bfloat16)(images, noise=noise).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert export_encoder(model)(images.bfloat16()).last_hidden_state.dtype == torch.bfloat16


def test_outputs_equal_stock_transformers():
    model, (images, noise) = model_with(replace(CONFIG, loss="mse", norm_pix_loss=True)), batch()
    model.set_attn_implementation("eager")
    stock = ViTMAEForPreTraining._from_config(model.config, attn_implementation="eager").eval()
    stock.load_state_dict(model.state_dict())
    options = {"noise": noise, "output_hidden_states": True, "output_attentions": True}
    ours, theirs = model(images, **options), stock(images, **options)
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours.to_tuple(), theirs.to_tuple())
    assert len(model(images, noise=noise, return_dict=False)) == 4


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager", CPU_ATTENTION])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_and_gradients_equal_stock_transformers(norm_pix_loss, attn_implementation):
    model, (images, noise) = model_with(replace(CONFIG, loss="mse", norm_pix_loss=norm_pix_loss)).train(), batch()
    model.set_attn_implementation(attn_implementation)
    for layer in model.decoder.decoder_layers:  # set_attn_implementation does not reach them
        layer.attention.config._attn_implementation = attn_implementation
    stock = ViTMAEForPreTraining._from_config(model.config, attn_implementation="eager").train()
    stock.load_state_dict(model.state_dict())
    expected = stock(images, noise=noise).loss
    expected.backward()
    for options in ({}, {"loss_only": True}):
        model.zero_grad()
        loss = model(images, noise=noise, **options).loss
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for (name, ours), theirs in zip(model.named_parameters(), stock.parameters(), strict=True):
            if name not in TABLES and not name.endswith("k_proj.bias"):  # its gradient is zero but for rounding
                assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm(), name


def test_loss_only_returns_only_the_loss():
    model, (images, noise) = model_with(replace(CONFIG, norm_pix_loss=True)), batch()
    outputs = model(images, noise=noise, loss_only=True)
    assert outputs.keys() == {"loss"}
    torch.testing.assert_close(outputs.loss, model(images, noise=noise).loss)


@pytest.mark.parametrize(("decode_ratio", "num_decoded"), [(1.0, 12), (0.5, 6), (0.26, 3), (0.01, 1)])
def test_a_training_step_decodes_some_of_the_masked_patches_as_if_there_were_no_others(decode_ratio, num_decoded):
    model, (images, noise) = model_with(replace(CONFIG, decode_ratio=decode_ratio)).train(), batch()
    loss = model(images, noise=noise, loss_only=True).loss

    order = noise.argsort(dim=1)  # 4 visible, then 12 hidden
    kept = order[:, : 4 + num_decoded].sort(dim=1).values
    expected = []
    for image, own_noise, places in zip(images, noise, kept, strict=True):
        encoded = model.vit(image[None], noise=own_noise[None]).last_hidden_state
        tokens = model.decoder.mask_token[0].repeat(16, 1)
        tokens[own_noise.argsort()[:4]] = model.decoder.decoder_embed(encoded)[0, 1:]
        cls = model.decoder.decoder_embed(encoded)[0, :1]
        tokens = torch.cat((cls, tokens[places])) + model.decoder.decoder_pos_embed[0][[0, *(places + 1).tolist()]]
        for layer in model.decoder.decoder_layers:
            tokens = layer(tokens[None])[0]
        predicted = model.decoder.decoder_pred(model.decoder.decoder_norm(tokens))[1:]
        hidden = [n for n, place in enumerate(places.tolist()) if place not in own_noise.argsort()[:4]]
        assert len(hidden) == num_decoded
        expected.append((predicted[hidden] - patches_of(image[None], 8)[0, places[hidden]]).abs().mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_held_out_losses_count_all_masked_patches_at_any_decode_ratio():
    model, (images, noise) = model_with(replace(CONFIG, decode_ratio=0.5)), batch()
    expected = model_with()(images, noise=noise)
    torch.testing.assert_close(model(images, noise=noise, loss_only=True).loss, expected.loss)
    torch.testing.assert_close(model.train()(images, noise=noise).to_tuple(), expected.to_tuple())


def test_a_training_step_adds_the_squared_cosines_between_cls_features_and_held_out_losses_do_not():
    images, noise = batch()
    alone, model = (model_with(replace(CONFIG, uniformity=weight)).train() for weight in (0, 0.5))
    features = model.vit(images, noise=noise).last_hidden_state[:, 0]
    cosines = [torch.cosine_similarity(features[i], features[j], dim=0) for i, j in ((0, 1), (0, 2), (1, 2))]
    added = 0.5 * torch.stack(cosines).square().mean()
    assert added > 0.01
    expected = alone(images, noise=noise, loss_only=True).loss
    torch.testing.assert_close(model(images, noise=noise, loss_only=True).loss, expected + added)
    torch.testing.assert_close(model.eval()(images, noise=noise, loss_only=True).loss, expected)
    torch.testing.assert_close(model.train()(images, noise=noise).loss, expected)


def test_stock_transformers_opens_a_model_with_a_decode_ratio_and_uniformity(tmp_path):
    model, (images, noise) = model_with(replace(CONFIG, decode_ratio=0.5, uniformity=0.01)), batch()
    model.save_pretrained(tmp_path)
    stock, info = ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(stock(images, noise=noise).logits, model(images, noise=noise).logits)
    ours = MaskedAutoencoder.from_pretrained(tmp_path)
    assert (ours.decode_ratio, ours.uniformity) == (0.5, 0.01)


def test_only_the_two_tables_get_no_gradient():
    model, (images, noise) = model_with(), batch()
    model(images, noise=noise).loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == set(TABLES)


def test_an_unknown_loss_is_named_with_the_choices():
    with pytest.raises(ConfigError, match="mae_loss 'l3' is unknown: choose one of l1, mse, huber"):
        MaskedAutoencoder(ViTMAEConfig(mae_loss="l3"))


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_a_saved_model_opens_with_its_loss_and_frozen_tables(tmp_path, capfd, loss):
    model, (images, noise) = model_with(replace(CONFIG, loss=loss, norm_pix_loss=True)), batch()
    model.save_pretrained(tmp_path)
    loaded = MaskedAutoencoder.from_pretrained(tmp_path)
    assert capfd.readouterr() == ("", "")
    torch.testing.assert_close(loaded(images, noise=noise).to_tuple(), model(images, noise=noise).to_tuple())
    assert {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} == set(TABLES)
    assert not loaded.training
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_stock_transformers_opens_what_is_saved_with_the_same_predictions(saved):
    images, noise = batch()
    stock, info = ViTMAEForPreTraining.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(stock(images, noise=noise).logits, model_with()(images, noise=noise).logits)
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["ViTMAEForPreTraining"]


def test_saved_names_are_those_of_transformers_4(saved):
    layer = {f"attention.attention.{part}" for part in ("query", "key", "value")}
    layer |= {"attention.output.dense", "intermediate.dense", "output.dense", "layernorm_before", "layernorm_after"}
    names = set(load_file(saved / "model.safetensors"))
    for prefix in ("vit.encoder.layer.1.", "decoder.decoder_layers.1."):
        found = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        assert found == {f"{part}.{kind}" for part in layer for kind in ("weight", "bias")}


def test_given_weights_are_saved_instead_of_the_weights_of_the_model(tmp_path):
    weights = {name: value.clone() for name, value in model_with(seed=5).state_dict().items()}
    model_with().save_pretrained(tmp_path, state_dict=weights)
    loaded = MaskedAutoencoder.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_saving_does_not_upload(tmp_path):
    with pytest.raises(ValueError, match="push_to_hub"):
        build_mae(CONFIG, "sdpa").save_pretrained(tmp_path, push_to_hub=True)


def test_a_stock_checkpoint_opens_with_the_loss_of_stock(tmp_path):
    config = mae_config(CONFIG)
    del config.mae_loss
    stock = ViTMAEForPreTraining(config).eval()
    stock.load_state_dict(model_with().state_dict())
    stock.save_pretrained(tmp_path)
    images, noise = batch()
    torch.testing.assert_close(
        MaskedAutoencoder.from_pretrained(tmp_path)(images, noise=noise).to_tuple(),
        stock(images, noise=noise).to_tuple(),
    )


def damaged(folder, saved, change_weights=None, **config):
    """Return a copy of the saved model with changed weights or config."""
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(json.loads((saved / "config.json").read_text()) | config))
    weights = load_file(saved / "model.safetensors")
    if change_weights is not None:
        change_weights(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda w: w.pop("decoder.mask_token"), {}, "has no weights for: decoder.mask_token"),
        (
            lambda w: w["decoder.decoder_pos_embed"].zero_(),
            {},
            "decoder.decoder_pos_embed that is not finite or equal",
        ),
        (lambda w: w[TABLES[0]].fill_(float("nan")), {}, "position table vit.* that is not finite"),
        (None, {"image_size": 64}, r"of another shape: decoder.decoder_pos_embed is \[1, 17, 32\], not \[1, 65, 32\]"),
        (None, {"decoder_num_hidden_layers": 1}, "no place for: decoder.decoder_layers.1.* and 13 more"),
        (None, {"mae_loss": "l3"}, "mae_loss 'l3' is unknown"),
        (None, {"hidden_size": "wide"}, "not a number from 1 to"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_in_one_line(tmp_path, saved, capfd, change, config, message):
    folder = damaged(tmp_path, saved, change, **config)
    with pytest.raises(ConfigError, match=message) as error:
        MaskedAutoencoder.from_pretrained(folder)
    assert "give a whole masked autoencoder" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_stock_model_trained_from_scratch_is_refused(tmp_path):
    ViTMAEForPreTraining(mae_config(CONFIG)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="equal for all patches, as transformers 5 leaves it"):
        MaskedAutoencoder.from_pretrained(tmp_path)


def test_an_encoder_alone_is_not_a_masked_autoencoder(tmp_path):
    model_with().vit.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no weights for: decoder"):
        MaskedAutoencoder.from_pretrained(tmp_path)


def test_a_truncated_file_is_refused(tmp_path, saved):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:999])
    with pytest.raises(ConfigError, match="cannot be opened"):
        MaskedAutoencoder.from_pretrained(tmp_path)


def test_the_folder_of_a_finished_run_opens_as_its_model(tmp_path, saved):
    (tmp_path / "config.yaml").write_text("output_dir: here\n")
    with pytest.raises(ConfigError, match=r"an unfinished run.*run its command again"):
        MaskedAutoencoder.from_pretrained(tmp_path)
    shutil.copytree(saved, tmp_path / "model")
    assert MaskedAutoencoder.from_pretrained(tmp_path).loss_kind == "l1"


@pytest.mark.parametrize("name", ["runs/pretrain/none", "/none", "./none", "none"])
def test_a_missing_folder_is_not_searched_for_on_the_hub(name):
    with pytest.raises(ConfigError, match=f"{name} does not exist: give a whole masked autoencoder"):
        MaskedAutoencoder.from_pretrained(name)


def test_the_exported_encoder_gives_the_unmasked_features_of_stock_vit_mae(saved):
    model, (images, _) = model_with(), batch()
    features = export_encoder(model)(images).last_hidden_state
    stock = ViTMAEModel.from_pretrained(saved, mask_ratio=0.0)
    in_order = torch.arange(16).repeat(3, 1)
    torch.testing.assert_close(features, stock(images, noise=in_order).last_hidden_state)
    reference = Reference(model.state_dict(), heads=3, decoder_heads=4, patch_size=8)
    torch.testing.assert_close(features.double(), reference.encode(images, in_order), rtol=0, atol=1e-5)


def test_the_exported_encoder_opens_whole_as_a_plain_vit(tmp_path):
    model, (images, _) = model_with(), batch()
    export_encoder(model).save_pretrained(tmp_path)
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is ViTModel
    assert not any(info.values())
    outputs = encoder(images)
    expected = export_encoder(model)(images).last_hidden_state
    torch.testing.assert_close(outputs.last_hidden_state, expected)
    torch.testing.assert_close(outputs.pooler_output, expected[:, 0])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "vit"
    assert not [key for key in config if "decoder" in key or "mask" in key or "loss" in key]
    assert config["layer_norm_eps"] == 1e-6


def test_a_reconstruction_shows_original_visible_patches_and_predicted_masked_ones():
    model, (images, noise) = model_with(), batch()
    pixels, mask = reconstruct_pixels(model, images, noise)
    expected, predicted, expected_mask = Reference(model.state_dict(), 3, 4, 8).forward(
        images, noise, 0.75, "l1", False
    )
    patches, hidden = patches_of(pixels, 8), expected_mask.bool()
    assert torch.equal(mask, expected_mask)
    assert torch.equal(patches[~hidden], patches_of(images, 8)[~hidden])
    torch.testing.assert_close(patches[hidden].double(), predicted[hidden], rtol=0, atol=1e-5)
    assert (patches_of(images, 8) - patches)[hidden].abs().mean().item() == pytest.approx(expected, abs=1e-5)


def test_a_reconstruction_of_normalised_patches_restores_mean_and_contrast():
    model, (images, noise) = model_with(replace(CONFIG, norm_pix_loss=True)), batch()
    pixels, mask = reconstruct_pixels(model, images, noise)
    _, predicted, _ = Reference(model.state_dict(), 3, 4, 8).forward(images, noise, 0.75, "l1", True)
    patches, target, hidden = patches_of(pixels, 8), patches_of(images, 8).double(), mask.bool()
    own = target[hidden]
    expected = predicted[hidden] * (own.var(-1, keepdim=True) + 1e-6).sqrt() + own.mean(-1, keepdim=True)
    torch.testing.assert_close(patches[hidden].double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(patches[~hidden], patches_of(images, 8)[~hidden])
