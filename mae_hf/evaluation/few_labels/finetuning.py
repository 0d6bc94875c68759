"""Fine-tuning on one label set: the recipe adapted to it, as a run with its own folder and process."""

import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from mae_hf.config import parse
from mae_hf.config.commands import MACHINE_SETTINGS, FewLabelsConfig, FinetuneConfig, HubConfig
from mae_hf.data.dataset import load_labelled_images
from mae_hf.errors import RunError, RunStopped
from mae_hf.evaluation.few_labels.measurements import Measurements
from mae_hf.evaluation.few_labels.protocol import LabelSet
from mae_hf.training.finished_runs import Run, read_run
from mae_hf.training.run_folder import inspect_run
from mae_hf.training.signals import TERMINATING

Start = Callable[[FinetuneConfig, Path], None]
"""Fine-tunes with this config in a new process, writes its output into this file, and exits with its exit code."""

_STOPPED = [128 + number for number in (*TERMINATING, signal.SIGINT)]


def adapt_recipe(recipe: FinetuneConfig, label_set: LabelSet, num_train_images: int, min_steps: int) -> FinetuneConfig:
    """Return the recipe for one label set: its data, a batch that it can fill, and enough optimizer steps.

    Where the labels would give fewer than `min_steps` steps, epochs and the intervals between evaluations and
    checkpoints grow alike. The seed is the recipe's plus the number of the draw.

    Args:
        recipe: everything else.
        label_set: the labels, some of which are for validation.
        num_train_images: images of the set that are trained on.
        min_steps: the fewest optimizer steps.
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
    return dataclasses.replace(recipe, data=label_set.data, train=train, hub=HubConfig())


def describe_recipe(recipe: FinetuneConfig, min_steps: int) -> dict[str, str]:
    """Return the settings that all fine-tunings of a folder share, by name, except data and architecture."""
    shared = ("augment.", "train.", "model.drop_path")
    settings = {key: str(value) for key, value in parse.flatten(recipe) if key.startswith(shared)}
    taken = {f"recipe.{key}": value for key, value in settings.items() if key not in MACHINE_SETTINGS}
    return taken | {"min_steps": str(min_steps)}


def plan_finetunings(
    config: FewLabelsConfig,
    recipe: FinetuneConfig,
    sets: Sequence[LabelSet],
    inits: Mapping[str, str],
    shape: dict[str, Any],
) -> dict[tuple[str, str], FinetuneConfig]:
    """Return the config of every fine-tuning of the protocol. Writes nothing.

    Args:
        config: output folder and number of steps.
        recipe: what the runs have in common.
        sets: the label sets.
        inits: arm -> an encoder, or `scratch`.
        shape: the encoder's architecture, fields of `EncoderConfig`.

    Returns:
        (arm, name of the label set) -> the run.

    Raises:
        ConfigError: the folder of a run holds a run with a different config (the message lists the differences).
    """
    runs = {}
    for label_set in sets:
        train = load_labelled_images(label_set.data, shape["image_size"], roles=("train",))["train"]
        adapted = adapt_recipe(recipe, label_set, len(train), config.min_steps)
        for arm, init in inits.items():
            model = dataclasses.replace(recipe.model, init=init, **shape)
            folder = Path(config.output_dir) / "runs" / f"{label_set.name}-{arm}"
            run = dataclasses.replace(adapted, model=model, output_dir=str(folder))
            inspect_run(run)
            runs[arm, label_set.name] = run
    return runs


def run_finetuning(start: Start, config: FinetuneConfig) -> Run:
    """Run, resume or read a fine-tuning in a separate process, which frees its memory afterwards.

    SIGTERM, SIGHUP and Ctrl-C reach that process too, and this one waits until it has saved. Checkpoints of the
    finished run are removed, because there are many runs.

    Args:
        start: what the process calls.
        config: its run folder shows whether there is anything left to do.

    Raises:
        ConfigError: the folder holds a run with a different config, or files that contradict each other.
        RunError: it failed; the message has its last line and names its log.
        RunStopped: a signal arrived, and its state is saved.
    """
    folder = Path(config.output_dir)
    if inspect_run(config) != "finished":
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}.log")
        child = multiprocessing.get_context("spawn").Process(target=start, args=(config, log))
        with _pass_on_signals(child):
            child.start()
            child.join()
        code = child.exitcode or 0
        if code in _STOPPED:
            raise RunStopped(f"{signal.Signals(code - 128).name}: the fine-tuning {folder} is saved", code - 128)
        if code != 0:
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            cause = lines[-1].strip() if lines else f"exit code {code}"
            raise RunError(f"the fine-tuning {folder} failed ({cause}): see {log}; the same command resumes here")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return read_run(folder)


@contextlib.contextmanager
def _pass_on_signals(child: BaseProcess) -> Iterator[None]:
    """Send a process the signals of this one, which then waits: the child knows best how to end."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child.pid and number != signal.SIGINT:  # a terminal sends Ctrl-C to both
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (*TERMINATING, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def measure_finetuning(measurements: Measurements, line: dict[str, Any], start: Start, config: FinetuneConfig) -> None:
    """Add the line of a fine-tuning that `measurements` lacks: the best epoch on validation, on all test images.

    Args:
        line: what is known of the measurement: `label_set`, `arm` and `method` among it.
        start: as for `run_finetuning`.
        config: the run.
    """
    if measurements.has(line["label_set"], line["arm"], line["method"], None):
        return
    run = run_finetuning(start, config)
    num_validation = run.record.num_validation_images or 0
    measured = {
        "pooling": None,
        "num_labels": (run.record.num_train_images or 0) + num_validation,
        "num_validation_labels": num_validation,
        "validation_accuracy": run.metrics["eval/accuracy"],
        "settings": {"best_epoch": run.metrics["best_epoch"], "epochs": config.train.epochs, "seed": config.train.seed},
    }
    measurements.add({**line, **measured}, run.test.probabilities)
