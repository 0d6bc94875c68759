"""Per-image predictions on disk, so that every number of a report can be computed again.

Shapes: n images, C classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mae_hf.data.dataset import ImageSet
from mae_hf.errors import ConfigError, require

AGAIN = "run finetune again"
# The columns of predictions.parquet and validation_predictions.parquet. Without an audit, all of `seen` is
# null; without names of files, `file`.
SCHEMA = pa.schema(
    {"index": pa.int64(), "label": pa.int64(), "prediction": pa.int64()}
    | {"probabilities": pa.list_(pa.float32()), "seen": pa.bool_(), "file": pa.string()}
)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier predicts for each image of a split."""

    index: NDArray[np.int64]  # (n,), the images in rising order
    labels: NDArray[np.int64]  # (n,), their classes
    predictions: NDArray[np.int64]  # (n,), predicted classes
    probabilities: NDArray[np.float64]  # (n, C)
    seen: NDArray[np.bool_] | None  # (n,), whether pre-training has seen each image; None if that is unknown
    files: list[str | None]  # (n,), the name of each image's file, as the source gives it

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each image was predicted correctly, (n,)."""
        return self.predictions == self.labels

    def are_of_the_same_images(self, other: "Predictions") -> bool:
        """Whether both have the same images with the same labels."""
        return np.array_equal(self.index, other.index) and np.array_equal(self.labels, other.labels)


def write_predictions(
    path: Path, images: ImageSet, probabilities: NDArray[np.floating], seen: NDArray[np.bool_] | None = None
) -> None:
    """Write a row for each of the n images, in order (`SCHEMA`), with probabilities (n, C) that sum to 1.

    `seen` (n,) says whether pre-training has seen the image; None if that is unknown.
    """
    n = len(images.labels)
    columns = {
        "index": np.arange(n),
        "label": images.labels,
        "prediction": probabilities.argmax(axis=1),
        "probabilities": list(probabilities),
        "seen": pa.nulls(n, pa.bool_()) if seen is None else seen,
        "file": images.file_names(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, SCHEMA), path)


def read_predictions(path: Path, num_classes: int) -> Predictions:
    """Return the predictions of a file in the order of the index; ConfigError if it is missing or malformed."""
    require(path.is_file(), f"{path} is missing: {AGAIN}")
    try:
        table = pq.read_table(path, schema=SCHEMA).sort_by("index")  # a missing column is empty
    except (pa.ArrowException, OSError) as error:
        problem = f"{path} cannot be read ({' '.join(str(error).split())})"
        raise ConfigError(f"{problem}: it must have the columns {', '.join(SCHEMA.names)}. {AGAIN}") from None
    columns = {name: table[name].combine_chunks() for name in SCHEMA.names}
    is_known = columns["seen"].null_count < len(table) or not len(table)
    optional = {"file"} if is_known else {"file", "seen"}
    empty = [name for name, values in columns.items() if values.null_count and name not in optional]
    require(not empty, f"{path} has empty values in {', '.join(empty)}: {AGAIN}")
    index, labels, predictions = (columns[name].to_numpy() for name in ("index", "label", "prediction"))
    lengths = columns["probabilities"].value_lengths().unique().to_pylist()
    problem = f"is empty, or a row has not one probability for each of the {num_classes} classes"
    require(lengths == [num_classes], f"{path} {problem}: {AGAIN}")
    flat = columns["probabilities"].flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    probabilities = flat.reshape(len(table), num_classes)  # null is NaN
    classes = np.concatenate([labels, predictions])
    of_prediction = np.take_along_axis(probabilities, predictions.clip(0, num_classes - 1)[:, None], axis=1)[:, 0]
    problems = {
        "an image has several rows": len(np.unique(index)) < len(index),
        f"a class is not one of 0 to {num_classes - 1}": classes.min() < 0 or classes.max() >= num_classes,
        "probabilities are below 0 or not finite": not (probabilities >= 0).all(),
        "probabilities do not add up to 1": not (np.abs(probabilities.sum(axis=1) - 1) <= 1e-3).all(),
        "a prediction is not the class of the greatest probability": (of_prediction != probabilities.max(axis=1)).any(),
    }
    for problem, is_true in problems.items():
        require(not is_true, f"{path}: {problem}: {AGAIN}")
    seen = columns["seen"].to_numpy(zero_copy_only=False) if is_known else None
    return Predictions(index, labels, predictions, probabilities, seen, columns["file"].to_pylist())
