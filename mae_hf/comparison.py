"""The numbers of a comparison: finished fine-tuning runs read from their folders, checked, and set side by side.

Nothing is taken on trust: test scores are computed again from predictions.parquet, and runs that do not answer the
same question (other test images, classes or network) are refused.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mae_hf import cli
from mae_hf.config import ConfigError, EncoderConfig, FinetuneConfig, require

# Scores that differ by less are the same score, computed twice.
TOLERANCE = 1e-6
_REQUIRED_METRICS = ("test/accuracy", "test/f1", "eval/accuracy", "best_epoch")


@dataclass(frozen=True, eq=False)
class Run:
    """A finished fine-tuning run.

    Args:
        path: the run folder.
        config: its resolved config.
        record: run.json.
        history: lines of metrics.jsonl.
        metrics: metrics.json.
        class_names: the classes of its model.
        index: int64 (n,), test images in rising order.
        labels: int64 (n,), their classes.
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
    scores: dict[str, Any]

    @property
    def from_scratch(self) -> bool:
        """Whether it started from random weights."""
        return self.config.model.init == "scratch"

    @property
    def best_validation_accuracy(self) -> float:
        """The greatest validation accuracy, that of the weights that were kept."""
        return float(self.metrics["eval/accuracy"])

    def epochs_to(self, accuracy: float) -> float | None:
        """The first epoch at which validation accuracy is at least `accuracy`; None if it never is."""
        for line in self.history:
            if line.get("eval/accuracy", -1.0) >= accuracy - TOLERANCE:
                return float(line["epoch"])
        return None


def read_run(path: str | Path) -> Run:
    """The finished fine-tuning run in a folder, with its test scores computed again.

    Raises:
        ConfigError: not a finished fine-tuning run, or its files contradict each other.
    """
    path = Path(path)
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
    id2label = _read_json(path / "model" / "config.json").get("id2label", {})
    class_names = tuple(id2label[key] for key in sorted(id2label, key=int))
    index, labels, predictions, probabilities = _read_predictions(path / "predictions.parquet")

    from mae_hf.evaluation.metrics import classification_metrics  # seconds: what is missing has been said by now

    try:
        scores = classification_metrics(predictions, labels, probabilities, class_names)
    except ValueError as error:
        raise ConfigError(f"{path}/predictions.parquet: {error}") from None
    for key in ("accuracy", "f1"):
        require(
            abs(scores[key] - metrics[f"test/{key}"]) <= TOLERANCE,
            f"{path}: metrics.json says test/{key} {metrics[f'test/{key}']:.6f}, predictions.parquet gives "
            f"{scores[key]:.6f}: the files are from different runs, run scripts/finetune.py again",
        )
    return Run(
        path=path,
        config=cli.load(FinetuneConfig, path / "config.yaml"),
        record=_read_json(path / "run.json"),
        history=_read_lines(path / "metrics.jsonl"),
        metrics=metrics,
        class_names=class_names,
        index=index,
        labels=labels,
        scores=scores,
    )


def _read_json(path: Path) -> dict[str, Any]:
    require(path.is_file(), f"{path} is missing: every run writes it, run scripts/finetune.py again")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    require(path.is_file(), f"{path} is missing: the curves are drawn from it, run scripts/finetune.py again")
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ConfigError(f"{path}, line {number} is not valid JSON: {error}") from None
    return lines


def _read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """index, label, prediction (n,) and probabilities (n, num_classes), in the order of the index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ("index", "label", "prediction", "probabilities")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from None
    missing = [name for name in columns if name not in table.column_names]
    require(not missing, f"{path} lacks the columns {', '.join(missing)}: it must have {', '.join(columns)}")
    index, labels, predictions = (table[name].to_numpy() for name in columns[:3])
    lists = table["probabilities"].to_pylist()
    require(len({len(row) for row in lists}) <= 1, f"{path}: rows of probabilities differ in length")
    require(len(np.unique(index)) == len(index), f"{path} names an image twice in its column index")
    order = np.argsort(index)
    return index[order], labels[order], predictions[order], np.asarray(lists, dtype=np.float64)[order]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two arms that can be compared, each led by its best run by validation accuracy.

    Args:
        pretrained: runs from a pre-trained encoder, the best first.
        scratch: runs from random weights, the best first.
    """

    pretrained: tuple[Run, ...]
    scratch: tuple[Run, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, the pre-trained ones first."""
        return self.pretrained + self.scratch

    @property
    def points(self) -> float:
        """Percentage points of test accuracy that pre-training gained; negative where it lost."""
        return 100 * (self.pretrained[0].scores["accuracy"] - self.scratch[0].scores["accuracy"])

    def answer(self) -> str:
        """The result in one sentence, however it turned out."""
        ours, baseline = (100 * arm[0].scores["accuracy"] for arm in (self.pretrained, self.scratch))
        num_labels = self.scratch[0].record.get("num_train_images")  # the same in all runs, as their data are
        labels = f"With {num_labels:,} labels" if num_labels else "With the same labels"
        verdict = f"{self.points:+.1f} points"
        if round(self.points, 1) == 0:
            verdict = "less than 0.1 points apart"
        elif self.points < 0:
            verdict += ", so pre-training did not help here"
        return (
            f"{labels}, the MAE-pre-trained ViT reaches {ours:.1f} % test accuracy, the same network from scratch "
            f"{baseline:.1f} %: {verdict} ({self._selection()})."
        )

    def _selection(self) -> str:
        ours, baseline = len(self.pretrained), len(self.scratch)
        if ours == baseline:
            return "1 run each" if ours == 1 else f"of {ours} runs each, the best by validation accuracy"
        counts = [f"best of {n} by validation accuracy" if n > 1 else "1 run" for n in (ours, baseline)]
        return f"pre-trained: {counts[0]}; scratch: {counts[1]}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each run, as comparison.json holds it: accuracies and F1 in 0..1."""
        target = self.scratch[0].best_validation_accuracy
        return [
            {
                "run": str(run.path),
                "init": run.config.model.init,
                "chosen": run is self.pretrained[0] or run is self.scratch[0],
                "test_accuracy": run.scores["accuracy"],
                "test_f1": run.scores["f1"],
                "test_loss": run.scores["loss"],
                "best_validation_accuracy": run.best_validation_accuracy,
                "best_epoch": run.metrics["best_epoch"],
                "epochs_to_scratch_best": run.epochs_to(target),
                "seed": run.config.train.seed,
                "num_parameters": run.record.get("num_parameters"),
            }
            for run in self.runs
        ]


def compare(pretrained: Sequence[str | Path], scratch: Sequence[str | Path]) -> Comparison:
    """Reads the runs of both arms and sees to it that they answer one question.

    Args:
        pretrained: run folders of fine-tuning from a pre-trained encoder.
        scratch: run folders of the same training from random weights.

    Raises:
        ConfigError: a folder that is no finished run, is in the wrong arm or given twice, or that differs from the
            first in test images, classes, labels or network.
    """
    resolved = [Path(path).resolve() for path in (*pretrained, *scratch)]
    twice = [str(path) for path, key in zip((*pretrained, *scratch), resolved, strict=True) if resolved.count(key) > 1]
    require(not twice, f"{twice[0] if twice else ''} is given more than once: name each run in one arm, once")
    ours, baseline = [read_run(path) for path in pretrained], [read_run(path) for path in scratch]
    for run in ours:
        require(
            not run.from_scratch,
            f"{run.path} was trained from scratch (model.init: scratch): name it after --scratch, not --pretrained",
        )
    for run in baseline:
        require(
            run.from_scratch,
            f"{run.path} started from {run.config.model.init}, not from scratch: name it after --pretrained, not "
            "--scratch",
        )
    first, *others = ours + baseline
    for other in others:
        _check_comparable(first, other)
    return Comparison(pretrained=_best_first(ours), scratch=_best_first(baseline))


def _best_first(runs: Sequence[Run]) -> tuple[Run, ...]:
    return tuple(sorted(runs, key=lambda run: run.best_validation_accuracy, reverse=True))


def _check_comparable(first: Run, other: Run) -> None:
    require(
        first.class_names == other.class_names,
        f"{first.path} has the classes {', '.join(first.class_names)}, {other.path} {', '.join(other.class_names)}: "
        "compare runs on the same classes",
    )
    same = np.array_equal(first.index, other.index) and np.array_equal(first.labels, other.labels)
    require(
        same,
        f"{first.path} ({len(first.index)} images) and {other.path} ({len(other.index)} images) were tested on "
        "different images or labels: compare runs on the same data and split",
    )
    trained_on = [run.record.get("data_fingerprint") for run in (first, other)]
    require(
        trained_on[0] == trained_on[1],
        f"{first.path} and {other.path} were trained on different images or labels (data_fingerprint "
        f"{trained_on[0]} and {trained_on[1]} in run.json): compare runs on the same data and split",
    )
    shape = [field.name for field in dataclasses.fields(EncoderConfig)]
    sizes = [name for name in shape if getattr(first.config.model, name) != getattr(other.config.model, name)]
    require(
        not sizes,
        f"{first.path} and {other.path} are different networks: they differ in "
        f"{', '.join('model.' + name for name in sizes)}",
    )
