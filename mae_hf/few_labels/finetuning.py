"""Fine-tuning on one label set: the recipe cut to it, as a run of scripts/finetune.py with a folder of its own."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mae_hf import cli
from mae_hf.config import FinetuneConfig, HubConfig, RunError
from mae_hf.few_labels.protocol import LabelSet


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


def run_finetuning(script: Path, config: FinetuneConfig) -> dict[str, Any]:
    """Runs (or goes on with, or reads) a fine-tuning in a process of its own, with this process's precision.

    Checkpoints of the finished run are removed: there are many runs.

    Args:
        script: scripts/finetune.py.
        config: its run folder decides whether there is anything left to do.

    Returns:
        `accuracy` and `f1` on test, `validation_accuracy`, `num_labels` and `num_validation_labels` among them, and
        `settings` with the epoch that was best on validation.

    Raises:
        RunError: it failed; the message has its last line and names its log.
    """
    folder = Path(config.output_dir)
    if not (folder / "metrics.json").exists():
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
    metrics, record = (json.loads((folder / name).read_text()) for name in ("metrics.json", "run.json"))
    return {
        "accuracy": metrics["test/accuracy"],
        "f1": metrics["test/f1"],
        "validation_accuracy": metrics["eval/accuracy"],
        "num_labels": record["num_train_images"] + record["num_validation_images"],
        "num_validation_labels": record["num_validation_images"],
        "settings": {"best_epoch": metrics["best_epoch"], "epochs": config.train.epochs, "seed": config.train.seed},
    }
