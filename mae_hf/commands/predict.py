"""Predict the classes of images into a csv or parquet file, a row for each image."""

from pathlib import Path

from mae_hf.config.commands import PredictConfig
from mae_hf.config.data import check_class_names
from mae_hf.data.sources import list_images
from mae_hf.evaluation.tables import write_classes
from mae_hf.models.io import image_size_of, open_classifier, prepared_as
from mae_hf.training.distributed import end_processes, start_accelerator
from mae_hf.training.hardware import attention_for


def predict(config: PredictConfig) -> None:
    """Predict the classes, and say how many images could not be decoded."""
    accelerator = start_accelerator(shards=False, alone="predict.py")
    data = prepared_as(config.model, config.data)
    model = open_classifier(config.model, attention_for(accelerator))
    class_names = tuple(str(name) for _, name in sorted((model.config.id2label or {}).items()))
    check_class_names(class_names, config.model)
    splits, size, output = list_images(data, like_training=False), image_size_of(model), Path(config.output)
    prepared = accelerator.prepare(model)
    num_images, num_failed = write_classes(
        accelerator, prepared, splits, class_names, data, size, config.batch_size, output.expanduser()
    )
    reasons = ", see the column error" if num_failed else ""
    print(f"{num_images} images in {output}; {num_failed} could not be decoded{reasons}")
    end_processes(accelerator)
