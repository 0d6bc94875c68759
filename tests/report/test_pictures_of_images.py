"""Pictures of the test images: the same images for every network, and broken networks are named."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from report_pages import captions_of
from run_folders import SHAPE, write_run
from transformers import ViTConfig, ViTForImageClassification

from mae_hf.data.dataset import ImageSet
from mae_hf.figures import charts, sheets
from mae_hf.report import networks, pictures
from mae_hf.report.comparison import Comparison, compare_arms
from mae_hf.report.networks import Network, open_networks, open_test_images
from mae_hf.report.pictures import Pictures, draw_attention, draw_maps, draw_mistakes


@pytest.fixture
def images(comparison: Comparison) -> dict[str, ImageSet]:
    """The four test images of each arm."""
    return {arm: open_test_images(run) for arm, run in comparison.best.items()}


@pytest.fixture
def opened(comparison: Comparison, images: dict[str, ImageSet], monkeypatch: pytest.MonkeyPatch) -> dict[str, Network]:
    """The networks; and without UMAP, which takes a minute to start."""
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    return open_networks(comparison, images)[0]


def test_mistakes_are_shown_with_what_they_are_and_what_they_were_taken_for(comparison, images, tmp_path, monkeypatch):
    drawn = {}
    real = sheets.mistakes_figure
    monkeypatch.setattr(sheets, "mistakes_figure", lambda them: drawn.update(them) or real(them))
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
        "true: dog\npredicted: cat\nprobability 0.875\n…me-of-a-file_22.png",
        "true: cat\npredicted: dog\nprobability 0.600",
    ]
    assert [tuple(image[0, 0]) for image in pixels] == [(22, 44, 100), (21, 42, 100)]  # as in `image_folder`
    assert len(drawn["from scratch\nscratch, 100.0 % accuracy"][0]) == 0


def test_the_maps_are_of_the_same_images_by_every_network(opened, images, tmp_path, monkeypatch):
    labels_of_images = images["from scratch"].labels
    drawn = {}

    def remember(points, labels, class_names, method):
        drawn.update(points=points, labels=labels, method=method)
        return real(points, labels, class_names, method)

    real = charts.map_figure
    monkeypatch.setattr(charts, "map_figure", remember)
    monkeypatch.setattr("mae_hf.evaluation.probing.tsne", lambda features, seed: features[:, :2])
    report = Pictures(tmp_path)
    draw_maps(opened, report)
    rows = np.random.default_rng(pictures.SEED).permutation(4)
    assert not report.notes and drawn["labels"].tolist() == labels_of_images[rows].tolist()
    for name, (title, points) in zip(
        (networks.PRETRAINED_ENCODER, networks.RANDOM_ENCODER, networks.SUPERVISED_ENCODER),
        drawn["points"].items(),
        strict=True,
    ):
        assert title.startswith(name.split()[0]) and title.endswith(
            f"\nkNN accuracy {100 * report.knn_accuracy[name]:.1f} %"
        )
        np.testing.assert_array_equal(points, opened[name](list(images["from scratch"].batch(rows).numpy()))[:, :2])


def test_an_installed_umap_is_drawn_too(comparison, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: name == "umap")
    monkeypatch.setattr("mae_hf.evaluation.probing.umap", lambda features, seed: features[:, 2:4])
    report = Pictures(tmp_path)
    draw_maps(opened, report)
    assert sorted(path.name for path in tmp_path.glob("embedding*.png")) == ["embedding.png", "embedding_umap.png"]
    captions = captions_of(comparison, report)
    assert list(captions) == ["Features as a map (t-SNE)", "Features as a map (UMAP)"]
    assert captions["Features as a map (UMAP)"].startswith("The same 4 test images in every map, by UMAP of the CLS")


def test_a_network_that_gives_no_numbers_is_named_and_left_out(opened, tmp_path):
    with torch.no_grad():
        opened[networks.PRETRAINED_ENCODER].model.layers[0].attention.q_proj.bias.fill_(math.nan)
    report = Pictures(tmp_path)
    draw_maps(opened, report)
    draw_attention(opened, report)
    assert report.knn_accuracy.keys() == {networks.RANDOM_ENCODER, networks.SUPERVISED_ENCODER}
    assert list(report.captions) == ["embedding", "attention", "attention_heads"]
    assert report.notes[0].startswith("No map of MAE before fine-tuning: 32 of 32 values of features are not finite")
    assert report.notes[1].startswith("No attention of MAE before fine-tuning: the attention is not finite")


def test_nothing_is_drawn_of_no_network(tmp_path):
    report = Pictures(tmp_path)
    draw_maps({}, report)
    draw_attention({}, report)
    assert report == Pictures(tmp_path) and list(tmp_path.glob("*.png")) == []


def test_attention_is_that_of_an_image_of_each_class_for_each_network(opened, images, tmp_path, monkeypatch):
    calls = []
    real = sheets.attention_figure
    monkeypatch.setattr(sheets, "attention_figure", lambda *args: calls.append(args) or real(*args))
    draw_attention(opened, Pictures(tmp_path))
    (rows, columns), (of_networks, heads) = calls
    assert [name for name, _ in rows] == ["cat", "dog"]
    chosen = np.array([int(panels[0][0, 0, 0]) - 20 for _, panels in rows])  # the colour tells the row
    assert [images["from scratch"].labels[row] for row in chosen] == [0, 1]
    names = (networks.PRETRAINED_ENCODER, networks.FINETUNED_ENCODER, networks.SUPERVISED_ENCODER)
    assert [" ".join(name.split()) for name in columns] == ["image", *names]
    for number, name in enumerate(names, 1):
        found = np.stack([panels[number] for _, panels in rows])
        np.testing.assert_allclose(found, opened[name].attention(chosen).mean(axis=1), rtol=1e-5)
    assert [" ".join(name.split()) for name, _ in of_networks] == list(names) and heads[2] == "head 2"
    for name, (_, panels) in zip(names, of_networks, strict=True):
        np.testing.assert_allclose(panels[2], opened[name].attention(chosen[:1])[0, 1], rtol=1e-5)


def test_each_network_sees_and_shows_the_images_as_it_prepares_them(tmp_path, monkeypatch):
    """Of wide images, one network sees the centre, the other all of it, squashed; their patches differ, too."""
    data = tmp_path / "wide"
    for number, name in enumerate([*(f"train/{c}" for c in "abababab"), "test/a", "test/b"]):
        (data / name).mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((12, 36, 3), np.uint8)
        pixels[:, :12], pixels[:, 24:] = 250 - number, 250 - number  # the centre is black
        Image.fromarray(pixels).save(data / name / f"{number}.png")
    runs = []
    for resize, patch_size in (("crop", 6), ("squash", 4)):
        run = write_run(
            tmp_path / resize, resize, (True, False), labels=(0, 1), class_names=("a", "b"), source=str(data)
        )
        config = (run / "config.yaml").read_text().replace("resize: crop", f"resize: {resize}")
        (run / "config.yaml").write_text(config.replace("patch_size: 6", f"patch_size: {patch_size}"))
        shape = SHAPE | {"patch_size": patch_size, "intermediate_size": 16, "id2label": {0: "a", 1: "b"}}
        ViTForImageClassification(ViTConfig(**shape)).save_pretrained(run / "model")
        (run / "run.json").write_text(json.dumps({"data_fingerprint": resize}))
        runs.append(run)
    comparison = compare_arms({"crop": runs[:1], "squash": runs[1:]})
    images = {arm: open_test_images(run) for arm, run in comparison.best.items()}
    opened, missing = open_networks(comparison, images)
    assert not missing
    brightness = {name: network.images.batch([0]).float().mean() for name, network in opened.items()}
    assert brightness["crop"] == 0 and brightness["squash"] > 150
    calls = []
    real = sheets.attention_figure
    monkeypatch.setattr(sheets, "attention_figure", lambda *args: calls.append(args) or real(*args))
    draw_attention(opened, Pictures(tmp_path))
    (rows, columns), (of_networks, _) = calls
    assert columns == ("image", "crop", "image", "squash")
    for _, panels in [rows[0], ("", [panel for _, row in of_networks for panel in row[:2]])]:
        assert panels[0].max() == 0 and panels[2].mean() > 150 and [panels[i].shape for i in (1, 3)] == [(2, 2), (3, 3)]
