"""Finished models open for evaluation from any folder that holds one; the message about other folders names the fix."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import ViTConfig, ViTForImageClassification

from mae_hf.config.data import DataConfig
from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.errors import ConfigError
from mae_hf.hub import save_model
from mae_hf.models.classifier import build_classifier
from mae_hf.models.io import (
    SavedModel,
    open_classifier,
    open_encoder,
    prepared_as,
    weights_digest,
)
from mae_hf.models.mae import build_mae, export_encoder
from mae_hf.models.origin import load_encoder, resolve

DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = MAEConfig(**SHAPE, **DECODER, intermediate_size=32, decoder_intermediate_size=32)


def test_the_encoder_of_every_kind_of_model_gives_unmasked_features(tmp_path: Path):
    mae = build_mae(CONFIG, "sdpa").eval()
    save_model(tmp_path / "run" / "model", mae, PretrainConfig(model=CONFIG), {})
    classifier = ViTForImageClassification(ViTConfig(**SHAPE, intermediate_size=32, layer_norm_eps=1e-6)).eval()
    classifier.save_pretrained(tmp_path / "classifier")
    pixel_values = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for name in ("run", "run/model", "run/model/autoencoder"):
            features = open_encoder(str(tmp_path / name), "sdpa")(pixel_values).last_hidden_state
            torch.testing.assert_close(features, export_encoder(mae)(pixel_values).last_hidden_state)
        features = open_encoder(str(tmp_path / "classifier"), "sdpa")(pixel_values).last_hidden_state
        torch.testing.assert_close(features, classifier.vit(pixel_values).last_hidden_state)
        logits = open_classifier(str(tmp_path / "classifier"), "sdpa")(pixel_values).logits
        torch.testing.assert_close(logits, classifier(pixel_values).logits)


def test_the_digest_of_an_encoder_survives_the_transfer_and_changes_with_any_weight(tmp_path: Path):
    mae = build_mae(CONFIG, "sdpa")
    save_model(tmp_path / "model", mae, PretrainConfig(model=CONFIG), {})
    shape = {**SHAPE, "intermediate_size": 32}
    classifier = build_classifier(ClassifierConfig(init=str(tmp_path), **shape), ("a", "b"), "sdpa", seed=3)
    digest = weights_digest(classifier.vit)
    assert len(digest) == 16
    for name in (tmp_path, tmp_path / "model" / "autoencoder"):
        assert weights_digest(open_encoder(str(name), "sdpa")) == digest
    with torch.no_grad():
        classifier.vit.layernorm.bias[3] += 1e-6
    assert weights_digest(classifier.vit) != digest
    assert SavedModel(str(tmp_path)).commit is None, "a local folder has no revision"
    with pytest.raises(ConfigError, match=r"is a local folder, which has no revision main.*--model\.revision null"):
        _ = SavedModel(str(tmp_path), revision="main").commit


def test_the_normalisation_is_read_from_the_model(tmp_path: Path):
    mae = build_mae(CONFIG, "sdpa")
    save_model(tmp_path / "model", mae, PretrainConfig(model=CONFIG), {})
    expected = {"image_mean": (0.4467, 0.4398, 0.4066), "image_std": (0.2603, 0.2566, 0.2713), "resize": "crop"}
    assert SavedModel(str(tmp_path)).preparation() == expected


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_images_are_prepared_as_the_model_says_or_as_the_config_does(tmp_path: Path, resize: str):
    data = DataConfig(resize=resize, image_mean=(0.1, 0.2, 0.3))
    save_model(tmp_path / "model", build_mae(CONFIG, "sdpa"), PretrainConfig(model=CONFIG, data=data), {})
    other = DataConfig(source="photos", resize="squash" if resize == "pad" else "pad")
    assert prepared_as(str(tmp_path), other) == dataclasses.replace(data, source="photos")
    file = tmp_path / "model" / "autoencoder" / "preprocessor_config.json"
    stock = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "size": {"height": 224, "width": 224}}
    file.write_text(json.dumps(stock))
    assert prepared_as(str(tmp_path), other).resize == other.resize, "it makes no claim"
    file.write_text(json.dumps({**stock, "mae_hf_resize": ["x"]}))
    with pytest.raises(ConfigError, match=r"has mae_hf_resize \['x'\] in its preprocessor_config.json"):
        SavedModel(str(tmp_path)).preparation()


def test_the_message_about_another_kind_of_model_says_what_to_type(tmp_path: Path):
    build_mae(CONFIG, "sdpa").save_pretrained(tmp_path / "mae")
    with pytest.raises(ConfigError, match=r"not a classifier.*--probe knn,linear"):
        open_classifier(str(tmp_path / "mae"), "sdpa")
    with pytest.raises(ConfigError, match=r"preprocessor_config.json"):
        SavedModel(str(tmp_path / "mae")).preparation()
    with pytest.raises(ConfigError, match="does not exist"):
        open_encoder(str(tmp_path / "nothing"), "sdpa")


# ---- the Hub ----

NO_ANSWER = ({"HF_HUB_OFFLINE": True}, {"HF_HUB_OFFLINE": False, "ENDPOINT": "http://127.0.0.1:9"})


@pytest.mark.parametrize("revision", [None, "f" * 40])
@pytest.mark.parametrize("constant", NO_ANSWER)
def test_a_name_that_the_hub_cannot_answer_for_ends_at_once_with_the_fix(monkeypatch, revision, constant):
    for key, value in constant.items():
        monkeypatch.setattr(constants, key, value)
    error, fix = "ConnectError: ", "check the network and HF_ENDPOINT"
    if constant["HF_HUB_OFFLINE"]:
        error, fix = "offline mode", "unset HF_HUB_OFFLINE"
    start = time.perf_counter()
    for check in (lambda model: resolve(FinetuneConfig(model=model)), lambda model: load_encoder(model, "sdpa")):
        with pytest.raises(ConfigError) as caught:
            check(ClassifierConfig(init="runs/nothing", revision=revision))
        where = f"runs/nothing at revision {revision}" if revision else "runs/nothing"
        assert str(caught.value).startswith(f"{where} is not a folder here and cannot be read from the Hub ({error}")
        assert f"{fix}, then run the same command again, or pre-train first" in str(caught.value)
    assert time.perf_counter() - start < 10, "transformers alone tries for two minutes"


@pytest.mark.parametrize("constant", NO_ANSWER)
def test_a_model_in_the_cache_of_the_hub_opens_without_a_network(tmp_path, monkeypatch, constant):
    for key, value in {"HF_HUB_CACHE": str(tmp_path), **constant}.items():
        monkeypatch.setattr(constants, key, value)
    commit, cached = "c0ffee" + "0" * 34, tmp_path / "models--me--mae"
    mae = build_mae(CONFIG, "sdpa")
    save_model(cached / "snapshots" / commit, mae, PretrainConfig(model=CONFIG), {})
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    start = time.perf_counter()
    for revision in (None, commit):
        saved = SavedModel("me/mae", revision=revision)
        assert saved.commit == commit
        assert saved.preparation()["image_mean"] == pytest.approx((0.4467, 0.4398, 0.4066))
        init = ClassifierConfig(init="me/mae", revision=revision, **SHAPE, intermediate_size=32)
        assert weights_digest(load_encoder(init, "sdpa")) == weights_digest(mae.vit)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("revision", ["c0ffee" + "0" * 34, None])
def test_weights_that_are_not_in_the_cache_are_searched_for_in_the_same_revision(tmp_path, monkeypatch, revision):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit, cached, asked = "c0ffee" + "0" * 34, tmp_path / "models--me--old", {}
    ViTConfig(**SHAPE).save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)

    def from_pretrained(name, **options):
        asked.update(options, name=name)
        return torch.nn.Linear(1, 1), {"mismatched_keys": [], "missing_keys": [], "unexpected_keys": []}

    SavedModel("me/old", revision=revision).load(from_pretrained)
    assert (asked["name"], asked["revision"]) == ("me/old", revision or "main")
