"""Fine-tuning on one label set: the recipe cut to it, as a run of scripts/finetune.py with a folder of its own."""

import dataclasses
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mae_hf.config import parse
from mae_hf.config.commands import MACHINE_SETTINGS, FewLabelsConfig, FinetuneConfig
from mae_hf.config.hub import HubConfig
from mae_hf.data.dataset import load_labelled_images
from mae_hf.errors import RunError, RunStopped
from mae_hf.evaluation.few_labels.measurements import Results
from mae_hf.evaluation.few_labels.protocol import LabelSet
from mae_hf.training.finished_runs import Run, read_run
from mae_hf.training.run_folder import inspect_run

_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


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

    Where the labels would give fewer than `min_steps` steps, epochs and the intervals between evaluations and
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
    durations = ("epochs", "eval_every_epochs", "save_every_epochs")
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
    settings = {key: str(value) for key, value in parse.flatten(recipe)}
    taken = {
        f"recipe.{key}": value
        for key, value in settings.items()
        if key.startswith(("augment.", "train.")) and key not in MACHINE_SETTINGS
    }
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

    SIGTERM and Ctrl-C reach that process, which saves, and are waited for. Checkpoints of the finished run are removed:
    there are many runs.

    Args:
        script: scripts/finetune.py.
        config: its run folder decides whether there is anything left to do.

    Raises:
        ConfigError: the folder holds a run of another config, or files that contradict each other.
        RunError: it failed; the message has its last line and names its log.
        RunStopped: a signal has come, and it has saved.
    """
    folder = Path(config.output_dir)
    if inspect_run(config) != "finished":
        folder.parent.mkdir(parents=True, exist_ok=True)
        written, log = (folder.with_name(f"{folder.name}.{ending}") for ending in ("yaml", "log"))
        written.write_text(parse.to_yaml(config))
        with log.open("a") as output:
            command = [sys.executable, str(script), "--config", str(written)]
            child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            code = _wait(child)
        if code in _STOPPED:
            raise RunStopped(f"the fine-tuning {folder} is saved: the same command goes on here", code - 128)
        if code != 0:
            last = ["", *log.read_text(errors="replace").split("\n")][-2]
            raise RunError(
                f"the fine-tuning {folder} failed ({last.strip()}): see {log}; the same command goes on here"
            )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return read_run(folder)


def _wait(child: subprocess.Popen[bytes]) -> int:
    """The exit code of a process that gets the signals of this one, as it knows best how to end."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child.poll() is None and number == signal.SIGTERM:  # a terminal sends Ctrl-C to both
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    num_validation = run.record.num_validation_images or 0
    measured = {
        "pooling": None,
        "num_labels": (run.record.num_train_images or 0) + num_validation,
        "num_validation_labels": num_validation,
        "validation_accuracy": run.metrics["eval/accuracy"],
        "settings": {"best_epoch": run.metrics["best_epoch"], "epochs": config.train.epochs, "seed": config.train.seed},
    }
    results.add({**line, **measured}, run.test.probabilities)
