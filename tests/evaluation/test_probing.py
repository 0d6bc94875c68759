"""Probes on both poolings: numbers that the predictions give again, known ranks, and an encoder that is left alone."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from forks import run
from scipy.stats import entropy, ortho_group
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import ViTConfig, ViTModel

from mae_hf.config.data import DataConfig
from mae_hf.config.model import MAEConfig
from mae_hf.data.dataset import load_probe_images
from mae_hf.errors import ConfigError
from mae_hf.evaluation.inference import pixel_values_of
from mae_hf.evaluation.probes import STRENGTHS
from mae_hf.evaluation.probing import (
    best_probe,
    encoder_probe,
    participation_ratio,
    probe_features,
    rankme,
)
from mae_hf.models.mae import build_mae, export_encoder

ROLES = ("train", "validation", "test")
DATA = DataConfig(source="digits", class_names=None)


@pytest.fixture(scope="module")
def drawn() -> tuple[dict, dict]:
    """Features of both poolings, of different quality, and labels, by role."""
    made = {
        pooling: make_classification(300, 8, n_informative=5, n_classes=3, class_sep=sep, random_state=0)
        for pooling, sep in (("cls", 0.3), ("mean", 2.0))
    }
    part = {role: slice(100 * i, 100 * (i + 1)) for i, role in enumerate(ROLES)}
    # shuffle=True gives both poolings labels of their own order: sorted by class, they are the same images
    order = {pooling: np.argsort(labels, kind="stable")[:297] for pooling, (_, labels) in made.items()}
    mixed = np.random.default_rng(0).permutation(297)
    labels = {role: np.repeat(np.arange(3), 99)[mixed][part[role]] for role in ROLES}
    pooled = np.stack([made[p][0][order[p]][mixed] for p in ("cls", "mean")], axis=1)
    features = {role: pooled[part[role]] for role in ROLES}
    return features, labels


def images_of(labels: dict) -> dict:
    return {role: SimpleNamespace(labels=labels[role], class_names=("a", "b", "c")) for role in labels}


def test_every_number_can_be_computed_again_from_the_probabilities(drawn):
    features, labels = drawn
    seen = np.arange(len(labels["test"])) % 3 == 0
    metrics, probabilities = probe_features(["knn", "linear", "head"], features, images_of(labels), seen)
    names = {f"{probe}-{pooling}" for probe in ("knn", "linear", "head") for pooling in ("cls", "mean")}
    assert probabilities.keys() == names
    for name, by_role in probabilities.items():
        key, predictions = name.replace("-", "/"), by_role["test"].argmax(axis=1)
        assert metrics[f"{key}/accuracy"] == pytest.approx(accuracy_score(labels["test"], predictions))
        assert metrics[f"{key}/f1"] == pytest.approx(f1_score(labels["test"], predictions, average="macro"))
        unseen = labels["test"][~seen], predictions[~seen]
        assert metrics[f"{key}/unseen_accuracy"] == pytest.approx(accuracy_score(*unseen))
        assert metrics[f"{key}/unseen_f1"] == pytest.approx(f1_score(*unseen, average="macro"))
        expected = accuracy_score(labels["validation"], by_role["validation"].argmax(axis=1))
        assert metrics[f"{key}/validation_accuracy"] == pytest.approx(expected)
    assert metrics["linear/mean/accuracy"] > metrics["linear/cls/accuracy"] + 0.1
    assert (metrics["knn/cls/k"], metrics["knn/cls/temperature"]) == (20, 0.07)
    assert {"linear/cls/C", "head/mean/learning_rate"} <= metrics.keys()


def test_the_rank_is_that_of_the_training_images(drawn):
    features, labels = drawn
    changed = {role: values.copy() for role, values in features.items()}
    changed["train"][:, 1] = np.outer(np.arange(1, 101), np.ones(8))
    metrics, probabilities = probe_features(["rank"], changed, images_of(labels), None)
    assert probabilities == {}
    assert metrics["rank/mean/rankme"] == pytest.approx(1, rel=1e-4)
    assert metrics["rank/mean/participation_ratio"] == pytest.approx(1)
    assert metrics["rank/cls/rankme"] > 3


def test_the_online_probe_is_the_knn_of_the_encoder_so_far_and_leaves_training_alone():
    shape = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    model = build_mae(MAEConfig(**shape, intermediate_size=32, **decoder, decoder_intermediate_size=32), "sdpa").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train, validation = load_probe_images(DATA, 16, 100)
    accelerator = Accelerator(cpu=True)
    values, _ = encoder_probe(accelerator, export_encoder(model), train, validation, DATA, 32, ("knn", "rank"))
    assert accelerator._models == []  # nothing that a checkpoint would hold
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with torch.no_grad():
        voters, queries = (
            export_encoder(model)(pixel_values_of(part, np.arange(len(part)), DATA, torch.device("cpu")))[0].numpy()
            for part in (train, validation)
        )
    for pooling, pool in (("cls", lambda tokens: tokens[:, 0]), ("mean", lambda tokens: tokens[:, 1:].mean(axis=1))):
        weights = {"metric": "cosine", "weights": lambda distance: np.exp((1 - distance) / 0.07)}
        reference = KNeighborsClassifier(20, **weights).fit(pool(voters).astype("f8"), train.labels)
        expected = reference.score(pool(queries), validation.labels)
        assert values[f"probe/knn_{pooling}_accuracy"] == pytest.approx(expected, abs=1.01 / len(validation))
        assert 1 <= values[f"probe/rankme_{pooling}"] <= 16
    assert len(values) == 6


def test_the_linear_probe_of_an_encoder_is_scikit_learns_on_its_features():
    shape = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    encoder = ViTModel(ViTConfig(**shape, intermediate_size=32), add_pooling_layer=False).eval()
    train, validation = load_probe_images(DATA, 16, 100)
    values, head = encoder_probe(Accelerator(cpu=True), encoder, train, validation, DATA, 32, ["linear"])
    names = {f"probe/linear_{pooling}_{key}" for pooling in ("cls", "mean") for key in ("accuracy", "f1")}
    assert values.keys() == names
    with torch.no_grad():
        tokens = (
            encoder(pixel_values_of(part, np.arange(len(part)), DATA, torch.device("cpu")))[0].numpy()
            for part in (train, validation)
        )
        learnt, left_out = (each[:, 0] for each in tokens)
    fitted = {c: make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)) for c in STRENGTHS}
    scores = [model.fit(learnt, train.labels).score(left_out, validation.labels) for model in fitted.values()]
    assert values["probe/linear_cls_accuracy"] in [pytest.approx(score) for score in scores]
    logits = left_out @ head.weight.T + head.bias
    assert np.mean(logits.argmax(axis=1) == validation.labels) == pytest.approx(values["probe/linear_cls_accuracy"])
    assert best_probe(values, "linear")[0] == max(values[f"probe/linear_{p}_accuracy"] for p in ("cls", "mean"))
    assert best_probe(values, "knn") is None


def test_an_encoder_with_broken_features_is_not_probed_and_training_goes_on(monkeypatch):
    shape = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    model = build_mae(MAEConfig(**shape, intermediate_size=32, **decoder, decoder_intermediate_size=32), "sdpa").eval()
    train, validation, accelerator = *load_probe_images(DATA, 16, 20), Accelerator(cpu=True)
    for value, problem in ((float("nan"), "values of train_features are not finite"), (0.0, "are equal")):
        torch.nn.init.constant_(model.vit.layernorm.weight, value)
        with pytest.warns(UserWarning, match=f"this encoder is not probed: .*{problem}"):
            found = encoder_probe(accelerator, export_encoder(model), train, validation, DATA, 32, ("knn", "rank"))
        assert found == ({}, None)


PROBED_BY_TWO = """
import json, sys
import torch
from accelerate import Accelerator
from transformers import ViTConfig, ViTModel
from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import load_probe_images
from mae_hf.evaluation import probing

accelerator, data, fitted = Accelerator(cpu=True), DataConfig(source="digits", class_names=None), []
torch.manual_seed(0)
shape = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
encoder = ViTModel(ViTConfig(**shape, intermediate_size=32), add_pooling_layer=False).eval()
linear = probing.CLASSIFIERS["linear"]
probing.CLASSIFIERS["linear"] = lambda *args: fitted.append(1) or linear(*args)
found, head = probing.encoder_probe(accelerator, encoder, *load_probe_images(data, 16, 40), data, 16, ["linear"])
with open(sys.argv[1] + str(accelerator.process_index), "w") as file:
    json.dump([len(fitted), found, head.weight.tolist()], file)
"""


def test_the_main_process_alone_fits_the_probes_and_all_get_the_result(tmp_path):
    (tmp_path / "script.py").write_text(PROBED_BY_TWO)
    done = run(tmp_path / "script.py", tmp_path / "rank", processes=2)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2))
    assert (first[0], second[0]) == (2, 0) and first[1:] == second[1:] and len(first[1]) == 4


def features_with(singular_values: list[float], n: int = 60, seed: int = 0) -> np.ndarray:
    """(n, D) of mean 0 with exactly these singular values, in random directions."""
    directions = len(singular_values)
    generator = np.random.default_rng(seed)
    raw = generator.normal(size=(n, directions))
    left, _ = np.linalg.qr(raw - raw.mean(axis=0))
    return left * np.array(singular_values) @ ortho_group.rvs(directions, random_state=seed).T


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_features_that_use_some_directions_alike_have_that_rank(rank):
    features = features_with([2.0] * rank + [0.0] * (10 - rank) if rank > 1 else [2.0] + [0.0] * 9)
    assert rankme(features) == pytest.approx(rank, rel=1e-4)
    assert participation_ratio(features) == pytest.approx(rank, rel=1e-6)


def test_rankme_is_the_exponential_of_scipys_entropy_of_the_singular_values():
    values = [5.0, 3.0, 1.0, 0.5, 0.1]
    assert rankme(features_with(values)) == pytest.approx(np.exp(entropy(values)), rel=1e-5)


def test_the_participation_ratio_is_that_of_the_eigenvalues_of_the_covariance():
    features = features_with([5.0, 3.0, 1.0, 0.5, 0.1]) + 7
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T))
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert participation_ratio(features) == pytest.approx(expected)


def test_rankme_is_not_centred_so_that_one_common_direction_counts():
    features = np.array([1e6, 2e6, 3e6]) + features_with([1.0, 1.0, 1.0])
    assert rankme(features) == pytest.approx(1, rel=1e-4)
    assert participation_ratio(features) == pytest.approx(3)
    assert participation_ratio(features[:1]) == 0


@pytest.mark.parametrize("measure", [rankme, participation_ratio])
def test_broken_features_have_no_rank(measure):
    with pytest.raises(ConfigError, match="1 of 6 values of features are not finite"):
        measure(np.array([[1.0, 2, 3], [4, np.nan, 6]]))
    with pytest.raises(ConfigError, match="features of all images are equal"):
        measure(np.zeros((4, 3)))
