"""Evaluate a classifier on test images, or probe the frozen features of an encoder."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mae_hf.config import parse
from mae_hf.config.commands import EvaluateConfig
from mae_hf.data.dataset import load_labelled_images
from mae_hf.errors import require
from mae_hf.evaluation.inference import class_probabilities, infer, pooled_features
from mae_hf.evaluation.metrics import classification_metrics, describe_seen, unseen_metrics
from mae_hf.evaluation.probing import probe_features
from mae_hf.files import write_json, write_text
from mae_hf.leakage.audit import read_model_audit, seen_test_images
from mae_hf.models.io import SHAPE_KEYS, image_size_of, open_classifier, open_encoder, prepared_as, weights_digest
from mae_hf.training.distributed import end_processes, start_accelerator
from mae_hf.training.hardware import attention_for
from mae_hf.training.predictions import write_predictions
from mae_hf.training.provenance import environment


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate a classifier, or probe an encoder. Validation images make decisions, test images give the numbers."""
    start = datetime.now(UTC)
    accelerator = start_accelerator(shards=False)
    folder = Path(config.output_dir)
    data = prepared_as(config.model, config.data)
    config = dataclasses.replace(config, data=data)
    metrics: dict[str, Any] = {"model": config.model, "source": data.sources[0]}

    # ---- the model, the test images, and the images that a probe learns from ----
    open_model = open_encoder if config.probes else open_classifier
    model: Any = open_model(config.model, attention_for(accelerator))
    with accelerator.local_main_process_first():
        roles = ("train", "validation", "test") if config.probes else ("test",)
        images = load_labelled_images(data, image_size_of(model), roles)
    test, digest = images["test"], weights_digest(model)
    seen = seen_test_images(read_model_audit(config.model), test)
    prepared = accelerator.prepare(model)

    # ---- scores, with and without the test images that pre-training has seen ----
    counts = {f"num_{role}_images": len(part) for role, part in images.items()}
    predictions: dict[str, Any] = {}
    if config.probes:
        features = {
            role: infer(accelerator, pooled_features, prepared, part, data, config.batch_size)
            for role, part in images.items()
        }
        values, by_probe = probe_features(config.probes, features, images, seen)
        metrics |= {**counts, "labels": images["train"].note or "all labels", **values}
        for name, by_role in by_probe.items():
            predictions[f"predictions/{name}"] = (test, by_role["test"], seen)
            # what `compare` needs to check them against other runs
            predictions[f"validation_predictions/{name}"] = (images["validation"], by_role["validation"], None)
        accelerator.print(describe_seen(seen))
    else:
        names = tuple((model.config.id2label or {}).values())
        known, found = ", ".join(names), ", ".join(test.class_names)
        fix = "evaluate on data with the model's classes, in its order (--data.source)"
        problem = f"{config.model} knows the classes {known}, {data.sources[0]} has {found}: {fix}"
        require(names == test.class_names, problem)
        probabilities = infer(accelerator, class_probabilities, prepared, test, data, config.batch_size)
        scores = classification_metrics(probabilities, test.labels, names)
        unseen = unseen_metrics(probabilities, test.labels, names, seen)
        metrics |= {f"test/{key}": value for key, value in scores.items()} | unseen
        accelerator.print(describe_seen(seen, unseen))
        predictions["predictions"] = (test, probabilities, seen)

    # ---- files ----
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for name, predicted in predictions.items():
            write_predictions(folder / f"{name}.parquet", *predicted)
        if config.probes:
            write_text(folder / "config.yaml", parse.to_yaml(config))
            facts = {
                **environment(accelerator),
                **counts,
                "data_fingerprint": images["train"].fingerprint,
                "validation_fingerprint": images["validation"].fingerprint,
                "test_fingerprint": test.fingerprint,
                "init_digest": digest,
                "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
                "class_names": test.class_names,
                "encoder_shape": {key: getattr(model.config, key) for key in SHAPE_KEYS},
                "start": start.isoformat(timespec="seconds"),
                "end": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            write_json(folder / "run.json", facts)
        write_json(folder / "metrics.json", metrics)
        for key, value in metrics.items():
            if isinstance(value, int | float):
                print(f"{key:32} {value:g}" if isinstance(value, int) else f"{key:32} {value:.4f}")
        print(f"written to {folder}")
    end_processes(accelerator)
