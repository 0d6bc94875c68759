"""Probes against loops written from the papers, in numpy, and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mae_hf.errors import ConfigError
from mae_hf.evaluation import probes
from mae_hf.evaluation.probes import Labelled, head_probe, knn_probe, linear_probe


def blobs(seed: int = 0, n: int = 450) -> list[Labelled]:
    """Noisy features of 3 classes in three thirds: train, validation and test."""
    features, labels = make_classification(n, 12, n_informative=4, n_classes=3, class_sep=0.7, random_state=seed)
    thirds = [slice(i * n // 3, (i + 1) * n // 3) for i in range(3)]
    return [Labelled(features[part], labels[part]) for part in thirds]


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


def votes_from_the_paper(train: Labelled, features, num_classes, k, temperature):
    """Wu et al. 2018, section 3.4: each of the k most similar votes with exp(s / tau); parts of all votes."""
    shares = []
    for query in features:
        s = [query @ x / (np.linalg.norm(query) * np.linalg.norm(x)) for x in train.features]
        votes = [0.0] * num_classes
        for i in sorted(range(len(s)), key=lambda i: -s[i])[:k]:
            votes[train.labels[i]] += np.exp(s[i] / temperature)
        shares.append([vote / sum(votes) for vote in votes])
    return np.array(shares)


@pytest.fixture
def vote(monkeypatch: pytest.MonkeyPatch):
    def vote(train: Labelled, features: np.ndarray, num_classes: int, k: int = 20, temperature: float = 0.07):
        """Return the probabilities of the probe with other numbers than DINO's."""
        monkeypatch.setattr(probes, "NUM_NEIGHBOURS", k)
        monkeypatch.setattr(probes, "TEMPERATURE", temperature)
        return knn_probe(train, features, num_classes).probabilities

    return vote


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (7, 0.02)])
def test_knn_votes_as_in_the_paper(vote, k, temperature):
    train, _, test = blobs()
    expected = votes_from_the_paper(train, test.features, 3, k, temperature)
    np.testing.assert_allclose(vote(train, test.features, 3, k, temperature), expected, atol=1e-6)


def test_knn_votes_like_sklearns_weighted_neighbours():
    train, _, test = blobs(4)
    by_similarity = {"metric": "cosine", "weights": lambda distance: np.exp((1 - distance) / 0.07)}
    reference = KNeighborsClassifier(20, **by_similarity).fit(*train)
    expected = reference.predict_proba(test.features)
    np.testing.assert_allclose(knn_probe(train, test.features, 3).probabilities, expected, atol=1e-6)


def test_knn_with_one_neighbour_equals_sklearn_in_float32(vote):
    train, _, test = blobs(1)
    reference = KNeighborsClassifier(1, metric="cosine").fit(*train)
    got = vote(Labelled(train.features.astype("f4"), train.labels), test.features.astype("f4"), 3, k=1)
    assert (got.argmax(axis=1) == reference.predict(test.features)).all()


def test_knn_classifies_more_images_than_a_block_holds(vote):
    labels = np.arange(2500) % 4
    shares = vote(Labelled(np.eye(4), np.arange(4)), 3 * np.eye(4)[labels], 4, k=1)
    assert accuracy(shares, labels) == 1.0


def test_knn_asks_all_training_images_when_there_are_fewer_than_k_and_says_so():
    train = Labelled(np.array([[1.0, 0], [0, 1], [0.1, 1]]), np.array([0, 1, 1]))
    probe = knn_probe(train, train.features, 2)
    assert accuracy(probe.probabilities, train.labels) == 1.0
    assert probe.settings == {"k": 3, "temperature": 0.07}


def test_knn_at_a_low_temperature_does_not_overflow(vote):
    train, _, test = blobs()
    one = vote(train, test.features, 3, k=1)
    np.testing.assert_allclose(vote(train, test.features, 3, temperature=1e-6), one, atol=1e-6)


def test_a_class_without_training_images_gets_no_vote_and_no_probability():
    train, _, test = blobs()
    some = Labelled(train.features[train.labels != 1], train.labels[train.labels != 1])
    for probe in (knn_probe, linear_probe):
        probabilities = probe(some, test.features, 4).probabilities
        assert probabilities.shape == (150, 4)
        assert (probabilities[:, [1, 3]] == 0).all()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_the_log_loss_of_cross_validation_chooses_the_strength_and_all_labels_are_learnt_from():
    train, _, test = blobs(0)
    parts = StratifiedKFold(5, shuffle=True, random_state=0)
    losses, accuracies = {}, {}
    for strength in probes.STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        of_truth, right = [], []
        for seen, left_out in parts.split(*train):
            model.fit(train.features[seen], train.labels[seen])
            held_out = model.predict_proba(train.features[left_out])
            of_truth += held_out[np.arange(len(left_out)), train.labels[left_out]].tolist()
            right += (held_out.argmax(axis=1) == train.labels[left_out]).tolist()
        losses[strength], accuracies[strength] = -np.log(of_truth).mean(), np.mean(right)
    best = min(losses, key=losses.__getitem__)
    assert best != max(accuracies, key=accuracies.__getitem__)  # the two would not choose alike
    probe = linear_probe(train, test.features, 3)
    assert probe.settings == {"C": best}
    assert probe.cross_validated_accuracy == pytest.approx(accuracies[best])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=best, max_iter=2000)).fit(*train)
    np.testing.assert_allclose(probe.probabilities, model.predict_proba(test.features), atol=1e-6)


def test_with_one_label_of_a_class_nothing_can_be_chosen_and_the_strength_is_fixed():
    train, _, test = blobs()
    few = np.concatenate([np.flatnonzero(train.labels == c)[: c + 1] for c in range(3)])
    probe = linear_probe(Labelled(train.features[few], train.labels[few]), test.features, 3)
    assert probe.settings == {"C": 1.0}
    assert probe.cross_validated_accuracy is None
    two = np.concatenate([np.flatnonzero(train.labels == c)[:2] for c in range(3)])
    assert linear_probe(Labelled(train.features[two], train.labels[two]), test.features, 3).cross_validated_accuracy


def test_the_linear_probe_does_not_depend_on_the_scale_of_the_features():
    parts = blobs(3)
    scaled = [Labelled(part.features * np.logspace(-3, 3, 12) + 5, part.labels) for part in parts]
    first, second = (linear_probe(train, test.features, 3) for train, _, test in (parts, scaled))
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=0.01)
    assert first.settings == second.settings


@pytest.mark.parametrize("missing", [None, 0, 2])
def test_the_linear_probe_is_also_one_linear_layer(missing):
    train, _, test = blobs(5)
    kept = train.labels != missing  # of two classes, scikit-learn keeps only one logit
    some = Labelled(train.features[kept] * np.logspace(-3, 3, 12) + 5, train.labels[kept])
    others = test.features * np.logspace(-3, 3, 12) + 5
    probe = linear_probe(some, others, 3)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=probe.settings["C"], max_iter=2000)).fit(*some)
    got = softmax(others @ probe.head.weight.T + probe.head.bias)
    np.testing.assert_allclose(got[:, model.classes_], model.predict_proba(others), atol=1e-6)


def test_labels_of_one_class_are_refused():
    train, _, test = blobs()
    for probe in (linear_probe, head_probe):
        with pytest.raises(ConfigError, match="one class"):
            probe(Labelled(train.features, np.zeros(150, int)), test.features, 3)


def test_features_of_an_encoder_that_tells_no_images_apart_are_refused():
    train, _, test = blobs()
    same = np.tile(test.features[:1], (150, 1))
    for probe in (knn_probe, linear_probe, head_probe):
        with pytest.raises(ConfigError, match="features of all images are equal: the encoder's weights are broken"):
            probe(train, same, 3)
        assert probe(train, same[:1], 3).probabilities.shape == (1, 3)  # one image equals itself


def test_features_that_are_not_finite_are_counted():
    train, _, test = blobs()
    test.features[0, :2] = np.nan, np.inf
    with pytest.raises(ConfigError, match=r"2 of 1800 values of features are not finite: .* different one"):
        linear_probe(train, test.features, 3)
    with pytest.raises(ConfigError, match="2 of 1800 values of features are not finite"):
        knn_probe(train, test.features, 3)


def clearer_blobs(n: int, seed: int = 0) -> list[Labelled]:
    """Features of 3 classes with more to learn from, in three thirds: train, validation and test."""
    options = {"n_informative": 6, "n_classes": 3, "class_sep": 0.7, "random_state": seed}
    features, labels = make_classification(3 * n, 12, **options)
    return [Labelled(features[i * n : (i + 1) * n], labels[i * n : (i + 1) * n]) for i in range(3)]


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def head_from_the_paper(train: Labelled, features, peak: float):
    """Appendix A.1, one batch per epoch: BatchNorm without affine, 10 of 90 epochs warm-up, cosine, momentum 0.9."""
    x, one_hot = train.features, np.eye(3)[train.labels]
    mean, var = x.mean(axis=0), x.var(axis=0)
    generator = torch.Generator().manual_seed(0)
    w = torch.nn.init.trunc_normal_(torch.empty(3, x.shape[1]), std=0.01, generator=generator).numpy().T
    b, moving_mean, moving_var, velocity = np.zeros(3), np.zeros(x.shape[1]), np.ones(x.shape[1]), [0.0, 0.0]
    for epoch in range(90):
        rate = peak * (epoch / 10 if epoch < 10 else 0.5 * (1 + np.cos(np.pi * (epoch - 10) / 80)))
        z = (x - mean) / np.sqrt(var + 1e-6)
        error = (softmax(z @ w + b) - one_hot) / len(x)
        velocity = [0.9 * velocity[0] + z.T @ error, 0.9 * velocity[1] + error.sum(axis=0)]
        w, b = w - rate * velocity[0], b - rate * velocity[1]
        moving_mean = 0.9 * moving_mean + 0.1 * mean
        moving_var = 0.9 * moving_var + 0.1 * var * len(x) / (len(x) - 1)
    return softmax((features - moving_mean) / np.sqrt(moving_var + 1e-6) @ w + b)


def test_the_head_is_trained_as_in_the_paper(monkeypatch):
    monkeypatch.setattr(probes, "LEARNING_RATES", (0.1,))
    train, _, test = clearer_blobs(200)
    probe = head_probe(train, test.features, 3)
    expected = head_from_the_paper(train, test.features, 0.1)
    np.testing.assert_allclose(probe.probabilities, expected, atol=2e-4)
    assert probe.probabilities.std(axis=0).min() > 0.1  # it has learnt something


def test_the_log_loss_of_cross_validation_chooses_the_learning_rate_of_the_head(monkeypatch):
    monkeypatch.setattr(probes, "LEARNING_RATES", (0.001, 0.1))
    train, _, test = clearer_blobs(120, seed=3)
    losses, accuracies = {}, {}
    for rate in probes.LEARNING_RATES:
        of_truth, right = [], []
        for seen, left_out in StratifiedKFold(5, shuffle=True, random_state=0).split(*train):
            known = Labelled(train.features[seen], train.labels[seen])
            held_out = head_from_the_paper(known, train.features[left_out], rate)
            of_truth += held_out[np.arange(len(left_out)), train.labels[left_out]].tolist()
            right += (held_out.argmax(axis=1) == train.labels[left_out]).tolist()
        losses[rate], accuracies[rate] = -np.log(of_truth).mean(), np.mean(right)
    best = min(losses, key=losses.__getitem__)
    probe = head_probe(train, test.features, 3)
    assert probe.settings == {"learning_rate": best, "epochs": 90}
    assert probe.cross_validated_accuracy == pytest.approx(accuracies[best])
    np.testing.assert_allclose(probe.probabilities, head_from_the_paper(train, test.features, best), atol=2e-4)


def test_with_many_batches_the_head_is_about_as_good_as_sklearns_logistic_regression():
    train, _, test = clearer_blobs(700, seed=1)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(*train)
    predictions = head_probe(train, test.features, 3).probabilities.argmax(axis=1)
    assert (predictions == test.labels).mean() == pytest.approx(model.score(*test), abs=0.03)


def test_the_head_does_not_depend_on_the_scale_of_the_features():
    parts = clearer_blobs(100, seed=2)
    scaled = [Labelled(part.features * np.logspace(-1, 3, 12) + 5, part.labels) for part in parts]
    first, second = (head_probe(train, test.features, 3) for train, _, test in (parts, scaled))
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=0.02)


def test_the_same_seed_gives_the_same_head_whatever_was_drawn_before():
    train, _, test = clearer_blobs(300)
    first = head_probe(train, test.features, 3, seed=1)
    torch.rand(7)
    second = head_probe(train, test.features, 3, seed=1)
    other = head_probe(train, test.features, 3, seed=2)
    assert (first.probabilities == second.probabilities).all()
    assert (first.probabilities != other.probabilities).any()


def test_features_that_are_not_finite_are_counted_for_the_head():
    train, _, test = clearer_blobs(20)
    train.features[3, 4] = np.nan
    with pytest.raises(ConfigError, match="1 of 240 values of train_features are not finite"):
        head_probe(train, test.features, 3)
