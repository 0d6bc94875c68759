"""Pictures of the test images: the same images for every network, and broken networks are named."""

import math

import numpy as np
import pytest
import torch
from report_pages import captions_of

from mae_hf.data.dataset import ImageSet
from mae_hf.figures import charts, sheets
from mae_hf.report import networks, pictures
from mae_hf.report.comparison import Comparison
from mae_hf.report.networks import Network, open_networks, open_test_images
from mae_hf.report.pictures import Pictures, draw_attention, draw_maps, draw_mistakes


@pytest.fixture
def images(comparison: Comparison) -> ImageSet:
    """The four test images."""
    return open_test_images(comparison.best["from scratch"])


@pytest.fixture
def opened(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> dict[str, Network]:
    """The networks; and without UMAP, which takes a minute to start."""
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    return open_networks(comparison)[0]


def test_mistakes_are_shown_with_what_they_are_and_what_they_were_taken_for(comparison, images, tmp_path, monkeypatch):
    drawn = {}
    real = sheets.mistakes_figure
    monkeypatch.setattr(sheets, "mistakes_figure", lambda them, title: drawn.update(them) or real(them, title))
    probabilities = {
        "MAE pre-trained": np.array([[0.9, 0.1], [0.4, 0.6], [0.875, 0.125], [0.1, 0.9]]),
        "from scratch": np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
    }
    for arm, run in comparison.best.items():
        object.__setattr__(run.test, "probabilities", probabilities[arm])
        object.__setattr__(run.test, "files", ["test/cat/20.png", None, "a/very-long-name-of-a-file_22.png", None])
    draw_mistakes(comparison, images, Pictures(tmp_path))
    pixels, texts = drawn["MAE pre-trained\nmae <b>, 50.0 % accuracy"]
    assert texts == [
        "true: dog\npredicted: cat\nprobability 0.875\n…-of-a-file_22.png",
        "true: cat\npredicted: dog\nprobability 0.600",
    ]
    assert [tuple(image[0, 0]) for image in pixels] == [(22, 44, 100), (21, 42, 100)]  # as in `image_folder`
    assert len(drawn["from scratch\nscratch, 100.0 % accuracy"][0]) == 0


def test_the_maps_are_of_the_same_images_by_every_network(opened, images, tmp_path, monkeypatch):
    drawn = {}

    def remember(points, labels, class_names, method, title):
        drawn.update(points=points, labels=labels, method=method)
        return real(points, labels, class_names, method, title)

    real = charts.map_figure
    monkeypatch.setattr(charts, "map_figure", remember)
    monkeypatch.setattr("mae_hf.evaluation.projection.tsne", lambda features, seed: features[:, :2])
    report = Pictures(tmp_path)
    draw_maps(opened, images, report)
    rows = np.random.default_rng(pictures.SEED).permutation(4)
    assert not report.notes and drawn["labels"].tolist() == images.labels[rows].tolist()
    for name, (title, points) in zip(
        (networks.PRETRAINED_ENCODER, networks.RANDOM_ENCODER, networks.SUPERVISED_ENCODER),
        drawn["points"].items(),
        strict=True,
    ):
        assert (title.startswith(name) and "trustworthiness 0." in title) or "trustworthiness 1." in title
        np.testing.assert_array_equal(points, opened[name].features(images, rows)[:, :2])


def test_an_installed_umap_is_drawn_too(comparison, opened, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: name == "umap")
    monkeypatch.setattr("mae_hf.evaluation.projection.umap", lambda features, seed: features[:, 2:4])
    report = Pictures(tmp_path)
    draw_maps(opened, images, report)
    assert sorted(path.name for path in tmp_path.glob("embedding*.png")) == ["embedding.png", "embedding_umap.png"]
    captions = captions_of(comparison, report)
    assert list(captions) == ["Features as a map (t-SNE)", "Features as a map (UMAP)"]
    assert captions["Features as a map (UMAP)"].startswith("The same test images, mapped by UMAP of the frozen")


def test_a_network_that_gives_no_numbers_is_named_and_left_out(opened, images, tmp_path):
    with torch.no_grad():
        opened[networks.PRETRAINED_ENCODER].encoder.layers[0].attention.q_proj.bias.fill_(math.nan)
    report = Pictures(tmp_path)
    draw_maps(opened, images, report)
    draw_attention(opened, images, report)
    assert report.trustworthiness.keys() == {networks.RANDOM_ENCODER, networks.SUPERVISED_ENCODER}
    assert list(report.captions) == ["embedding", "attention", "attention_heads"]
    assert report.notes[0].startswith("No map of MAE before fine-tuning: 32 of 32 values of features are not finite")
    assert report.notes[1].startswith("No attention of MAE before fine-tuning: the attention is not finite")


def test_nothing_is_drawn_of_no_network(images, tmp_path):
    report = Pictures(tmp_path)
    draw_maps({}, images, report)
    draw_attention({}, images, report)
    assert report == Pictures(tmp_path) and list(tmp_path.glob("*.png")) == []


def test_attention_is_that_of_an_image_of_each_class_for_each_network(opened, images, tmp_path, monkeypatch):
    calls = []
    real = sheets.attention_figure
    monkeypatch.setattr(sheets, "attention_figure", lambda *args: calls.append(args) or real(*args))
    draw_attention(opened, images, Pictures(tmp_path))
    (rows, means, _), (networks_of_heads, heads, _) = calls
    assert [name for name, _ in rows] == ["cat", "dog"]
    chosen = [int(image[0, 0, 0]) - 20 for _, image in rows]  # the colour tells the row
    assert [images.labels[row] for row in chosen] == [0, 1]
    names = (networks.PRETRAINED_ENCODER, networks.FINETUNED_ENCODER, networks.SUPERVISED_ENCODER)
    for name, found in zip(names, means.values(), strict=True):
        np.testing.assert_allclose(found, opened[name].attention(images, np.array(chosen)).mean(axis=1), rtol=1e-5)
    assert [" ".join(name.split()) for name, _ in networks_of_heads] == list(names)
    second = np.stack([opened[name].attention(images, np.array(chosen[:1]))[0, 1] for name in names])
    np.testing.assert_allclose(heads["head 2"], second, rtol=1e-5)
