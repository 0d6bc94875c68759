"""Features that are computed once, and probes of label sets against scikit-learn on the same features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import ViTConfig, ViTModel

from mae_hf.config import DataConfig
from mae_hf.data.images import load_labelled_images
from mae_hf.few_labels import frozen
from mae_hf.few_labels.frozen import FrozenFeatures, load_features, measure_probe, weights_digest
from mae_hf.few_labels.measurements import Results

DATA = DataConfig(source="digits", class_names=None)
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LINE = {"label_set": "fold-0", "fraction": None, "draw": 0, "arm": "model"}


def encoder(seed: int) -> ViTModel:
    torch.manual_seed(seed)
    return ViTModel(ViTConfig(**SHAPE, intermediate_size=32), add_pooling_layer=False).eval()


def test_features_are_kept_until_a_weight_or_an_image_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = load_labelled_images(DATA, 16)
    train, path, calls = [images["train"], images["validation"]], tmp_path / "features.npz", []
    extract = frozen.extract_features
    monkeypatch.setattr(frozen, "extract_features", lambda *words: calls.append(1) or extract(*words))

    def load(model: ViTModel, parts: list) -> FrozenFeatures:
        return load_features(path, Accelerator(cpu=True), model, parts, images["test"], DATA, 256)

    first = load(encoder(0), train)
    assert len(calls) == 3
    assert first.train["cls"].shape == (300, 16) and first.test["mean"].shape == (497, 16)
    again = load(encoder(0), train)
    assert len(calls) == 3
    assert (again.train["mean"] == first.train["mean"]).all() and (again.test["cls"] == first.test["cls"]).all()
    assert (load(encoder(1), train).train["cls"] != first.train["cls"]).any() and len(calls) == 6
    load(encoder(1), train[:1])
    assert len(calls) == 8


def test_the_digest_is_of_every_weight():
    model = encoder(0)
    before = weights_digest(model)
    assert before == weights_digest(encoder(0)) and len(before) == 16
    with torch.no_grad():
        model.layernorm.bias[3] += 1e-6
    assert weights_digest(model) != before


def drawn() -> FrozenFeatures:
    """600 images of 3 classes: 200 train rows of a split, in mixed order, of which row 100 was left out, and test."""
    features, labels = make_classification(600, 10, n_informative=5, n_classes=3, class_sep=1.0, random_state=0)
    rows = np.setdiff1d(np.random.default_rng(0).permutation(201), [100])
    by_pooling = [{"cls": part, "mean": part * np.arange(1, 11)} for part in (features[:200], features[200:])]
    return FrozenFeatures(by_pooling[0], rows, labels[:200], by_pooling[1], labels[200:])


def test_a_probe_learns_from_the_rows_of_the_set_alone_and_is_scored_on_all_test_images(tmp_path: Path):
    features, results = drawn(), Results(tmp_path / "results.jsonl")
    rows = np.arange(0, 201, 2)  # among them 100, whose image is not there
    measure_probe(results, {**LINE, "method": "linear"}, features, rows, ("a", "b", "c"))
    chosen = np.flatnonzero(features.rows % 2 == 0)
    for line in results.lines:
        x, test = features.train[line["pooling"]], features.test[line["pooling"]]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=line["settings"]["C"], max_iter=2000))
        model.fit(x[chosen], features.train_labels[chosen])
        assert line["accuracy"] == pytest.approx(model.score(test, features.test_labels), abs=1e-9)
        assert line["num_labels"] == 100 == len(chosen)
        assert 0 < line["validation_accuracy"] < 1
    assert [line["pooling"] for line in results.lines] == ["cls", "mean"]


def test_a_pooling_that_is_measured_is_not_measured_again(tmp_path: Path):
    features, results = drawn(), Results(tmp_path / "results.jsonl")
    results.add({**LINE, "method": "knn", "pooling": "cls", "accuracy": -1.0})
    measure_probe(results, {**LINE, "method": "knn"}, features, np.arange(201), ("a", "b", "c"))
    measure_probe(results, {**LINE, "method": "knn"}, features, np.arange(201), ("a", "b", "c"))
    assert [(line["pooling"], line["accuracy"] > 0) for line in results.lines] == [("cls", False), ("mean", True)]
