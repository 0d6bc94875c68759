"""Features that are computed once, and probes of label sets against scikit-learn on the same features."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import ViTConfig, ViTModel

from mae_hf.config.data import DataConfig
from mae_hf.evaluation.few_labels import frozen
from mae_hf.evaluation.few_labels.frozen import (
    FrozenFeatures,
    load_features,
    measure_probe,
    random_encoder,
    shape_of,
)
from mae_hf.evaluation.few_labels.measurements import Measurements
from mae_hf.evaluation.few_labels.protocol import ProtocolImages, load_protocol_images
from mae_hf.models.io import weights_digest

DATA = DataConfig(source="digits", class_names=None)
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LINE = {"label_set": "fold-0", "fraction": None, "draw": 0, "arm": "model"}


def encoder(seed: int) -> ViTModel:
    torch.manual_seed(seed)
    return ViTModel(ViTConfig(**SHAPE, intermediate_size=32), add_pooling_layer=False).eval()


def test_features_are_kept_until_a_weight_an_image_or_the_precision_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = load_protocol_images(DATA, 16, None)
    path, calls = tmp_path / "features.npz", []
    extract = frozen.extract_features
    monkeypatch.setattr(frozen, "extract_features", lambda *words: calls.append(1) or extract(*words))

    def load(model: ViTModel, images: ProtocolImages, precision: str = "no") -> FrozenFeatures:
        AcceleratorState._reset_state()
        return load_features(path, Accelerator(cpu=True, mixed_precision=precision), model, images, DATA, 256)

    first = load(encoder(0), whole)
    assert len(calls) == 3
    assert first.train["cls"].shape == (300, 16) and first.test["mean"].shape == (497, 16)
    again = load(encoder(0), whole)
    assert len(calls) == 3
    assert (again.train["mean"] == first.train["mean"]).all() and (again.test["cls"] == first.test["cls"]).all()
    assert (load(encoder(1), whole).train["cls"] != first.train["cls"]).any() and len(calls) == 6
    half = load(encoder(1), whole, "bf16").train["cls"]
    assert len(calls) == 9 and (half != load(encoder(1), whole).train["cls"]).any() and len(calls) == 12
    load(encoder(1), dataclasses.replace(whole, train=whole.train[:1]))
    assert len(calls) == 14


def drawn() -> tuple[FrozenFeatures, np.ndarray]:
    """600 images of 3 classes: 200 train rows of a split, in mixed order, of which row 100 was left out, and test.

    And the labels of test.
    """
    features, labels = make_classification(600, 10, n_informative=5, n_classes=3, class_sep=1.0, random_state=0)
    rows = np.setdiff1d(np.random.default_rng(0).permutation(201), [100])
    by_pooling = [{"cls": part, "mean": part * np.arange(1, 11)} for part in (features[:200], features[200:])]
    return FrozenFeatures(by_pooling[0], rows, labels[:200], by_pooling[1]), labels[200:]


def test_a_probe_learns_from_the_rows_of_the_set_alone_and_is_scored_on_all_test_images(tmp_path: Path):
    features, test_labels = drawn()
    results = Measurements(tmp_path, test_labels, ("a", "b", "c"), None)
    rows = np.arange(0, 201, 2)  # among them 100, whose image is not there
    measure_probe(results, {**LINE, "method": "linear"}, features, rows)
    chosen = np.flatnonzero(features.rows % 2 == 0)
    for line in results.lines:
        x, test = features.train[line["pooling"]], features.test[line["pooling"]]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=line["settings"]["C"], max_iter=2000))
        model.fit(x[chosen], features.train_labels[chosen])
        assert line["accuracy"] == pytest.approx(model.score(test, test_labels), abs=1e-9)
        written = pq.read_table(tmp_path / "predictions" / f"fold-0-model-linear-{line['pooling']}.parquet").to_pydict()
        assert written["prediction"] == model.predict(test).tolist() and written["label"] == test_labels.tolist()
        np.testing.assert_allclose(written["probabilities"], model.predict_proba(test), atol=1e-5)
        assert line["num_labels"] == 100 == len(chosen)
        assert 0 < line["validation_accuracy"] < 1
    assert [line["pooling"] for line in results.lines] == ["cls", "mean"]


def test_a_pooling_that_is_measured_is_not_measured_again(tmp_path: Path):
    features, test_labels = drawn()
    results = Measurements(tmp_path, test_labels, ("a", "b", "c"), None)
    wrong = np.eye(3)[(test_labels + 1) % 3]
    results.add({**LINE, "method": "knn", "pooling": "cls"}, wrong)
    measure_probe(results, {**LINE, "method": "knn"}, features, np.arange(201))
    measure_probe(results, {**LINE, "method": "knn"}, features, np.arange(201))
    assert [(line["pooling"], line["accuracy"] > 0) for line in results.lines] == [("cls", False), ("mean", True)]


def test_the_random_encoder_is_the_same_network_with_other_weights_and_the_same_ones_each_time():
    model = encoder(0)
    first, again = (random_encoder(model, ("a", "b"), "eager") for _ in range(2))
    assert shape_of(first) == shape_of(model) == {**SHAPE, "intermediate_size": 32}
    assert weights_digest(first) == weights_digest(again) != weights_digest(model)
    assert not first.training
