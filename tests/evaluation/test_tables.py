"""Features of every image in one file, computed once although the command was stopped, and drawn with neighbours."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from sklearn.neighbors import NearestNeighbors
from transformers import ViTConfig, ViTModel

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import open_stores
from mae_hf.data.dataset import ImageSet
from mae_hf.data.sources import load_splits
from mae_hf.errors import ConfigError
from mae_hf.evaluation import tables
from mae_hf.evaluation.tables import draw_map, draw_neighbours, write_features
from mae_hf.figures import sheets

DATA = DataConfig(source="digits", image_mean=(0.3, 0.4, 0.5), image_std=(0.2, 0.3, 0.4))
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """The 300 train and the 497 test digits."""
    splits = load_splits(DATA, "digits")
    stores = open_stores([splits["train"], splits["test"]], 16, DATA)
    return ImageSet([(store, np.arange(len(store.rows))) for store in stores])


def encoder(seed: int = 0) -> ViTModel:
    torch.manual_seed(seed)
    return ViTModel(ViTConfig(**SHAPE, intermediate_size=32, initializer_range=0.5), add_pooling_layer=False).eval()


def write(model: torch.nn.Module, images: ImageSet, output: Path) -> None:
    write_features(Accelerator(cpu=True), model, images, DATA, 64, output)


@pytest.fixture(scope="module")
def written(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("features") / "digits.parquet"
    write(encoder(), images, output)
    return output


def test_the_file_has_the_names_and_features_of_every_image(written: Path, images: ImageSet):
    table = pq.read_table(written)
    assert table.column_names == ["file", "split", "row", "label", "cls", "mean"]
    columns = table.to_pydict()
    assert columns["split"] == ["train"] * 300 + ["test"] * 497 and columns["row"] == [*range(300), *range(497)]
    assert columns["file"] == [None] * 797 and columns["label"] == [str(label) for label in images.labels]
    pixels = (images.batch(np.arange(797)).numpy() / 255 - DATA.image_mean) / DATA.image_std
    with torch.no_grad():
        tokens = encoder()(torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()).last_hidden_state.numpy()
    np.testing.assert_allclose(np.array(columns["cls"], np.float32), tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(np.array(columns["mean"], np.float32), tokens[:, 1:].mean(axis=1), atol=1e-5)
    assert [file.name for file in written.parent.iterdir()] == ["digits.parquet"]


class Stopped(torch.nn.Module):
    """An encoder that counts its batches, and fails after a number of them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.encoder, self.most, self.seen = encoder(), most, 0

    def forward(self, pixel_values: torch.Tensor) -> object:
        if self.seen == self.most:
            raise KeyboardInterrupt
        self.seen += 1
        return self.encoder(pixel_values)


def test_a_stopped_command_resumes_with_the_first_missing_part(written, images, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PER_PART", 200)  # 4 parts of 4 batches, the last of 197
    output = tmp_path / "digits.parquet"
    first, second = Stopped(7), Stopped(100)
    with pytest.raises(KeyboardInterrupt):
        write(first, images, output)
    assert not output.exists() and len(list((tmp_path / "digits.parquet.parts").iterdir())) == 1
    write(second, images, output)
    assert second.seen == 12  # 3 of the 4 parts
    values, expected = (pq.read_table(path).to_pydict() for path in (output, written))
    assert values.keys() == expected.keys()
    for name in ("cls", "mean"):  # batches of another size round differently
        np.testing.assert_allclose(values[name], expected[name], atol=1e-5)
    assert [values[name] for name in ("file", "split", "row", "label")] == [
        expected[name] for name in ("file", "split", "row", "label")
    ]
    again = Stopped(0)
    write(again, images, output)
    assert list(tmp_path.iterdir()) == [output]


def test_features_of_other_weights_or_images_are_never_joined_or_replaced(images, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PER_PART", 200)
    output = tmp_path / "digits.parquet"
    with pytest.raises(KeyboardInterrupt):
        write(Stopped(7), images, output)
    other = Stopped(100)
    other.encoder = encoder(seed=1)
    with pytest.raises(ConfigError, match=r"digits\.parquet\.parts holds something else than .*: remove it, or"):
        write(other, images, output)
    write(Stopped(100), images, output)
    part = ImageSet([(images.parts[0][0], np.arange(10))])
    for model, chosen in ((other, images), (Stopped(100), part)):
        with pytest.raises(ConfigError, match=r"digits\.parquet holds something else than the features of"):
            write(model, chosen, output)
    output.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"digits\.parquet holds something else"):
        write(Stopped(100), images, output)
    assert output.read_bytes() == b"mine"


def test_broken_weights_are_refused(images, tmp_path):
    broken = encoder()
    broken.layernorm.weight.data.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"features are not finite: the weights are broken"):
        write(broken, images, tmp_path / "digits.parquet")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_neighbours_are_those_of_scikit_learn(written, images, monkeypatch, pooling):
    drawn = {}
    real = sheets.neighbours_figure
    monkeypatch.setattr(sheets, "neighbours_figure", lambda *them: drawn.update(them=them) or real(*them))
    draw_neighbours(written, images, pooling, 5, "t")
    pixels, texts, _ = drawn["them"]
    features = np.array(pq.read_table(written)[pooling].to_pylist())
    queries = np.linspace(0, 796, 8).round().astype(int)
    distances, order = NearestNeighbors(n_neighbors=6, metric="cosine").fit(features).kneighbors(features[queries])
    for row, query in enumerate(queries):
        assert order[row, 0] == query
        for column, image in enumerate(order[row]):
            assert np.array_equal(pixels[row, column], images.batch([image])[0].numpy())
            name = f"train {image}" if image < 300 else f"test {image - 300}"
            value = f"\n{1 - distances[row, column]:.3f}" if column else ""
            assert texts[row][column] == name + value


def test_a_set_smaller_than_the_sheet_is_drawn(images, tmp_path):
    few = ImageSet([(images.parts[0][0], np.arange(3))])
    write(encoder(), few, tmp_path / "few.parquet")
    figure = draw_neighbours(tmp_path / "few.parquet", few, "cls", 8, "t")
    assert len(figure.axes[0].images) == 3 * 3  # 3 queries, each with 2 neighbours
    two = ImageSet([(images.parts[0][0], np.arange(2))])
    write(encoder(), two, tmp_path / "two.parquet")
    with pytest.raises(ConfigError, match="a map needs at least 3 images"):
        draw_map(tmp_path / "two.parquet", two, "cls", "t")


def test_the_map_shows_the_images_at_the_places_of_their_features(written, images, monkeypatch):
    drawn = {}
    real = sheets.thumbnails_figure
    monkeypatch.setattr(sheets, "thumbnails_figure", lambda *them: drawn.update(them=them) or real(*them))
    monkeypatch.setattr("mae_hf.evaluation.probing.tsne", lambda features, seed: features[:, :2])
    draw_map(written, images, "mean", "t")
    maps, pixels, labels, names = drawn["them"]
    points = maps["t"]
    assert np.array_equal(points, np.array(pq.read_table(written)["mean"].to_pylist(), np.float32)[:, :2])
    assert np.array_equal(pixels, images.batch(np.arange(797)).numpy())
    assert np.array_equal(labels, images.labels) and names == list("0123456789")


def test_the_metadata_says_which_weights_made_the_features(written: Path):
    inputs = json.loads(pq.read_schema(written).metadata[b"inputs"])
    assert set(inputs) == {"weights", "images", "names", "preparation", "precision"}
