"""Measure an encoder with few labels: ten folds of the training images, or budgets of 1 to 100 % of the labels."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import NoReturn

from mae_hf.commands import exits
from mae_hf.commands.finetune import finetune
from mae_hf.config import parse
from mae_hf.config.commands import FewLabelsConfig, FinetuneConfig
from mae_hf.errors import require
from mae_hf.evaluation.few_labels.finetuning import describe_recipe, measure_finetuning, plan_finetunings
from mae_hf.evaluation.few_labels.frozen import load_features, measure_probe, random_encoder, shape_of
from mae_hf.evaluation.few_labels.measurements import Measurements, check_inputs, write_summary
from mae_hf.evaluation.few_labels.protocol import (
    describe_protocol,
    describe_set,
    is_official,
    label_sets,
    load_protocol_images,
)
from mae_hf.evaluation.metrics import describe_seen
from mae_hf.leakage.record import read_model_audit
from mae_hf.models.io import image_size_of, open_encoder, read_normalization, weights_digest
from mae_hf.models.locate import SCRATCH
from mae_hf.training.distributed import start_accelerator
from mae_hf.training.hardware import attention_for, use_cpu_well
from mae_hf.training.provenance import environment


def few_labels(config: FewLabelsConfig) -> None:
    """Measure an encoder with few labels, or resume an earlier measurement."""
    recipe = parse.read_file(FinetuneConfig, config.finetune_config) if config.finetune_config else None
    folder = Path(config.output_dir)

    accelerator = start_accelerator(shards=False)
    use_cpu_well(accelerator)
    require(accelerator.num_processes == 1, "few_labels.py runs as one process: start it with --num_processes 1")

    # ---- images: all labelled train images, from which label sets are chosen, and test images ----
    mean, std = read_normalization(config.model)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_mean=mean, image_std=std))
    encoder = open_encoder(config.model, attention_for(accelerator))
    images = load_protocol_images(config.data, image_size_of(encoder), read_model_audit(config.model))
    class_names = images.test.class_names
    protocol = describe_protocol(config, images.split)
    counts = f"{len(images.rows)} labelled train images; every accuracy is on all {len(images.test)} test images"
    print(f"{protocol}\n{counts}\n{describe_seen(images.seen)}")

    # ---- arms: the encoder, and the same network with random weights ----
    encoders, inits = {"model": encoder}, {"model": config.model}
    if config.scratch:
        encoders["scratch"] = random_encoder(encoder, class_names, attention_for(accelerator))
        inits["scratch"] = SCRATCH

    # ---- earlier results, if they are of the same inputs ----
    sets = label_sets(config, images.split, "finetune") if "finetune" in config.methods else []
    runs = plan_finetunings(config, recipe, sets, inits, shape_of(encoder)) if recipe else {}
    inputs = {"protocol": protocol, "data": images.fingerprint, "weights": weights_digest(encoder)}
    inputs |= {"mixed_precision": accelerator.mixed_precision}
    inputs |= {"seen": describe_seen(images.seen)} | (describe_recipe(recipe, config.min_steps) if recipe else {})
    check_inputs(folder / "inputs.json", inputs)
    measurements = Measurements(folder, images.test.labels, class_names, images.seen)

    # ---- one label set after the other ----
    start = functools.partial(_finetune_in_child, exits.typed_command())
    for arm, model in encoders.items():
        for method in config.methods:
            if method != "finetune":
                file = folder / f"features-{arm}.npz"
                features = load_features(file, accelerator, model, images, config.data, config.batch_size)
            for label_set in label_sets(config, images.split, method):
                line = {**describe_set(label_set, images.split), "arm": arm, "method": method}
                if method == "finetune":
                    measure_finetuning(measurements, line, start, runs[arm, label_set.name])
                else:
                    measure_probe(measurements, line, features, images.rows_of(label_set))
                print(f"{arm} {method} {label_set.name}: done", flush=True)

    # ---- mean and standard deviation, as JSON, plot and table ----
    about = {"protocol": protocol, "official": is_official(config, images.split), "model": config.model}
    about |= {"source": config.data.sources[0], "num_test_images": len(images.test)}
    about |= {"num_seen_test_images": None if images.seen is None else int(images.seen.sum())}
    about |= {"environment": environment(accelerator)}
    print(f"{write_summary(folder, measurements.lines, about)}\nwritten to {folder}")
    accelerator.end_training()


def _finetune_in_child(command: str, config: FinetuneConfig, log: Path) -> NoReturn:
    """Fine-tune in this new process, with its output in a file; `command` is what to type after a stop."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    exits.run(lambda: finetune(config), command)
