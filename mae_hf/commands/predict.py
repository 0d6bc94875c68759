"""Predict the classes of images into a csv or parquet file, a row for each image."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mae_hf.config.commands import PredictConfig
from mae_hf.config.data import check_class_names
from mae_hf.data.listing import list_images
from mae_hf.errors import require
from mae_hf.evaluation.prediction import predict_split, prediction_schema, write_tables
from mae_hf.models.io import image_size_of, open_classifier, prepared_as
from mae_hf.training.distributed import end_processes, start_accelerator
from mae_hf.training.hardware import attention_for


def predict(config: PredictConfig) -> None:
    """Predict the classes, and say how many images could not be decoded."""
    accelerator = start_accelerator(shards=False)
    require(accelerator.num_processes == 1, "predict.py runs as one process: start it with --num_processes 1")
    output = Path(config.output).expanduser()
    data = prepared_as(config.model, config.data)
    model = open_classifier(config.model, attention_for(accelerator))
    class_names = tuple((model.config.id2label or {}).values())
    check_class_names(class_names, config.model)

    # ---- predictions, batch after batch ----
    splits = list_images(data, like_training=False)
    prepared = accelerator.prepare(model)
    counts = {"images": 0, "failed": 0, "labelled": 0, "correct": 0}

    def counted() -> Iterator[pa.Table]:
        for split in splits:
            size = image_size_of(model)
            for table in predict_split(accelerator, prepared, split, size, class_names, data, config.batch_size):
                is_correct = pc.equal(table["label"], table["prediction"])  # null without a label or a prediction
                counts["images"] += len(table)
                counts["failed"] += len(table) - table["error"].null_count
                counts["labelled"] += len(table) - is_correct.null_count
                counts["correct"] += pc.sum(is_correct).as_py() or 0
                yield table

    write_tables(output, prediction_schema(class_names), counted())

    # ---- summary ----
    if counts["labelled"]:
        share = 100 * counts["correct"] / counts["labelled"]
        which = f"{counts['correct']} of {counts['labelled']} images whose label is a class of the model"
        print(f"{which} are predicted correctly ({share:.1f} %)")
    problem = f"{counts['failed']} could not be decoded" + (", see the column error" if counts["failed"] else "")
    print(f"{counts['images']} images in {output}; {problem}")
    end_processes(accelerator)
