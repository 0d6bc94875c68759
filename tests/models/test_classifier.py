"""The classifier: the transfer of the encoder, the new weights, and stochastic depth."""

import json
import shutil

import numpy as np
import pytest
import torch
from mae_reference import sincos_table
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import AutoModelForImageClassification, ViTForImageClassification, ViTMAEModel

from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.errors import ConfigError
from mae_hf.evaluation.probes import Labelled, linear_probe
from mae_hf.models.classifier import DropPath, build_classifier, dropping_paths, set_drop_path
from mae_hf.models.mae import build_mae, export_encoder

ENCODER = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
}
DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 64,
}
NAMES = ("cat", "dog", "ship")


def build(init: str = "scratch", seed: int = 0, **changes) -> ViTForImageClassification:
    return build_classifier(ClassifierConfig(init=init, **ENCODER | changes), NAMES, "sdpa", seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished pre-training run whose model has no weight at a special value."""
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    torch.manual_seed(0)
    mae = build_mae(MAEConfig(**ENCODER, **DECODER), "sdpa")
    with torch.no_grad():
        for parameter in mae.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    mae.save_pretrained(folder / "model")
    export_encoder(mae).save_pretrained(folder / "model" / "encoder")
    (folder / "config.yaml").write_text("output_dir: here\n")
    return folder


def test_a_head_from_the_linear_probe_gives_scikit_learns_probabilities_at_the_start(run):
    model = build(str(run)).eval()
    images = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.vit(images).last_hidden_state[:, 0].numpy()
    labels = np.arange(60) % 3
    probe = linear_probe(Labelled(features, labels), features, 3)
    weight, bias = (torch.from_numpy(values) for values in probe.head)
    model.classifier.load_state_dict({"weight": weight, "bias": bias})
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=probe.settings["C"], max_iter=2000))
    with torch.no_grad():
        probabilities = model(images).logits.softmax(dim=-1)
    np.testing.assert_allclose(probabilities, reference.fit(features, labels).predict_proba(features), atol=1e-4)


@pytest.mark.parametrize("part", ["", "model", "model/encoder"])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_features_equal_those_of_the_pre_trained_encoder(run, part, attn_implementation):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    config = ClassifierConfig(init=str(run / part), **ENCODER)
    model = build_classifier(config, NAMES, attn_implementation, seed=0).eval()
    stock = ViTMAEModel.from_pretrained(run / "model", mask_ratio=0.0)
    expected = stock(images, noise=torch.arange(16).repeat(2, 1)).last_hidden_state
    torch.testing.assert_close(model.vit(images).last_hidden_state, expected)
    assert model.vit.config._attn_implementation == attn_implementation


def test_a_classifier_is_built_quietly(run, capfd):
    build(str(run))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pretrained", [False, True])
def test_only_the_classifier_is_new_and_almost_zero(run, pretrained):
    model = build(str(run) if pretrained else "scratch", seed=3)
    weight, bias = model.classifier.weight, model.classifier.bias
    assert weight.std().item() == pytest.approx(2e-5, rel=0.2)
    assert (bias == 0).all()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    again = build(str(run) if pretrained else "scratch", seed=4)
    new = {name for name, value in model.state_dict().items() if not torch.equal(value, again.state_dict()[name])}
    if pretrained:
        assert new == {"classifier.weight"}
    else:
        assert "vit.layers.0.attention.q_proj.weight" in new


def test_the_baseline_starts_from_the_distributions_of_the_masked_autoencoder():
    model = build(seed=1)
    mae = build_mae(MAEConfig(**ENCODER, **DECODER), "sdpa")
    table = torch.from_numpy(sincos_table(48, 4))[None]
    torch.testing.assert_close(model.vit.embeddings.position_embeddings.double(), table, rtol=0, atol=1e-6)
    for name, ours in model.vit.state_dict().items():
        theirs = mae.vit.get_parameter(name)
        if ours.unique().numel() <= 1:
            assert torch.equal(ours, theirs), name
        elif ours.numel() > 1000:
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1), name
            assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.1), name
    bound = (6 / (4 * 48)) ** 0.5
    assert 0.95 * bound < model.vit.layers[2].attention.k_proj.weight.abs().max() <= bound
    assert model.config.layer_norm_eps == 1e-6


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_seed_decides_the_new_weights_and_the_random_state_does_not_change(run, pretrained):
    init = str(run) if pretrained else "scratch"
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = build(init, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    second = build(init, seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_saved_classifier_opens_in_stock_transformers_with_its_class_names(run, tmp_path, pretrained):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = build(str(run) if pretrained else "scratch", drop_path=0.5).eval()
    nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path)
    stock, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(stock(images).logits, model(images).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "ship"}
    assert config["label2id"] == {"cat": 0, "dog": 1, "ship": 2}
    assert config["problem_type"] == "single_label_classification"
    assert config["model_type"] == "vit"
    assert not [key for key in config if "decoder" in key or "mask" in key or "mae" in key or "pix" in key]


def test_the_message_about_another_architecture_names_every_flag_to_add(run):
    with pytest.raises(ConfigError) as error:
        build(str(run), patch_size=16, hidden_size=96, num_hidden_layers=4)
    assert str(error.value) == (
        f"the config contradicts the checkpoint {run}: model.patch_size is 8 there and 16 here, "
        "model.hidden_size is 48 there and 96 here, model.num_hidden_layers is 3 there and 4 here: take its values "
        "(--model.patch_size null --model.hidden_size null --model.num_hidden_layers null)"
    )


@pytest.mark.parametrize(
    "say", ["pre-train first", "without a network: pretrain --config digits", "--model.init scratch"]
)
def test_the_message_about_a_missing_encoder_says_what_to_type(say):
    with pytest.raises(ConfigError, match="runs/pretrain/none does not exist") as error:
        build("runs/pretrain/none")
    assert say in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_and_an_unfinished_run_have_different_messages(tmp_path):
    with pytest.raises(ConfigError, match="holds no model"):
        build(str(tmp_path))
    (tmp_path / "config.yaml").write_text("output_dir: here\n")
    with pytest.raises(ConfigError, match="an unfinished run"):
        build(str(tmp_path))


def test_a_classifier_is_refused_as_a_pre_trained_encoder(tmp_path):
    build().save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="is a classifier that was already trained with labels"):
        build(str(tmp_path))


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(ConfigError, match="is a model of type 'resnet', not vit or vit_mae: pre-train first"):
        build(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("vit.layernorm.bias"), "has no weights for: layernorm.bias"),
        (
            lambda w: w["vit.embeddings.position_embeddings"].zero_(),
            "embeddings.position_embeddings that is not finite or equal",
        ),
        (lambda w: w["vit.embeddings.position_embeddings"].mul_(float("inf")), "is not finite"),
        (lambda w: w.update({"vit.layernorm.scale": torch.ones(2)}), "no place for: .*layernorm.scale"),
        (lambda w: w.update({"vit.layernorm.bias": torch.ones(2)}), r"layernorm.bias is \[2\], not \[48\]"),
    ],
)
def test_an_incomplete_encoder_is_refused(run, tmp_path, change, message):
    shutil.copytree(run / "model", tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=message):
        build(str(tmp_path))


@pytest.mark.parametrize("key", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_an_encoder_with_dropout_is_refused_because_its_draws_would_depend_on_the_processes(run, tmp_path, key):
    shutil.copytree(run / "model", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: 0.1}))
    with pytest.raises(ConfigError, match=rf"has dropout 0\.1, which is not supported: set .*{key}.* to 0"):
        build(str(tmp_path))


def test_drop_path_rises_linearly_and_changes_no_weight():
    model = build(drop_path=0.0)
    names = list(model.state_dict())
    set_drop_path(model, 0.3)
    assert [round(getattr(layer.dropout, "rate", 0.0), 6) for layer in model.vit.layers] == [0, 0.15, 0.3]
    assert list(model.state_dict()) == names
    assert [getattr(layer.dropout, "rate", 0.0) for layer in build(drop_path=0.2, num_hidden_layers=2).vit.layers] == [
        0,
        pytest.approx(0.2),
    ]


def test_drop_path_drops_whole_branches_of_images_and_keeps_the_mean():
    drop_path = DropPath(0.25)
    draws = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0))
    with dropping_paths([drop_path], draws):
        branch = drop_path(torch.ones(4000, 3, 2))
        second = drop_path(torch.ones(4000, 3, 2))
    assert branch.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert (branch.flatten(1).std(dim=1) == 0).all()
    assert branch.mean().item() == pytest.approx(1, abs=0.03)
    assert (branch[:, 0, 0] > 0).equal(draws[:, 0] < 0.75)
    assert (second[:, 0, 0] > 0).equal(draws[:, 1] < 0.75), "the second branch has its own draws"
    with dropping_paths([drop_path], draws[:2]):
        assert drop_path(torch.ones(2, 3, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_each_layer_gets_its_own_draws_and_training_without_draws_fails():
    drop_paths = [DropPath(0.5), DropPath(0.5)]
    with dropping_paths(drop_paths, torch.arange(12).reshape(3, 4) / 12):
        assert [(12 * drop_path.draws).round().tolist() for drop_path in drop_paths] == [
            [[0, 4, 8], [1, 5, 9]],
            [[2, 6, 10], [3, 7, 11]],
        ]
    for drop_path in (DropPath(0.5), *drop_paths):
        with pytest.raises(RuntimeError, match="size"):
            drop_path(torch.ones(3, 3, 2))


def test_a_layer_returns_its_input_if_both_branches_are_dropped():
    model = build(drop_path=0.0)
    images = torch.randn(64, 17, 48, generator=torch.Generator().manual_seed(0))
    plain = model.vit.layers[2](images)
    set_drop_path(model, 0.9)
    layer = model.vit.layers[2]
    torch.testing.assert_close(layer.eval()(images), plain)
    with dropping_paths([layer.dropout], torch.rand(64, 2, generator=torch.Generator().manual_seed(0))):
        unchanged = (layer.train()(images) == images).flatten(1).all(dim=1).float().mean().item()
    assert 0.65 < unchanged < 0.95  # both branches of an image are dropped with probability 0.81


def test_drop_path_refuses_layers_that_would_not_call_it():
    model = build(drop_path=0.0)
    del model.vit.layers[1].dropout
    with pytest.raises(RuntimeError, match="which this version of transformers does not have"):
        set_drop_path(model, 0.1)
