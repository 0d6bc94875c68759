"""Per-image predictions on disk, so that every number of a report can be computed again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


def write_predictions(
    path: Path, labels: NDArray[np.int64], probabilities: NDArray[np.float32], seen: NDArray[np.bool_] | None
) -> None:
    """Writes `predictions.parquet`: index, label, prediction, probabilities and seen of every image, in order.

    Args:
        path: the file.
        labels: (n,), the true classes.
        probabilities: (n, C), each row sums to 1.
        seen: (n,), whether pre-training has seen the image; None, which leaves the column empty, if it is not known.
    """
    table = pa.table(
        {
            "index": pa.array(np.arange(len(labels)), pa.int64()),
            "label": pa.array(labels, pa.int64()),
            "prediction": pa.array(probabilities.argmax(axis=1), pa.int64()),
            "probabilities": pa.array(list(probabilities), pa.list_(pa.float32())),
            "seen": pa.nulls(len(labels), pa.bool_()) if seen is None else pa.array(seen, pa.bool_()),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
