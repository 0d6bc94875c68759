"""The classes of images that a classifier predicts, as a table in batches: memory does not grow with their number.

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
from mae_hf.data.augment.crop_flip import normalize, to_pixels
from mae_hf.data.cache import decoded_images
from mae_hf.data.listing import NAMED, name_images
from mae_hf.data.splits import Split
from mae_hf.files import write_file


def prediction_schema(class_names: Sequence[str]) -> pa.Schema:
    """Return the columns of a table of predictions: names, `prediction`, `probability`, `error`, and each class's."""
    columns = {"prediction": pa.string(), "probability": pa.float32(), "error": pa.string()}
    columns |= {f"probability_{name}": pa.float32() for name in class_names}
    return pa.schema([*NAMED, *(pa.field(name, kind) for name, kind in columns.items())])


@torch.no_grad()
def predict_split(
    accelerator: Accelerator, model: nn.Module, split: Split, image_size: int, class_names: Sequence[str],
    data: DataConfig, batch_size: int,
) -> Iterator[pa.Table]:  # fmt: skip
    """Yield a table of `prediction_schema` with a row for each image of a split, in batches.

    `model` is a prepared `ViTForImageClassification` in eval mode. The row of an image that cannot be decoded has only
    its names and the reason, `error`. `label` is null unless it is a class of the model.
    """
    schema, classes = prediction_schema(class_names), np.array(class_names, object)
    names = name_images(split)
    is_known = pc.is_in(names["label"], pa.array(class_names, pa.string()))
    names = names.set_column(3, "label", pc.if_else(is_known, names["label"], None))
    with closing(decoded_images(split, image_size, data, "predicting")) as images:
        for start in range(0, len(split), batch_size):
            batch = list(islice(images, batch_size))
            errors = [image if isinstance(image, str) else None for image in batch]
            failed = np.array([error is not None for error in errors])
            probabilities = np.zeros((len(batch), len(classes)), np.float32)
            if not failed.all():
                pixels = torch.from_numpy(np.stack([image for image in batch if not isinstance(image, str)]))
                pixel_values = normalize(to_pixels(pixels.to(accelerator.device)), data.image_mean, data.image_std)
                probabilities[~failed] = model(pixel_values).logits.float().softmax(dim=-1).cpu().numpy()
            columns = [classes[probabilities.argmax(axis=1)], probabilities.max(axis=1)]
            arrays = [pa.array(column, mask=failed) for column in (*columns, *probabilities.T)]
            arrays.insert(2, pa.array(errors, pa.string()))
            yield pa.table([*names.slice(start, len(batch)).columns, *arrays], schema)


def write_tables(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    """Write tables one after the other into a csv or parquet file, which is whole or missing."""

    def write(file: Path) -> None:
        kind = pa.csv.CSVWriter if path.suffix == ".csv" else pq.ParquetWriter
        with kind(file, schema) as writer:
            for table in tables:
                writer.write_table(table)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, write)
