"""The classes of images that a classifier predicts, written in batches: memory does not grow with their number."""

from collections.abc import Sequence
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
    columns = {"prediction": pa.string(), "probability": pa.float32(), "error": pa.string()}
    schema = pa.schema([*NAMED, *columns.items(), *((f"probability_{name}", pa.float32()) for name in class_names)])
    classes, known, num_failed = np.array(class_names, object), pa.array(class_names, pa.string()), 0

    def rows_of(images: Sequence[np.ndarray | str], names: pa.Table) -> pa.Table:
        errors = [image if isinstance(image, str) else None for image in images]
        failed = np.array([error is not None for error in errors])
        probabilities = np.zeros((len(images), len(classes)), np.float32)
        if not failed.all():
            pixels = torch.from_numpy(np.stack([image for image in images if not isinstance(image, str)]))
            pixel_values = normalized(pixels, data, accelerator.device)
            probabilities[~failed] = class_probabilities(model, pixel_values).cpu().numpy()
        best = classes[probabilities.argmax(axis=1)], probabilities.max(axis=1)
        arrays = [pa.array(column, mask=failed) for column in (*best, *probabilities.T)]
        return pa.table([*names.columns, *arrays[:2], pa.array(errors, pa.string()), *arrays[2:]], schema)

    def write(file: Path) -> None:
        nonlocal num_failed
        with (pa.csv.CSVWriter if output.suffix == ".csv" else pq.ParquetWriter)(file, schema) as writer:
            for split in splits:
                names = name_images(split)
                label = pc.if_else(pc.is_in(names["label"], known), names["label"], None)
                names = names.set_column(NAMED.get_field_index("label"), "label", label)
                with closing(decoded_images(split, image_size, data, "predicting")) as images:
                    for start in range(0, len(split), batch_size):
                        table = rows_of(list(islice(images, batch_size)), names.slice(start, batch_size))
                        writer.write_table(table)
                        num_failed += len(table) - table["error"].null_count

    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output, write)
    return sum(map(len, splits)), num_failed
