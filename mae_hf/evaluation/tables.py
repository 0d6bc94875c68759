"""Files with a row for each image: an encoder's features, drawn with neighbours and a map, or predicted classes."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pyarrow.dataset import dataset
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import decoded_images
from mae_hf.data.dataset import ImageSet
from mae_hf.data.splits import NAMED, Split, name_images
from mae_hf.errors import require
from mae_hf.evaluation import probing
from mae_hf.evaluation.inference import POOLINGS, class_probabilities, normalized, pixel_values_of, pooled_features
from mae_hf.figures import file_label, sheets
from mae_hf.files import write_file
from mae_hf.models.io import weights_digest
from mae_hf.progress import Progress

PER_PART = 2048  # images in a part of the file; a resumed command repeats one part at most
NUM_QUERIES, MOST_ON_MAP = 8, 1000


@torch.no_grad()
def write_features(
    accelerator: Accelerator, encoder: nn.Module, images: ImageSet, data: DataConfig, batch_size: int, output: Path
) -> None:
    """Write a row for each image: names (`NAMED`), the CLS token `cls` and the `mean` patch token, float32 (D,).

    The encoder is a prepared `ViTModel` in eval mode. Parts are kept in `OUTPUT.parts` until all are written. A file or
    a part from other weights, images or precision is a ConfigError.
    """
    names = pa.concat_tables([name_images(store.split).take(store.rows[indices]) for store, indices in images.parts])
    texts = "".join(repr(batch.to_pydict()) for batch in names.to_batches(PER_PART))
    inputs = {
        "weights": weights_digest(accelerator.unwrap_model(encoder)),
        "images": images.fingerprint,
        "names": hashlib.sha256(texts.encode()).hexdigest()[:16],
        "preparation": [data.image_mean, data.image_std, data.resize],
        "precision": accelerator.mixed_precision,
    }
    features = ((pooling, pa.list_(pa.float32())) for pooling in POOLINGS)
    schema = pa.schema([*NAMED, *features], {"inputs": json.dumps(inputs)})
    if _is_written(output, schema):
        return
    folder = output.with_name(f"{output.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    parts = {start: folder / f"{start:012}.parquet" for start in range(0, len(images), PER_PART)}
    with Progress(total=len(images), desc="embedding", unit="image") as progress:
        for start, path in parts.items():
            rows = np.arange(start, min(start + PER_PART, len(images)))
            if _is_written(path, schema):
                progress.update(len(rows))
                continue
            values = []
            for batch in np.split(rows, range(batch_size, len(rows), batch_size)):
                pixel_values = pixel_values_of(images, batch, data, accelerator.device)
                values.append(pooled_features(encoder, pixel_values).cpu().numpy())
                progress.update(len(batch))
            cls, mean = np.concatenate(values).transpose(1, 0, 2)
            bad = int((~np.isfinite(cls) | ~np.isfinite(mean)).sum())
            require(bad == 0, f"{bad} features are not finite: the weights are broken, choose another model (--model)")
            columns = [*names.slice(start, len(rows)).columns, pa.array(list(cls)), pa.array(list(mean))]
            write_file(path, partial(pq.write_table, pa.table(columns, schema)))

    def join(file: Path) -> None:
        with pq.ParquetWriter(file, schema) as writer:
            for path in parts.values():
                writer.write_table(pq.read_table(path))

    write_file(output, join)
    shutil.rmtree(folder)


def _is_written(path: Path, schema: pa.Schema) -> bool:
    """Whether a file exists; ConfigError unless it has this schema, with the same inputs in its metadata."""
    if not path.exists():
        return False
    try:
        found = pq.read_schema(path)
        is_same = found.equals(schema) and found.metadata == schema.metadata
    except (pa.ArrowException, OSError):
        is_same = False
    fix = "remove it, or write to another file (--output)"
    where = path.parent if path.parent.suffix == ".parts" else path
    require(is_same, f"{where} holds something else than the features of these images by this model: {fix}")
    return True


def draw_neighbours(output: Path, images: ImageSet, pooling: str, num_neighbours: int, title: str) -> Figure:
    """Return a sheet of images, evenly chosen from the file, each with its nearest neighbours by cosine similarity."""
    queries = np.unique(np.linspace(0, len(images) - 1, NUM_QUERIES).round().astype(int))
    _, features = _read_rows(output, pooling, queries)
    batches = pq.ParquetFile(output).iter_batches(PER_PART, columns=[pooling])
    parts = (np.stack(batch[pooling].to_numpy(zero_copy_only=False)) for batch in batches)
    similarities = np.concatenate([cosine_similarity(features, part) for part in parts], axis=1)
    similarities[np.arange(len(queries)), queries] = -np.inf  # an image is not its own neighbour
    order = np.argsort(-similarities, axis=1, kind="stable")[:, : min(num_neighbours, len(images) - 1)]
    shown, places = np.unique(np.concatenate([queries[:, None], order], axis=1), return_inverse=True)
    rows, _ = _read_rows(output, pooling, shown)
    names = [file_label(row["file"] or f"{row['split']} {row['row']}", 18) for row in rows]
    pixels, places = images.batch(shown).numpy(), places.reshape(len(queries), -1)
    texts = [[names[place] for place in row] for row in places]
    for row, neighbours in enumerate(order):
        for column, image in enumerate(neighbours, 1):
            texts[row][column] += f"\n{similarities[row, image]:.3f}"
    return sheets.neighbours_figure(pixels[places], texts, title)


def draw_map(output: Path, images: ImageSet, pooling: str, title: str) -> Figure:
    """Return a t-SNE map of up to 1,000 images, drawn at random, with small pictures of them."""
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:MOST_ON_MAP])
    names, features = _read_rows(output, pooling, rows)
    probing.check_mappable(features)
    points = probing.tsne(features, seed=0)
    classes = sorted({row["label"] for row in names} - {None})
    labels = np.array([-1 if row["label"] is None else classes.index(row["label"]) for row in names])
    return sheets.thumbnails_figure({title: points}, images.batch(rows).numpy(), labels, classes)


def _read_rows(output: Path, pooling: str, rows: NDArray[np.int64]) -> tuple[list[dict], NDArray[np.float32]]:
    """Return the names and the features of some rows of the file, in ascending order."""
    table = dataset(output).take(rows, columns=[*NAMED.names, pooling])
    return table.select(NAMED.names).to_pylist(), np.stack(table[pooling].to_numpy())


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
