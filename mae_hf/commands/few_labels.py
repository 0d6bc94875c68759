"""Measure an encoder with few labels: ten folds of the training images, or budgets of 1 to 100 % of the labels."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from mae_hf.config import parse
from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.runs import FinetuneConfig
from mae_hf.data.splits import describe_few_labels
from mae_hf.evaluation.few_labels import methods
from mae_hf.evaluation.few_labels.results import Measurements, write_summary
from mae_hf.evaluation.inference import POOLINGS
from mae_hf.evaluation.metrics import describe_seen
from mae_hf.leakage.audit import read_model_audit, seen_test_images
from mae_hf.models.io import image_size_of, open_encoder, prepared_as, weights_digest
from mae_hf.training.distributed import start_accelerator
from mae_hf.training.hardware import attention_for
from mae_hf.training.provenance import environment


def few_labels(config: FewLabelsConfig) -> None:
    """Measure an encoder with few labels, or resume an earlier measurement."""
    recipe = parse.read_file(FinetuneConfig, config.finetune_config) if config.finetune_config else None
    folder = Path(config.output_dir)

    accelerator = start_accelerator(shards=False, alone="few_labels.py")

    # ---- images: all labelled train images, from which label sets are chosen, and test images ----
    config = dataclasses.replace(config, data=prepared_as(config.model, config.data))
    encoder = open_encoder(config.model, attention_for(accelerator))
    train, test = methods.load_protocol_images(config.data, image_size_of(encoder))
    seen = seen_test_images(read_model_audit(config.model), test)
    protocol = methods.Protocol(config, train.parts[0][0].split, np.sort(train.split_rows))
    counts = f"{len(train)} labelled train images; every accuracy is on all {len(test)} test images"
    print(f"{protocol.note}\n{counts}\n{describe_seen(seen)}")

    # ---- arms: the encoder, and the same network with random weights ----
    encoders = {"model": encoder}
    if config.scratch:
        encoders["scratch"] = methods.random_encoder(encoder, test.class_names, attention_for(accelerator))

    # ---- earlier results, if they are of the same inputs ----
    inputs = {
        "protocol": protocol.note,
        "data": f"{train.fingerprint} {test.fingerprint}",
        "weights": weights_digest(encoder),
        "mixed_precision": accelerator.mixed_precision,
        "seen": None if seen is None else hashlib.sha256(seen.tobytes()).hexdigest()[:16],
    }
    if recipe:
        inputs |= methods.describe_recipe(recipe)
    runs = methods.plan_finetunings(protocol, recipe, encoders) if recipe and "finetune" in config.method else {}
    results = Measurements(folder, test, seen, inputs)

    # ---- one label set after the other ----
    for arm, model in encoders.items():
        for method in config.method.split(","):
            if method != "finetune":
                features = methods.load_features(arm, accelerator, model, train, test, config)
            for label_set in protocol.label_sets(method):
                labels, fraction = describe_few_labels(protocol.split, label_set.data), label_set.data.label_fraction
                line = {"label_set": label_set.name, "fraction": fraction, "draw": label_set.draw}
                line |= {"labels": labels, "arm": arm, "method": method}
                for pooling in POOLINGS if method != "finetune" else (None,):
                    if results.has(line := line | {"pooling": pooling}):
                        continue
                    if pooling is None:
                        facts, probabilities = methods.measure_finetuning(runs[f"{label_set.name}-{arm}"])
                    else:
                        facts, probabilities = methods.measure_probe(method, pooling, features, train, label_set)
                    results.add(line | facts, probabilities)
                print(f"{arm} {method} {label_set.name}: done", flush=True)

    # ---- mean and standard deviation, as JSON, plot and table ----
    about = {
        "protocol": protocol.note,
        "official": protocol.is_official,
        "model": config.model,
        "source": config.data.sources[0],
        "num_test_images": len(test),
        "num_seen_test_images": None if seen is None else int(seen.sum()),
        "environment": environment(accelerator),
    }
    print(f"{write_summary(folder, results.lines, about, config.figures.format)}\nwritten to {folder}")
    accelerator.end_training()
