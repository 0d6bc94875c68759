"""Finished fine-tuning runs as scripts/finetune.py leaves them, written in a moment for tests of what reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import f1_score

from mae_hf import cli
from mae_hf.config import ClassifierConfig, DataConfig, FinetuneConfig, FinetuneTrainConfig

LABELS = (0, 0, 1, 1)  # the test images of the fixture `image_folder`


def write_run(
    folder: Path,
    init: str,
    right: tuple[bool, ...],
    curve: tuple[float, ...] = (0.5, 0.75),
    source: str = "digits",
    labels: tuple[int, ...] = LABELS,
    class_names: tuple[str, ...] = ("cat", "dog"),
    index: tuple[int, ...] | None = None,
    fingerprint: str = "0123456789abcdef",
    hidden_size: int = 8,
    seed: int = 0,
    layer_decay: float = 0.65,
) -> Path:
    """Writes the run `folder` and returns it.

    Args:
        init: `scratch` or an encoder.
        right: whether each test image is predicted right, with probability 0.9; else the next class is.
        curve: validation accuracy after each epoch.
        seed: of the run; runs that differ in nothing else are one recipe.
        layer_decay: a setting of the recipe.
    """
    (folder / "model").mkdir(parents=True)
    config = FinetuneConfig(
        data=DataConfig(source=source, class_names=class_names),
        model=ClassifierConfig(
            init=init, image_size=12, patch_size=6, hidden_size=hidden_size, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=16,
        ),
        train=FinetuneTrainConfig(seed=seed, layer_decay=layer_decay),
        output_dir=str(folder),
    )  # fmt: skip
    (folder / "config.yaml").write_text(cli.dump(config))
    predictions = [label if ok else (label + 1) % len(class_names) for label, ok in zip(labels, right, strict=True)]
    others = 0.1 / (len(class_names) - 1)
    table = {
        "index": index or tuple(range(len(labels))),
        "label": labels,
        "prediction": predictions,
        "probabilities": [[0.9 if i == p else others for i in range(len(class_names))] for p in predictions],
    }
    pq.write_table(pa.table(table), folder / "predictions.parquet")
    history: list[dict[str, Any]] = []
    for epoch, accuracy in enumerate(curve, start=1):
        history.append(
            {"step": 5 * epoch - 2, "epoch": epoch - 0.4, "train/loss": 2 / epoch, "train/learning_rate": 1e-3}
        )
        scores = {"eval/loss": 1 - accuracy, "eval/accuracy": accuracy, "eval/f1": accuracy - 0.01}
        history.append({"step": 5 * epoch, "epoch": float(epoch), **scores})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    metrics = {
        "test/accuracy": float(np.mean(right)),
        "test/f1": float(f1_score(labels, predictions, average="macro", labels=np.unique(labels), zero_division=0)),
        "eval/accuracy": max(curve),
        "best_epoch": float(np.argmax(curve) + 1),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    record = {"command": f"scripts/finetune.py --model.init {init}", "num_train_images": 270, "num_parameters": 1234}
    record |= {"data_fingerprint": fingerprint, "versions": {"torch": "2.13.0"}}
    (folder / "run.json").write_text(json.dumps(record))
    model = {"model_type": "vit", "id2label": {str(i): name for i, name in enumerate(class_names)}}
    (folder / "model" / "config.json").write_text(json.dumps(model))
    return folder
