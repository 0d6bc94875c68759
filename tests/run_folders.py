"""Finished runs and probes as finetune and evaluate leave them, written in a moment for tests of what reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from mae_hf.config import parse
from mae_hf.config.commands import EvaluateConfig
from mae_hf.config.data import DataConfig
from mae_hf.config.model import ClassifierConfig
from mae_hf.config.runs import FinetuneConfig
from mae_hf.config.train import FinetuneTrainConfig

LABELS = (0, 0, 1, 1)  # the test images of the fixture `image_folder`
THREE, HALF = (True, True, True, False), (True, True, False, False)
SHAPE = {"image_size": 12, "patch_size": 6, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
PROBED = SHAPE | {"intermediate_size": 16}


def write_arms(folder: Path, image_folder: Path) -> tuple[Path, Path, Path]:
    """A pre-training run with an encoder and two pictures, and a run of either arm with real images and weights."""
    torch.manual_seed(0)
    pretraining = folder / "pretraining"
    (pretraining / "figures").mkdir(parents=True)
    (pretraining / "run.json").write_text("{}")
    for step, grey in ((20, 50), (3, 200)):  # the newer file has the smaller number
        Image.new("RGB", (40, 20), (grey,) * 3).save(pretraining / "figures" / f"reconstruction-{step}.png")
    ViTModel(ViTConfig(**SHAPE, intermediate_size=16)).save_pretrained(pretraining / "model")
    source = str(image_folder)
    pretrained = write_run(folder / "mae <b>", str(pretraining), THREE, curve=(0.6, 0.7), source=source)
    scratch = write_run(folder / "scratch", "scratch", HALF, curve=(0.3, 0.65), source=source)
    for run in (pretrained, scratch):
        config = ViTConfig(**SHAPE, intermediate_size=16, id2label={0: "cat", 1: "dog"})
        ViTForImageClassification(config).save_pretrained(run / "model")
    return pretraining, pretrained, scratch


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
    seen: tuple[bool, ...] | None = None,
    validation: tuple[bool, ...] | None = None,
    **record: Any,
) -> Path:
    """Writes the run `folder` and returns it.

    Args:
        init: `scratch` or an encoder.
        right: whether each test image is predicted right, with probability 0.9; else the next class is.
        curve: validation accuracy after each epoch.
        seed: of the run; runs that differ in nothing else are one recipe.
        layer_decay: a setting of the recipe.
        seen: whether pre-training has seen each test image; None if that is unknown.
        validation: whether each validation image is predicted right; by default, 100 images that fit `curve`.
        record: more of run.json.
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
    (folder / "config.yaml").write_text(parse.to_yaml(config))
    _write_predictions(folder / "predictions.parquet", labels, right, len(class_names), index, seen)
    validation = validation or tuple(image < round(100 * max(curve)) for image in range(100))
    classes = tuple(image % 2 for image in range(len(validation)))
    _write_predictions(folder / "validation_predictions.parquet", classes, validation, len(class_names))
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
        "eval/accuracy": max(curve),
        "best_epoch": float(np.argmax(curve) + 1),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    known = {"command": f"scripts/finetune.py --model.init {init}", "num_train_images": 270, "num_parameters": 1234}
    known |= {"data_fingerprint": fingerprint, "versions": {"torch": "2.13.0"}}
    (folder / "run.json").write_text(json.dumps(known | record))
    model = {"model_type": "vit", "id2label": {str(i): name for i, name in enumerate(class_names)}}
    (folder / "model" / "config.json").write_text(json.dumps(model))
    return folder


def write_probes(
    folder: Path,
    model: str,
    rights: dict[str, tuple[tuple[bool, ...], float]],
    source: str = "digits",
    labels: tuple[int, ...] = LABELS,
    class_names: tuple[str, ...] = ("cat", "dog"),
    fingerprint: str | None = "0123456789abcdef",
    shape: dict[str, int] | None = None,
    **record: Any,
) -> Path:
    """Writes the folder of `evaluate --probe` and returns it.

    Args:
        model: the encoder.
        rights: for each probe, such as `linear`, whether each test image is predicted right, and the accuracy on 100
            validation images. The pooling `mean` has the same, but is wrong on one more validation image.
        record: more of run.json.
    """
    data = DataConfig(source=source, class_names=class_names)
    metrics: dict[str, Any] = {}
    folder.mkdir()
    for name, (right, best) in rights.items():
        for pooling, num_right in (("cls", round(100 * best)), ("mean", round(100 * best) - 1)):
            for part, of_part, truth in (
                ("predictions", right, labels),
                ("validation_predictions", tuple(i < num_right for i in range(100)), (0, 1) * 50),
            ):
                (folder / part).mkdir(exist_ok=True)
                _write_predictions(folder / part / f"{name}-{pooling}.parquet", truth, of_part, len(class_names))
            metrics |= {f"{name}/{pooling}/accuracy": float(np.mean(right))}
            metrics |= {f"{name}/{pooling}/validation_accuracy": num_right / 100}
    config = EvaluateConfig(model=model, data=data, probe=",".join(rights), output_dir=str(folder))
    (folder / "config.yaml").write_text(parse.to_yaml(config))
    known = {"command": f"scripts/evaluate.py --model {model}", "num_train_images": 270, "num_parameters": 1000}
    known |= {"data_fingerprint": fingerprint, "class_names": class_names, "encoder_shape": shape or PROBED}
    (folder / "run.json").write_text(json.dumps(known | record))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def _write_predictions(
    path: Path,
    labels: tuple[int, ...],
    right: tuple[bool, ...],
    num_classes: int,
    index: tuple[int, ...] | None = None,
    seen: tuple[bool, ...] | None = None,
) -> None:
    predictions = [label if ok else (label + 1) % num_classes for label, ok in zip(labels, right, strict=True)]
    others = 0.1 / (num_classes - 1)
    table = {
        "index": index or tuple(range(len(labels))),
        "label": labels,
        "prediction": predictions,
        "probabilities": [[0.9 if i == p else others for i in range(num_classes)] for p in predictions],
        "seen": pa.array(seen or [None] * len(labels), pa.bool_()),
    }
    pq.write_table(pa.table(table), path)
