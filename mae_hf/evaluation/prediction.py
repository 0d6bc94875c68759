"""The classes of images that a classifier predicts, written in batches: memory does not grow with their number.

B images of a batch, C classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from torch import nn

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import decoded_images
from mae_hf.data.splits import NAMED, Split, name_images
from mae_hf.evaluation.inference import class_probabilities, normalized
from mae_hf.files import write_file

_COLUMNS = {"prediction": pa.string(), "probability": pa.float32(), "error": pa.string()}


@torch.no_grad()
def write_classes(
    accelerator: Accelerator, model: nn.Module, splits: Sequence[Split], class_names: Sequence[str],
    data: DataConfig, image_size: int, batch_size: int, output: Path,
) -> tuple[int, int]:  # fmt: skip
    """Write a row for each image into a csv or parquet file, and return the numbers of images and of failures.

    The columns are the image's names (`NAMED`), with `label` null unless it is one of the C class names; `prediction`,
    its `probability`, and `probability_NAME` of each class. An image that cannot be decoded has only names and the
    reason, `error`. `model` is a prepared `ViTForImageClassification` in eval mode.
    """
    fields = _COLUMNS | {f"probability_{name}": pa.float32() for name in class_names}
    schema = pa.schema([*NAMED, *(pa.field(name, kind) for name, kind in fields.items())])
    num_images = num_failed = 0

    def write(file: Path) -> None:
        nonlocal num_images, num_failed
        kind = pa.csv.CSVWriter if output.suffix == ".csv" else pq.ParquetWriter
        with kind(file, schema) as writer:
            for split in splits:
                with closing(decoded_images(split, image_size, data, "predicting")) as images:
                    for columns in _predict(accelerator, model, split, images, class_names, data, batch_size):
                        table = pa.table(columns, schema)
                        writer.write_table(table)
                        num_images += len(table)
                        num_failed += len(table) - table["error"].null_count

    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output, write)
    return num_images, num_failed


def _predict(
    accelerator: Accelerator, model: nn.Module, split: Split, images: Iterator[np.ndarray | str],
    class_names: Sequence[str], data: DataConfig, batch_size: int,
) -> Iterator[list[pa.Array]]:  # fmt: skip
    """Yield the columns of a batch of the split's decoded images."""
    names, classes = name_images(split), np.array(class_names, object)
    is_known = pc.is_in(names["label"], pa.array(class_names, pa.string()))
    names = names.set_column(NAMED.get_field_index("label"), "label", pc.if_else(is_known, names["label"], None))
    for start in range(0, len(split), batch_size):
        batch = list(islice(images, batch_size))
        errors = [image if isinstance(image, str) else None for image in batch]
        failed = np.array([error is not None for error in errors])
        probabilities = np.zeros((len(batch), len(classes)), np.float32)
        if not failed.all():
            pixels = torch.from_numpy(np.stack([image for image in batch if not isinstance(image, str)]))
            pixel_values = normalized(pixels, data, accelerator.device)
            probabilities[~failed] = class_probabilities(model, pixel_values).cpu().numpy()
        best = classes[probabilities.argmax(axis=1)], probabilities.max(axis=1)
        arrays = [pa.array(column, mask=failed) for column in (*best, *probabilities.T)]
        yield [*names.slice(start, len(batch)).columns, *arrays[:2], pa.array(errors, pa.string()), *arrays[2:]]
