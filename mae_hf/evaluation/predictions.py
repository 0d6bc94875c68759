"""Per-image predictions on disk, so that every number of a report can be computed again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mae_hf.training.finished_runs import PREDICTIONS_SCHEMA


def write_predictions(
    path: Path, labels: NDArray[np.int64], probabilities: NDArray[np.float32], seen: NDArray[np.bool_] | None
) -> None:
    """Write index, label, prediction, probabilities and seen of every image, in order (`PREDICTIONS_SCHEMA`).

    Args:
        path: the file.
        labels: (n,), the true classes.
        probabilities: (n, C), each row sums to 1.
        seen: (n,), whether pre-training has seen the image; None, which leaves the column empty, if that is unknown.
    """
    columns = {
        "index": np.arange(len(labels)),
        "label": labels,
        "prediction": probabilities.argmax(axis=1),
        "probabilities": list(probabilities),
        "seen": pa.nulls(len(labels), pa.bool_()) if seen is None else seen,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, PREDICTIONS_SCHEMA), path)
