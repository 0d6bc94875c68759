"""Fine-tuning on one label set: the recipe cut to it, as a run of scripts/finetune.py with a folder of its own."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_hf import cli
from mae_hf.comparison.runs import Run, read_run
from mae_hf.config import FewLabelsConfig, FinetuneConfig, HubConfig, RunError
from mae_hf.data.images import load_labelled_images
from mae_hf.few_labels.measurements import Results
from mae_hf.few_labels.protocol import LabelSet
from mae_hf.tracking import inspect_run


def finetune_config(
    recipe: FinetuneConfig,
    label_set: LabelSet,
    init: str,
    shape: dict[str, Any],
    num_train_images: int,
    min_steps: int,
    folder: Path,
) -> FinetuneConfig:
    """The recipe for one label set: its data, a batch that it can fill, and enough optimizer steps.

    Where the labels would give fewer than `min_steps` steps, epochs, warm-up and the intervals between evaluations and
    checkpoints grow alike. The seed is the recipe's plus the number of the draw.

    Args:
        recipe: everything else.
        init: an encoder, or `scratch`.
        shape: the encoder's architecture, fields of `EncoderConfig`.
        num_train_images: images of the set that are trained on; the others are for validation.
        folder: the run folder.
    """
    batch_size = min(recipe.train.batch_size, num_train_images)
    planned = recipe.train.epochs * (num_train_images // batch_size)
    factor = max(1.0, min_steps / planned)
    durations = ("epochs", "warmup_epochs", "eval_every_epochs", "save_every_epochs")
    train = dataclasses.replace(
        recipe.train,
        batch_size=batch_size,
        per_device_batch_size=recipe.train.per_device_batch_size if batch_size == recipe.train.batch_size else None,
        seed=recipe.train.seed + label_set.draw,
        trackers=(),
        **{name: getattr(recipe.train, name) * factor for name in durations},
    )
    model = dataclasses.replace(recipe.model, init=init, **shape)
    return FinetuneConfig(label_set.data, model, recipe.augment, train, HubConfig(), str(folder))


def describe_recipe(recipe: FinetuneConfig, min_steps: int) -> dict[str, str]:
    """What every fine-tuning of a folder must have in common, by name; data and architecture come from elsewhere."""
    settings = {key: str(value) for key, value in cli.flatten(recipe)}
    taken = {f"recipe.{key}": value for key, value in settings.items() if key.startswith(("augment.", "train."))}
    return {**taken, "recipe.model.drop_path": str(recipe.model.drop_path), "min_steps": str(min_steps)}


def plan_finetunings(
    config: FewLabelsConfig,
    recipe: FinetuneConfig,
    sets: Sequence[LabelSet],
    inits: Mapping[str, str],
    shape: dict[str, Any],
) -> dict[tuple[str, str], FinetuneConfig]:
    """Every fine-tuning of the protocol, before the first one starts; writes nothing.

    Args:
        config: output folder and number of steps.
        recipe: what the runs have in common.
        sets: the label sets.
        inits: arm -> an encoder, or `scratch`.
        shape: the encoder's architecture, fields of `EncoderConfig`.

    Returns:
        (arm, name of the label set) -> the run.

    Raises:
        ConfigError: the folder of a run holds one of another config; the differences are named.
    """
    runs = {}
    for label_set in sets:
        train = load_labelled_images(label_set.data, shape["image_size"], roles=("train",))["train"]
        for arm, init in inits.items():
            folder = Path(config.output_dir) / "runs" / f"{label_set.name}-{arm}"
            run = finetune_config(recipe, label_set, init, shape, len(train), config.min_steps, folder)
            inspect_run(run)
            runs[arm, label_set.name] = run
    return runs


def run_finetuning(script: Path, config: FinetuneConfig) -> Run:
    """Runs (or goes on with, or reads) a fine-tuning in a process of its own, with this process's precision.

    Checkpoints of the finished run are removed: there are many runs.

    Args:
        script: scripts/finetune.py.
        config: its run folder decides whether there is anything left to do.

    Raises:
        ConfigError: the folder holds a run of another config, or files that contradict each other.
        RunError: it failed; the message has its last line and names its log.
    """
    folder = Path(config.output_dir)
    if inspect_run(config) != "finished":
        folder.parent.mkdir(parents=True, exist_ok=True)
        written, log = (folder.with_name(f"{folder.name}.{ending}") for ending in ("yaml", "log"))
        written.write_text(cli.dump(config))
        with log.open("a") as output:
            command = [sys.executable, str(script), "--config", str(written)]
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        if code != 0:
            last = ["", *log.read_text(errors="replace").split("\n")][-2]
            raise RunError(
                f"the fine-tuning {folder} failed ({last.strip()}): see {log}; the same command goes on here"
            )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return read_run(folder)


def measure_finetuning(results: Results, line: dict[str, Any], script: Path, config: FinetuneConfig) -> None:
    """Adds the line of a fine-tuning that `results` lacks: the best epoch on validation, on all test images.

    Args:
        line: what is known of the measurement: `label_set`, `arm` and `method` among it.
        script: scripts/finetune.py.
        config: the run.
    """
    if results.has(line["label_set"], line["arm"], line["method"], None):
        return
    run = run_finetuning(script, config)
    num_validation = run.record["num_validation_images"]
    measured = {
        "pooling": None,
        "num_labels": run.record["num_train_images"] + num_validation,
        "num_validation_labels": num_validation,
        "validation_accuracy": run.metrics["eval/accuracy"],
        "settings": {"best_epoch": run.metrics["best_epoch"], "epochs": config.train.epochs, "seed": config.train.seed},
    }
    results.add({**line, **measured}, run.probabilities)
