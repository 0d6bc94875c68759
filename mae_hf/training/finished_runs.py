"""Finished fine-tuning runs and probes, read from their folders; files that are torn or of different runs are refused.

Shapes: C classes, E evaluations of a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mae_hf.config import parse
from mae_hf.config.commands import EvaluateConfig
from mae_hf.config.data import check_class_names
from mae_hf.config.runs import MACHINE_SETTINGS, FinetuneConfig
from mae_hf.errors import require
from mae_hf.files import read_json
from mae_hf.models.io import SHAPE_KEYS
from mae_hf.models.locate import SCRATCH
from mae_hf.training.predictions import AGAIN, Predictions, read_predictions
from mae_hf.training.provenance import RunRecord, find_provenance
from mae_hf.training.run_folder import read_metrics

TOLERANCE = 1e-6  # scores that differ by less are the same score, computed twice
# Settings that are not part of a recipe: machine, seed, logging, checkpoints, and the name of the source, because
# fingerprints identify the images.
_NOT_RECIPE = MACHINE_SETTINGS | {
    "data.source", "train.seed", "train.log_every_steps", "train.save_every_epochs",
    "train.keep_checkpoints", "train.figure_every_epochs", "train.probe_every_epochs",
}  # fmt: skip

RecipeSettings = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished fine-tuning run, or a probe of frozen features."""

    path: Path  # the run folder
    config: FinetuneConfig | EvaluateConfig  # its resolved config; of a probe the latter
    record: RunRecord  # run.json
    init: str  # the encoder that it started from, or that it probes, as the command named it; or `scratch`
    shape: dict[str, int]  # the architecture of its encoder, by the fields of `EncoderConfig`
    settings: RecipeSettings  # every setting of the run itself that may change the result, without the seed
    class_names: tuple[str, ...]  # the C classes of its model
    test: Predictions  # its predictions of test images
    validation: Predictions  # its predictions of validation images
    history: Sequence[dict[str, float]] = ()  # lines of metrics.jsonl, without values that are not finite
    seed: int | None = None  # of fine-tuning; a probe is fitted without chance
    probe: str | None = None  # such as `linear-cls`; None for fine-tuning

    @property
    def name(self) -> str:
        """The folder, and the probe in it."""
        return f"{self.path} {self.probe}" if self.probe else str(self.path)

    @property
    def from_scratch(self) -> bool:
        """Whether it started from random weights."""
        return not self.probe and self.init == SCRATCH

    @property
    def encoder(self) -> str | None:
        """What identifies the encoder that it started from: digest of its weights, else path; None for scratch."""
        if self.from_scratch:
            return None
        return self.record.init_digest or str(Path(self.init).expanduser().resolve())

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """Epochs and validation accuracies of its E evaluations."""
        lines = [line for line in self.history if "eval/accuracy" in line]
        return [line["epoch"] for line in lines], [line["eval/accuracy"] for line in lines]

    @property
    def best_epoch(self) -> float | None:
        """The epoch of the kept weights, the first with the greatest validation accuracy; None for a probe."""
        epochs, accuracies = self.curve
        return epochs[int(np.argmax(accuracies))] if accuracies else None

    @property
    def best_validation_accuracy(self) -> float:
        """The greatest validation accuracy of fine-tuning, which the kept weights have; of a probe its only one."""
        return float(self.validation.correct.mean()) if self.probe else max(self.curve[1])

    @cached_property
    def pretraining(self) -> RecipeSettings:
        """The settings of its encoder's pre-training, with its images; empty if that run is missing."""
        found = None if self.from_scratch else find_provenance(self.init)
        if found is None or found.config is None:
            return ()
        return (("images", found.record.data_fingerprint or found.config.data.sources), *_recipe_settings(found.config))

    @property
    def recipe(self) -> RecipeSettings:
        """Every setting that may change the result, without the seed: runs that agree in it differ by chance.

        An encoder counts by the settings of its pre-training, where that run exists: several seeds are one recipe.
        """
        if not self.pretraining:
            return self.settings
        own = (pair for pair in self.settings if pair[0] != "model.init")
        return (*own, *((f"pretraining.{key}", value) for key, value in self.pretraining))


def _recipe_settings(config: Any) -> RecipeSettings:
    return tuple((key, value) for key, value in parse.flatten(config).items() if key not in _NOT_RECIPE)


def read_runs(path: str | Path) -> list[Run]:
    """Return the finished fine-tuning run in a folder, or every probe that `evaluate --probe` wrote into it.

    ConfigError if the folder holds neither, or its files are damaged or mixed.
    """
    path = Path(path)
    return _read_probes(path) if (path / "predictions").is_dir() else [read_run(path)]


def _read_probes(path: Path) -> list[Run]:
    again = "run evaluate again"
    require((path / "config.yaml").is_file(), f"{path} has predictions, but no config.yaml: {again}")
    config = parse.read_file(EvaluateConfig, path / "config.yaml")
    record = read_json(path / "run.json", RunRecord)
    metrics = read_json(path / "metrics.json", dict[str, object])
    names, shape = record.class_names or (), record.encoder_shape or {}
    is_complete = len(names) > 0 and shape.keys() == set(SHAPE_KEYS)
    require(is_complete, f"{path}/run.json lacks class_names, or the encoder_shape of an encoder: {again}")
    check_class_names(names, f"{path}/run.json")
    data = [(key, value) for key, value in _recipe_settings(config) if key.startswith("data.")]
    runs = []
    for probe in (f"{name}-{pooling}" for name in config.probes if name != "rank" for pooling in ("cls", "mean")):
        of_test = read_predictions(path / "predictions" / f"{probe}.parquet", len(names))
        of_validation = read_predictions(path / "validation_predictions" / f"{probe}.parquet", len(names))
        own = (("probe", probe), ("model.init", config.model), *data)
        runs.append(Run(path, config, record, config.model, shape, own, names, of_test, of_validation, probe=probe))
        for key, of_role in (("accuracy", of_test), ("validation_accuracy", of_validation)):
            key = f"{probe.replace('-', '/')}/{key}"
            value = metrics.get(key)
            is_same = isinstance(value, float) and abs(value - of_role.correct.mean()) <= TOLERANCE
            problem = f"metrics.json has {key} {value!r:.40}, its predictions have {of_role.correct.mean():.6f}"
            require(is_same, f"{path}: {problem}. The files are from different evaluations: {again}")
    require(len(runs) > 0, f"{path} has no probe that predicts classes: run evaluate with --probe linear")
    return runs


def read_run(path: str | Path) -> Run:
    """Return the finished fine-tuning run in a folder; ConfigError if it is none, or its files are damaged or mixed."""
    path = Path(path)
    require(path.is_dir(), f"{path} is not a folder: give the run folder of a fine-tuning run (its --output_dir)")
    for name, message in (
        ("config.yaml", "give a run folder, as finetune writes it"),
        ("metrics.json", "the run is unfinished. Run its command again, it resumes, and compare then"),
        ("predictions.parquet", "give fine-tuning runs, not pre-training runs"),
        ("metrics.jsonl", f"the curves are drawn from it: {AGAIN}"),
    ):
        require((path / name).is_file(), f"{path} has no {name}: {message}")
    class_names = _read_class_names(path / "model" / "config.json")
    config = parse.read_file(FinetuneConfig, path / "config.yaml")
    run = Run(
        path=path,
        config=config,
        record=read_json(path / "run.json", RunRecord),
        init=config.model.init,
        shape={key: getattr(config.model, key) for key in SHAPE_KEYS},
        settings=_recipe_settings(config),
        class_names=class_names,
        test=read_predictions(path / "predictions.parquet", len(class_names)),
        validation=read_predictions(path / "validation_predictions.parquet", len(class_names)),
        history=read_metrics(path),
        seed=config.train.seed,
    )
    logged, predicted = max(run.curve[1], default=np.nan), run.validation.correct.mean()
    problem = f"metrics.jsonl has eval/accuracy {logged:.6f}, validation_predictions.parquet has {predicted:.6f}"
    # batches of different sizes round differently: in half precision, an image may change its class
    is_same = abs(logged - predicted) <= 0.01
    require(is_same, f"{path}: {problem}. The files are from different runs, or the run has failed: {AGAIN}")
    return run


def _read_class_names(path: Path) -> tuple[str, ...]:
    @dataclass
    class ModelConfig:
        id2label: dict[str, str]

    id2label = read_json(path, ModelConfig).id2label
    numbers = [str(number) for number in range(len(id2label))]
    require(set(id2label) == set(numbers), f"{path}: the keys of id2label are not the class numbers 0, 1, ...: {AGAIN}")
    class_names = tuple(id2label[number] for number in numbers)
    check_class_names(class_names, str(path))
    return class_names
