"""predictions.parquet holds what was predicted, image by image."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from mae_hf.training.predictions import read_predictions, write_predictions

NAMES = ["a.png", None, "ä\n.png", "b/c.png", ""]


def images_of(labels: list[int], names: list[str | None]) -> SimpleNamespace:
    """What is asked of an `ImageSet`."""
    return SimpleNamespace(labels=np.array(labels), file_names=lambda: names)


@pytest.mark.parametrize("seen", [None, np.array([True, False, False, True, False])])
def test_predictions_come_back_as_they_were_written(tmp_path: Path, seen: np.ndarray | None):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), size=5).astype(np.float32)
    images = images_of([2, 0, 1, 1, 0], NAMES)
    write_predictions(tmp_path / "predictions.parquet", images, probabilities, seen)
    table = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert table["index"] == [0, 1, 2, 3, 4]
    assert table["label"] == [2, 0, 1, 1, 0]
    assert table["prediction"] == [int(max(range(3), key=row.__getitem__)) for row in probabilities]
    np.testing.assert_array_equal(np.array(table["probabilities"], np.float32), probabilities)
    assert table["seen"] == ([None] * 5 if seen is None else seen.tolist())
    assert table["file"] == NAMES
    read = read_predictions(tmp_path / "predictions.parquet", 3)
    assert read.files == NAMES
    assert read.index.tolist() == [0, 1, 2, 3, 4] and read.labels.tolist() == table["label"]
    assert read.predictions.tolist() == table["prediction"] and read.probabilities.tolist() == table["probabilities"]
    assert (read.seen is None) if seen is None else (read.seen.tolist() == table["seen"])


def test_predictions_without_names_of_files_are_read_too(tmp_path: Path):
    path, probabilities = tmp_path / "predictions.parquet", np.eye(2, dtype=np.float32)
    write_predictions(path, images_of([0, 1], [None, None]), probabilities)
    assert read_predictions(path, 2).files == [None, None]
    pq.write_table(pq.read_table(path).drop_columns("file"), path)  # as version 0.1 wrote it
    assert read_predictions(path, 2).files == [None, None]
