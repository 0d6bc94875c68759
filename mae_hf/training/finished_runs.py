"""Finished fine-tuning runs, read from their folders and checked.

Nothing is taken on trust: test scores are computed again from predictions.parquet, and files that contradict each other
are refused.

Shapes: n test images, C classes, E evaluations of a run.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mae_hf.config import parse
from mae_hf.config.commands import MACHINE_SETTINGS, FinetuneConfig
from mae_hf.config.data import check_class_names
from mae_hf.errors import ConfigError, require
from mae_hf.models.locate import SCRATCH
from mae_hf.training.provenance import check_record, find_provenance

# Scores that differ by less are the same score, computed twice.
TOLERANCE = 1e-6
# A validation accuracy is measured twice, by batches of other sizes: in half precision an image may change sides.
_VALIDATION_TOLERANCE = 0.01
_PROBABILITY_TOLERANCE = 1e-3
# The probabilities of a file are rounded to float32, of which the logarithm is taken.
_LOSS_TOLERANCE = 1e-4
_REQUIRED_METRICS = ("test/accuracy", "test/f1", "eval/accuracy", "best_epoch")
# Settings that are no part of a recipe: of the machine, the seed, what is logged and kept, and the name of the images,
# which are known by their fingerprint.
_NOT_RECIPE = MACHINE_SETTINGS | {
    "data.source", "train.seed", "train.log_every_steps", "train.save_every_epochs",
    "train.keep_checkpoints", "train.figure_every_epochs", "train.probe_every_epochs",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Run:
    """A finished fine-tuning run.

    Args:
        path: the run folder.
        config: its resolved config.
        record: run.json.
        history: lines of metrics.jsonl, without values that are not finite.
        metrics: metrics.json.
        class_names: the C classes of its model.
        index: int64 (n,), test images in rising order.
        labels: int64 (n,), their classes.
        predictions: int64 (n,), predicted classes.
        probabilities: float64 (n, C).
        seen: bool (n,), whether pre-training has seen each test image; None if it is not known.
        scores: what `classification_metrics` computes from its predictions.
    """

    path: Path
    config: FinetuneConfig
    record: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    class_names: tuple[str, ...]
    index: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    seen: np.ndarray | None
    scores: dict[str, Any]

    @property
    def from_scratch(self) -> bool:
        """Whether it started from random weights."""
        return self.config.model.init == SCRATCH

    @property
    def correct(self) -> np.ndarray:
        """bool (n,), whether each test image was predicted right."""
        return self.predictions == self.labels

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """Epochs and validation accuracies of its E evaluations."""
        lines = [line for line in self.history if "eval/accuracy" in line]
        return [float(line["epoch"]) for line in lines], [float(line["eval/accuracy"]) for line in lines]

    @property
    def best_validation_accuracy(self) -> float:
        """The greatest validation accuracy, that of the weights that were kept."""
        return max(self.curve[1])

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        """Every setting of the run itself that may change the result, without the seed."""
        return tuple((key, value) for key, value in parse.flatten(self.config) if key not in _NOT_RECIPE)

    @cached_property
    def pretraining(self) -> tuple[tuple[str, Any], ...]:
        """The same of the pre-training of its encoder, and its images; empty from scratch or where it is not there."""
        found = None if self.from_scratch else find_provenance(self.config.model.init)
        if found is None or found.config is None:
            return ()
        images = found.record.get("data_fingerprint", found.config.data.sources)
        theirs = ((key, value) for key, value in parse.flatten(found.config) if key not in _NOT_RECIPE)
        return (("images", images), *theirs)

    @property
    def recipe(self) -> tuple[tuple[str, Any], ...]:
        """Every setting that may change the result, without the seed: runs that agree in it differ by chance.

        An encoder counts by the settings of its pre-training, where that run is there: several seeds are one recipe.
        """
        if not self.pretraining:
            return self.settings
        own = (pair for pair in self.settings if pair[0] != "model.init")
        return (*own, *((f"pretraining.{key}", value) for key, value in self.pretraining))


def read_run(path: str | Path) -> Run:
    """The finished fine-tuning run in a folder, with its test scores computed again.

    Raises:
        ConfigError: not a finished fine-tuning run, or its files contradict each other.
    """
    path = Path(path)
    metrics = _read_metrics(path)
    history = _read_lines(path / "metrics.jsonl")
    id2label = _read_json(path / "model" / "config.json").get("id2label", {})
    require(isinstance(id2label, dict), f"{path}/model/config.json: id2label is not a class name for each number")
    require(
        all(key.isdecimal() and len(key) < 10 for key in id2label),
        f"{path}/model/config.json: id2label has keys that are no class numbers, {', '.join(id2label)[:60]}",
    )
    known = all(isinstance(name, str) for name in id2label.values())
    require(known, f"{path}/model/config.json: id2label has names that are no text")
    class_names = tuple(id2label[key] for key in sorted(id2label, key=int))
    check_class_names(class_names, f"{path}/model/config.json")
    index, labels, predictions, probabilities, seen = _read_predictions(path / "predictions.parquet")

    # seconds: what is missing has been said by now
    from mae_hf.evaluation.metrics import classification_metrics
    from mae_hf.evaluation.unseen import unseen_metrics

    try:
        scores = classification_metrics(predictions, labels, probabilities, class_names)
    except ValueError as error:
        raise ConfigError(f"{path}/predictions.parquet: {error}") from None
    _check_probabilities(path, predictions, probabilities)
    computed = {f"test/{key}": scores[key] for key in ("accuracy", "f1")}
    computed |= unseen_metrics(probabilities, labels, class_names, seen)
    for key, value in computed.items():
        said = metrics.get(key, math.nan)
        require(
            isinstance(said, float) or _is_number(said), f"{path}/metrics.json says {key} {said}, which is no number"
        )
        require(
            abs(value - said) <= (_LOSS_TOLERANCE if key.endswith("loss") else TOLERANCE),
            f"{path}: metrics.json says {key} {said:.6f}, predictions.parquet gives {value:.6f}: the files are from "
            "different runs, run scripts/finetune.py again",
        )
    record = _read_json(path / "run.json")
    try:
        check_record(record)
    except ValueError as error:
        raise ConfigError(
            f"{path}/run.json is not what a run writes ({error}): run scripts/finetune.py again"
        ) from None
    run = Run(
        path=path,
        config=parse.read_file(FinetuneConfig, path / "config.yaml"),
        record=record,
        history=history,
        metrics=metrics,
        class_names=class_names,
        index=index,
        labels=labels,
        predictions=predictions,
        probabilities=probabilities,
        seen=seen,
        scores=scores,
    )
    best = max(run.curve[1], default=math.nan)
    require(
        abs(best - metrics["eval/accuracy"]) <= _VALIDATION_TOLERANCE,
        f"{path}: metrics.json says eval/accuracy {metrics['eval/accuracy']:.4f}, the best of metrics.jsonl is "
        f"{best:.4f}: the files are from different runs, run scripts/finetune.py again",
    )
    return run


def _read_metrics(path: Path) -> dict[str, Any]:
    """metrics.json of a run folder that has everything a run has."""
    require(path.is_dir(), f"{path} is not a folder: give the run folder of a fine-tuning run (its --output_dir)")
    require(
        (path / "config.yaml").is_file(),
        f"{path} has no config.yaml: give a run folder, as scripts/finetune.py makes it",
    )
    require(
        (path / "metrics.json").is_file(),
        f"{path} is unfinished (no metrics.json): run its command again, it resumes, and compare then",
    )
    require(
        (path / "predictions.parquet").is_file() and (path / "model" / "config.json").is_file(),
        f"{path} has no predictions.parquet or no model/config.json: give fine-tuning runs, not pre-training runs",
    )
    metrics = _read_json(path / "metrics.json")
    missing = [key for key in _REQUIRED_METRICS if key not in metrics]
    require(not missing, f"{path}/metrics.json lacks {', '.join(missing)}: run scripts/finetune.py again")
    for key in _REQUIRED_METRICS:
        value = metrics[key]
        require(
            _is_number(value),
            f"{path}/metrics.json says {key} {value}, which is no finite number: the run failed, run "
            "scripts/finetune.py again",
        )
    return metrics


def _is_number(value: Any) -> bool:
    """Whether it is finite, and no whole number that a float has no room for."""
    return isinstance(value, int | float) and -1e300 < value < 1e300


def _read_json(path: Path) -> dict[str, Any]:
    require(path.is_file(), f"{path} is missing: every run writes it, run scripts/finetune.py again")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    require(isinstance(content, dict), f"{path} is not a JSON object: run scripts/finetune.py again")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    require(path.is_file(), f"{path} is missing: the curves are drawn from it, run scripts/finetune.py again")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number} is not valid JSON: {error}") from None
        # A value that was not finite is written as null.
        known = isinstance(line, dict) and all(isinstance(value, int | float | None) for value in line.values())
        require(
            known and _is_number(line.get("epoch")) and (not lines or line["epoch"] >= lines[-1]["epoch"]),
            f"{path}, line {number} does not hold numbers and a rising epoch: run scripts/finetune.py again",
        )
        lines.append({key: value for key, value in line.items() if _is_number(value)})
    return lines


def _read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """index, label, prediction (n,), probabilities (n, C) and seen (n,) or None, in the order of the index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ("index", "label", "prediction", "probabilities", "seen")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from None
    missing = [name for name in columns if name not in table.column_names]
    require(not missing, f"{path} lacks the columns {', '.join(missing)}: it must have {', '.join(columns)}")
    is_known = table["seen"].null_count < len(table) or not len(table)
    empty = [name for name in columns if table[name].null_count and (name != "seen" or is_known)]
    require(not empty, f"{path} has empty values in {', '.join(empty)}: run scripts/finetune.py again")
    types = [table.schema.field(name).type for name in columns]
    are_lists = pa.types.is_list(types[3]) and pa.types.is_floating(types[3].value_type)
    require(
        all(map(pa.types.is_integer, types[:3])) and are_lists and pa.types.is_boolean(types[4]),
        f"{path} has the types {', '.join(map(str, types))} in {', '.join(columns)}: whole numbers, lists of "
        "probabilities and true or false are needed",
    )
    index, labels, predictions = (table[name].to_numpy() for name in columns[:3])
    lists = table["probabilities"].to_pylist()
    require(len({len(row) for row in lists}) <= 1, f"{path}: rows of probabilities differ in length")
    require(len(np.unique(index)) == len(index), f"{path} names an image twice in its column index")
    order = np.argsort(index)
    seen = table["seen"].to_numpy()[order].astype(bool) if is_known else None
    return index[order], labels[order], predictions[order], np.asarray(lists, dtype=np.float64)[order], seen


def _check_probabilities(path: Path, predictions: np.ndarray, probabilities: np.ndarray) -> None:
    sums = probabilities.sum(axis=1)
    furthest = int(np.abs(sums - 1).argmax())
    require(
        abs(sums[furthest] - 1) <= _PROBABILITY_TOLERANCE,
        f"{path}/predictions.parquet: the probabilities of row {furthest} add up to {sums[furthest]:.4f}, not to 1: "
        "run scripts/finetune.py again",
    )
    chosen = np.take_along_axis(probabilities, predictions[:, None], axis=1)[:, 0]
    other = np.flatnonzero(chosen < probabilities.max(axis=1))
    require(
        len(other) == 0,
        f"{path}/predictions.parquet: {len(other)} predictions are not the class of the greatest probability: the "
        "columns are from different runs, run scripts/finetune.py again",
    )
