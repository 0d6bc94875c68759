"""Training from checkpoints of any layout: settings from the checkpoint, resized positions, the same features."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from mae_reference import sincos_table
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from mae_hf.config import parse
from mae_hf.config.data import STL10_MEAN, DataConfig
from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.errors import ConfigError
from mae_hf.models.classifier import build_classifier
from mae_hf.models.initialization import check_positions, resize_positions
from mae_hf.models.mae import SAVED_NAMES, MaskedAutoencoder, build_mae, export_encoder
from mae_hf.models.origin import find_start, keep_start, resolve, start_facts

ROOT = Path(__file__).parents[2]
SHAPE = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
SHAPE |= {"intermediate_size": 96}
DECODER = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4}
DECODER |= {"decoder_intermediate_size": 64}
NULL = dict.fromkeys((*SHAPE, *DECODER, "loss", "norm_pix_loss"))
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
UNUSUAL = {"qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-3}
FIXED = ("position_embeddings", "decoder_pos_embed")


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Move every weight but the position tables away from special values."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(FIXED):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def stock_mae(**changes) -> ViTMAEForPreTraining:
    """A stock masked autoencoder with the tables of published ones."""
    model = ViTMAEForPreTraining(ViTMAEConfig(**SHAPE | DECODER | {"norm_pix_loss": True} | changes))
    with torch.no_grad():
        for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            table.copy_(torch.from_numpy(sincos_table(table.shape[2], 4)))
    return spread(model)


def rename(folder: Path, change) -> None:
    weights = {change(name): value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def to_version_4(name: str) -> str:
    """The name in a file of transformers 4.x, for a name in a file of 5.x, whose encoder has it already."""
    return name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers.")


def in_memory(name: str) -> str:
    for memory, file in SAVED_NAMES.items():
        name = name.replace(f".{file}.", f".{memory}.")
    return name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers.").replace(
        "encoder.layer.", "layers."
    )


def save(folder: Path, kind: str) -> tuple[ViTModel, ViTMAEForPreTraining | None]:
    """Write a checkpoint of a kind into the folder, and return its encoder, and the whole model if it has a decoder."""
    torch.manual_seed(0)
    whole = None
    if kind in ("vit", "classifier"):
        encoder = spread(ViTModel(ViTConfig(**SHAPE, **UNUSUAL)))
        encoder.save_pretrained(folder)
    elif kind == "without decoder":
        mae = stock_mae()
        mae.vit.save_pretrained(folder)
        encoder = export_encoder(mae)
    else:
        whole = stock_mae(layer_norm_eps=1e-6 if kind == "ours" else 1e-12)
        encoder = export_encoder(whole)
        if kind == "ours":
            ours = build_mae(MAEConfig(**SHAPE, **DECODER, norm_pix_loss=True, loss="mse"), "sdpa")
            ours.load_state_dict(whole.state_dict())
            ours.save_pretrained(folder)
        else:
            whole.save_pretrained(folder)
        if kind == "4.x":
            rename(folder, to_version_4)
        if kind == "names in memory":
            rename(folder, in_memory)
    processor = {"image_mean": MEAN, "image_std": STD, "size": 224, "feature_extractor_type": "ViTFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return encoder.eval(), whole


KINDS = ("5.x", "4.x", "names in memory", "ours", "vit", "without decoder")


def asked(folder: Path, **changes) -> PretrainConfig:
    return PretrainConfig(
        data=DataConfig(image_mean=None, image_std=None),
        model=MAEConfig(**NULL | {"init": str(folder)} | changes),
        output_dir=str(folder.parent / "run"),
    )


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    return request.param, folder, *save(folder, request.param)


@torch.no_grad()
def test_pre_training_continues_from_every_layout_with_the_same_features_and_predictions(checkpoint):
    _, folder, encoder, whole = checkpoint
    config = resolve(asked(folder))
    model = build_mae(config.model, "sdpa").eval()
    images = torch.randn(3, 3, 32, 32)
    model.config.mask_ratio = 0.0  # with noise in order, no patch is masked or moved
    features = model.vit(images, noise=torch.arange(16.0).repeat(3, 1)).last_hidden_state
    torch.testing.assert_close(features, encoder(images).last_hidden_state)
    torch.testing.assert_close(export_encoder(model)(images).last_hidden_state, features)
    tables = [parameter for name, parameter in model.named_parameters() if name.endswith(FIXED)]
    assert len(tables) == 2 and not any(table.requires_grad for table in tables)
    check_positions(model)
    if whole is not None:
        model.config.mask_ratio = 0.75
        noise = torch.rand(3, 16)
        ours, theirs = model(images, noise=noise), whole(images, noise=noise)
        torch.testing.assert_close(ours.logits, theirs.logits)
        torch.testing.assert_close(ours.loss, theirs.loss)  # with the checkpoint's norm_pix_loss and MSE
    assert start_facts(config.model)["init_has_decoder"] == (whole is not None)


def test_null_settings_are_those_of_the_checkpoint_and_a_missing_decoder_has_the_defaults(checkpoint):
    kind, folder, _, whole = checkpoint
    config = resolve(asked(folder))
    model = vars(config.model)
    assert {key: model[key] for key in SHAPE} == SHAPE
    assert (config.data.image_mean, config.data.image_std) == (MEAN, STD)
    default = MAEConfig()
    expected = DECODER if whole else {key: getattr(default, key) for key in DECODER}
    assert {key: model[key] for key in DECODER} == expected
    assert (config.model.loss, config.model.norm_pix_loss) == (("mse", True) if whole else ("l1", False))
    file = folder.parent / f"{kind}.yaml"
    file.write_text(parse.to_yaml(config))
    assert resolve(parse.read_file(PretrainConfig, file)) == config, "the resolved config contradicts its checkpoint"


def resized(kind: str, encoder: ViTModel, image_size: int) -> torch.Tensor:
    """The position table for an image size by the paper's formula; a learned one by `ViTModel`'s interpolation."""
    grid = image_size // 8
    if kind != "vit":
        return torch.from_numpy(sincos_table(48, grid)).float()
    return encoder.embeddings.interpolate_pos_encoding(torch.empty(1, grid**2 + 1, 48), image_size, image_size)[0]


@torch.no_grad()
@pytest.mark.parametrize("image_size", [24, 64])
def test_another_image_size_resizes_the_tables_of_encoder_and_decoder(checkpoint, image_size):
    kind, folder, encoder, whole = checkpoint
    model = build_mae(resolve(asked(folder, image_size=image_size)).model, "sdpa").eval()
    table, decoder = model.vit.embeddings.position_embeddings[0], model.decoder.decoder_pos_embed[0]
    torch.testing.assert_close(table, resized(kind, encoder, image_size), rtol=0, atol=1e-5)
    reference = torch.from_numpy(sincos_table(decoder.shape[1], image_size // 8)).float()
    torch.testing.assert_close(decoder, reference, rtol=0, atol=1e-5)
    check_positions(model)
    for name, value in model.state_dict().items():  # nothing else changes
        if whole is not None and not name.endswith(FIXED):
            assert torch.equal(value, whole.get_parameter(name)), name


@torch.no_grad()
@pytest.mark.parametrize("image_size", [32, 48])
def test_fine_tuning_starts_with_the_same_features_at_any_image_size(checkpoint, image_size):
    kind, folder, encoder, _ = checkpoint
    config = FinetuneConfig(
        data=DataConfig(image_mean=None, image_std=None),
        model=ClassifierConfig(**dict.fromkeys(SHAPE) | {"image_size": image_size, "init": str(folder)}),
        output_dir=str(folder.parent / "run"),
    )
    config = resolve(config)
    assert (config.data.image_mean, config.model.hidden_size, config.model.image_size) == (MEAN, 48, image_size)
    model = build_classifier(config.model, ("a", "b"), "sdpa", seed=0).eval()
    assert model.config.image_size == image_size and model.vit.embeddings.position_embeddings.requires_grad
    images = torch.randn(2, 3, image_size, image_size)
    features = model.vit(images).last_hidden_state
    stock = ViTModel(ViTConfig(**encoder.config.to_dict() | {"image_size": image_size}), add_pooling_layer=False).eval()
    stock.load_state_dict(
        encoder.state_dict() | {"embeddings.position_embeddings": resized(kind, encoder, image_size)[None]},
        strict=False,
    )
    torch.testing.assert_close(features, stock(images).last_hidden_state, rtol=1e-4, atol=1e-4)
    if kind == "vit":
        expected = encoder(images, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("grid", [2, 3, 7])
def test_a_learned_table_is_interpolated_as_in_stock_and_the_row_of_cls_stays(grid):
    learned = ViTModel(ViTConfig(**SHAPE)).embeddings
    torch.nn.init.normal_(learned.position_embeddings)
    table = learned.position_embeddings.detach()
    expected = learned.interpolate_pos_encoding(torch.empty(1, grid**2 + 1, 48), 8 * grid, 8 * grid)
    torch.testing.assert_close(resize_positions(table, grid), expected.detach())
    assert torch.equal(resize_positions(table, grid)[:, :1], table[:, :1])
    assert resize_positions(table, 4) is table


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_sine_cosine_table_is_computed_anew_also_where_half_precision_has_rounded_it(dtype):
    table = torch.from_numpy(sincos_table(48, 4))[None].to(dtype)
    table[:, 0] = 3.0  # some checkpoints have trained the row of CLS
    found = resize_positions(table, 6)
    expected = torch.from_numpy(sincos_table(48, 6))
    expected[0] = 3.0
    torch.testing.assert_close(found[0].double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 5e-3)
    nearly = table + 0.05 * torch.randn_like(table)
    assert not torch.allclose(resize_positions(nearly, 6)[0, 1:].double(), expected[1:], rtol=0, atol=0.02)


# ---- what is refused ----


def refused(config, *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_mae(resolve(config).model, "sdpa")
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "model", "5.x")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"patch_size": 16}, ("model.patch_size is 8 there and 16 here", "(--model.patch_size null)")),
        ({"loss": "l1"}, ("model.loss is mse there and l1 here", "--model.loss null")),
        ({"norm_pix_loss": False}, ("model.norm_pix_loss is True there and False here", "--model.norm_pix_loss null")),
        (
            {"hidden_size": 64, "decoder_num_hidden_layers": 4},
            ("decoder_num_hidden_layers is 2 there and 4 here", "--model.hidden_size null --model.decoder_num_"),
        ),
        ({"image_size": 36}, ("model.patch_size 8 does not divide image_size 36",)),
        ({"revision": "main"}, ("is a local folder, which has no revision main", "--model.revision null")),
    ],
)
def test_a_value_that_contradicts_the_checkpoint_is_named_beside_its_value(folder, changes, parts):
    refused(asked(folder, **changes), *parts)


@pytest.mark.parametrize(("kind", "stage"), [(PretrainConfig, "pretrain"), (FinetuneConfig, "finetune")])
def test_the_message_about_a_bare_command_has_the_whole_command_to_type(folder, tmp_path, kind, stage):
    words = [f"--model.init={folder}", "--data.source=my photos", f"--output_dir={tmp_path}", "--train.epochs=3"]
    with pytest.raises(ConfigError, match="contradicts the checkpoint") as error:
        resolve(parse.read_command(kind, words, stage))
    command = str(error.value).partition(", or type ")[2]
    start, typed = re.split(r" (?=--config published)", command)
    assert start == f"mae_hf {stage}"
    config = resolve(parse.read_command(kind, shlex.split(typed), stage))
    assert (config.model.init, config.data.source) == (str(folder), "my photos")
    assert (config.model.hidden_size, config.train.epochs, config.output_dir) == (48, 3, str(tmp_path))


def test_another_normalisation_than_that_of_the_checkpoint_is_named_beside_it(folder):
    config = dataclasses.replace(asked(folder), data=DataConfig())
    refused(config, f"data.image_mean is {list(MEAN)} there and {list(STL10_MEAN)} here", "--data.image_std null")
    (folder / "preprocessor_config.json").unlink()
    assert resolve(config).data == config.data, "without an image processor, the checkpoint makes no claim"
    refused(asked(folder), "data.image_mean is null", "no preprocessor_config.json", "(--data.image_mean)")


def test_the_preparation_of_images_is_that_of_the_checkpoint_and_another_one_is_refused(folder):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "mae_hf_resize": "pad"}))
    config = asked(folder)
    null = dataclasses.replace(config, data=dataclasses.replace(config.data, resize=None))
    assert resolve(null).data.resize == "pad"
    refused(config, "data.resize is pad there and crop here", "--data.resize null")
    file.write_text(json.dumps({"image_mean": MEAN, "image_std": [1, 1, 1]}))
    assert resolve(null).data.resize == "crop" and resolve(config).data.resize == "crop", "it makes no claim"


@pytest.mark.parametrize("mean", ["[0.5, 0.5]", '"grey"', "[0.5, NaN, 0.5]", '[0.5, "x", 0.5]', "null", "[[1], 2, 3]"])
def test_a_malformed_image_processor_is_refused_in_one_line(folder, mean):
    (folder / "preprocessor_config.json").write_text(f'{{"image_mean": {mean}, "image_std": [1, 1, 1]}}')
    refused(asked(folder), "")


@pytest.mark.parametrize("loss", ["huge", ["mse"], {"a": 1}, 3])
def test_a_malformed_loss_is_refused_in_one_line(folder, loss):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"mae_loss": loss}))
    refused(asked(folder), "model.loss")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda w: w["decoder.decoder_pos_embed"].zero_(),
            ("decoder_pos_embed that is not finite or equal", "--model.init paper"),
        ),
        (
            lambda w: w["vit.embeddings.position_embeddings"].zero_(),
            ("position_embeddings that is not finite or equal", "--model.init paper"),
        ),
        (lambda w: w["vit.embeddings.position_embeddings"].fill_(float("nan")), ("is not finite",)),
        (lambda w: w.pop("decoder.decoder_pred.weight"), ("has no weights for: decoder.decoder_pred.weight",)),
        (lambda w: w.pop("vit.layernorm.bias"), ("has no weights for: layernorm.bias",)),
    ],
)
def test_incomplete_weights_are_refused(folder, change, parts):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(asked(folder), *parts)


def test_a_decoder_whose_weights_are_missing_is_new(folder):
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if name[:4] == "vit."}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = resolve(asked(folder, decoder_num_hidden_layers=1))
    assert (config.model.decoder_num_hidden_layers, config.model.decoder_hidden_size) == (1, 512)
    assert not start_facts(config.model)["init_has_decoder"]
    check_positions(build_mae(config.model, "sdpa"))


def test_weights_in_pickles_other_channels_classifiers_and_missing_folders_are_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(asked(folder), "pytorch_model.bin may hold code", "--model.init")
    ViTModel(ViTConfig(**SHAPE, num_channels=1)).save_pretrained(tmp_path / "grey")
    refused(asked(tmp_path / "grey"), "takes 1 channels and images here have 3")
    ViTForImageClassification(ViTConfig(**SHAPE)).save_pretrained(tmp_path / "classifier")
    refused(asked(tmp_path / "classifier"), "is a classifier that was already trained with labels")
    ViTModel(ViTConfig(**SHAPE, hidden_dropout_prob=0.1)).save_pretrained(tmp_path / "dropout")
    refused(asked(tmp_path / "dropout"), "has dropout 0.1, which is not supported")
    refused(asked(tmp_path / "missing"), "missing does not exist", "--model.init paper")


@pytest.mark.parametrize("key", ["image_size", "decoder_hidden_size", "loss", "norm_pix_loss"])
def test_null_without_a_checkpoint_is_refused_with_what_to_do(key):
    with pytest.raises(ConfigError, match=rf"model\.{key} null needs a checkpoint .*\(--model\.{key}\)"):
        resolve(PretrainConfig(model=MAEConfig(**{key: None})))


@pytest.mark.parametrize(
    "config", [PretrainConfig, lambda data: FinetuneConfig(data=data, model=ClassifierConfig(init="scratch"))]
)
def test_a_null_normalisation_without_a_checkpoint_is_refused_with_what_to_do(config):
    with pytest.raises(
        ConfigError,
        match=r"data\.image_std null needs a checkpoint .*\(--data\.image_std\)",
    ):
        resolve(config(data=DataConfig(image_std=None)))


# ---- existing runs, and the presets ----


def test_an_existing_run_resolves_its_config_without_the_checkpoint(folder):
    config = resolve(asked(folder))
    run = Path(config.output_dir)
    run.mkdir()
    (run / "config.yaml").write_text(parse.to_yaml(config))
    (folder / "config.json").unlink()
    assert resolve(asked(folder)) == config
    assert resolve(asked(folder, patch_size=16)).model.patch_size == 16  # inspect_run names the difference
    (run / "config.yaml").write_text("damaged")
    with pytest.raises(ConfigError, match="holds no model"):
        resolve(asked(folder))


@pytest.mark.slow
@torch.no_grad()
def test_the_presets_start_from_a_checkpoint_of_the_published_shape(tmp_path):
    stock = ViTMAEForPreTraining(ViTMAEConfig())  # ViT-Base/16 at 224 px, as facebook/vit-mae-base
    for table in (stock.vit.embeddings.position_embeddings, stock.decoder.decoder_pos_embed):
        table.copy_(torch.from_numpy(sincos_table(table.shape[2], 14)))
    stock.eval().save_pretrained(tmp_path / "model")
    processor = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    images, noise = torch.randn(1, 3, 224, 224), torch.rand(1, 196)
    for stage, kind in (("pretrain", PretrainConfig), ("finetune", FinetuneConfig)):
        preset = parse.read_file(kind, ROOT / "configs" / stage / "published_224.yaml")
        model = dataclasses.replace(preset.model, init=str(tmp_path / "model"))
        config = resolve(dataclasses.replace(preset, model=model, output_dir=str(tmp_path / "run")))
        assert (config.model.image_size, config.model.patch_size, config.model.hidden_size) == (224, 16, 768)
        assert config.data.image_mean == (0.485, 0.456, 0.406)
        if stage == "pretrain":
            ours = build_mae(config.model, "sdpa").eval()
            assert isinstance(ours, MaskedAutoencoder)
            torch.testing.assert_close(ours(images, noise=noise).logits, stock(images, noise=noise).logits)
        else:
            features = build_classifier(config.model, ("a", "b"), "sdpa", 0).eval().vit(images).last_hidden_state
            torch.testing.assert_close(features, export_encoder(stock)(images).last_hidden_state)


def test_a_run_resumes_from_its_copy_of_a_checkpoint_that_was_trained_further(tmp_path):
    save(tmp_path / "vit", "vit")
    config, run = ClassifierConfig(**SHAPE, init=str(tmp_path / "vit")), tmp_path / "run"
    assert find_start(config, run) == config
    (run / "init" / ".vit.partial").mkdir(parents=True)  # a kill has left it
    keep_start(config, run)
    before = start_facts(config)["init_digest"]
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, tmp_path / "vit" / "model.safetensors")
    assert start_facts(config)["init_digest"] != before
    assert start_facts(find_start(config, run))["init_digest"] == before
