"""The numbers of a comparison: means and spreads, intervals over test images, paired tests, epochs to a target.

A recipe is a set of runs that differ in their seeds alone. An arm is a list of recipes, the chosen recipe first. The
bootstrap repeats that choice on resampled images.

Shapes: n images.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mae_hf.evaluation.metrics import classification_metrics
from mae_hf.evaluation.statistics import (
    Candidates,
    Interval,
    McNemar,
    Spread,
    Welch,
    epochs_to_reach,
    mcnemar,
    mean_spread,
    mean_under_curve,
    median_spread,
    percentile_interval,
    resample_arms,
    welch,
)
from mae_hf.training.finished_runs import TOLERANCE, Run

Recipe = Sequence[Run]
Units = Literal["seeds", "encoders", "fine-tuning seeds of one encoder"]


@dataclass(frozen=True)
class Arm:
    """The runs of the chosen recipe of an arm.

    A spread is over independent units: over seeds from scratch, and over encoders, each the mean of its fine-tuning
    runs. With a single encoder it is over its fine-tuning seeds, which says nothing about other pre-training runs.
    """

    seeds: tuple[int, ...]  # of its runs
    spread_over: Units
    num_units: int
    accuracy: Spread  # on test images, as F1 and loss
    f1: Spread
    loss: Spread
    best_validation_accuracy: Spread
    accuracy_interval: Interval | None  # bootstrap over images of the mean accuracy, choosing the recipe anew each time
    mean_validation_accuracy: Spread | None  # mean height of the validation curve over `Results.epochs`
    epochs_to_target: Spread  # first epoch of each run at which it reaches `Results.target`; `inf`: never

    @property
    def is_of_one_encoder(self) -> bool:
        """Whether its spread leaves out pre-training."""
        return self.spread_over == "fine-tuning seeds of one encoder"

    def describe_units(self) -> str:
        """Return what its spread is over, such as `3 encoders`."""
        if self.num_units == 1:
            return "1 run"
        count = f"{self.num_units} {self.spread_over}"
        return f"{count} (each the mean of its fine-tuning runs)" if len(self.seeds) > self.num_units else count


@dataclass(frozen=True)
class Pair:
    """A paired test of two runs on the same test images."""

    pretrained: str  # its run folder
    scratch: str  # its run folder
    seed: int | None  # of both; None where no seeds match, and the best runs on validation are paired
    test: McNemar  # first: pre-trained


@dataclass(frozen=True)
class Choice:
    """A recipe that validation could choose, and the gain that would follow."""

    is_pretrained: bool
    is_chosen: bool
    name: str  # the settings that distinguish it from the arm's other recipes
    num_runs: int
    validation_accuracy: float  # the mean of its runs' best, which decides
    chosen: float  # the share of resampled validation images that choose it
    accuracy: float  # on test images
    gain: float  # against the chosen recipe of the other arm; negative where pre-training lost


@dataclass(frozen=True)
class Unseen:
    """Both arms on the test images that no pre-training of these runs has seen."""

    num_images: int
    pretrained: Spread
    scratch: Spread
    gain: float
    gain_interval: Interval | None


@dataclass(frozen=True)
class Results:
    """Both arms and their difference."""

    pretrained: Arm
    scratch: Arm
    choices: tuple[Choice, ...]  # every recipe of both arms
    num_test_images: int
    num_validation_images: int
    num_seen_test_images: int | None  # by a pre-training of these runs; None if unknown
    unseen: Unseen | None  # None where the unseen images are unknown, all or none
    gain: float  # of test accuracy, in 0..1; negative where pre-training lost
    gain_interval: Interval | None  # resamples validation images, chooses the recipes, and resamples test images
    seeds_test: Welch | None  # None without several independent runs of the pipeline in both arms
    pairs: tuple[Pair, ...]
    target: float  # the scratch arm's best validation accuracy, the mean over its runs
    epochs: tuple[float, float] | None  # the range in which every run was evaluated

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, with None for what is unknown and for epochs that are never reached."""
        return _without_infinity(dataclasses.asdict(self))


def _without_infinity(value: Any) -> Any:
    """JSON has no word for infinity."""
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measure(pretrained: Sequence[Recipe], scratch: Sequence[Recipe]) -> Results:
    """Return the results of two arms that were validated and tested on the same images.

    Args:
        pretrained: the recipes of the arm, the chosen one first; its runs, the best by validation first.
        scratch: the same of the other arm.
    """
    ours, baseline = pretrained[0], scratch[0]
    target = float(np.mean([run.best_validation_accuracy for run in baseline]))
    curves = [run.curve[0] for run in (*ours, *baseline)]
    start, end = max(epochs[0] for epochs in curves), min(epochs[-1] for epochs in curves)
    shared = (start, end) if start < end else None
    candidates = [
        Candidates(
            validation=np.array([_share_correct(runs, lambda run: run.validation.correct) for runs in recipes]),
            test=np.array([_share_correct(runs, lambda run: run.test.correct) for runs in recipes]),
        )
        for recipes in (pretrained, scratch)
    ]
    resampled = resample_arms(candidates)
    arms = [
        _arm(runs, target, shared, percentile_interval(arm.accuracy))
        for runs, arm in zip((ours, baseline), resampled, strict=True)
    ]
    are_independent = not any(arm.is_of_one_encoder for arm in arms)
    masks = [run.test.seen for run in ours if run.test.seen is not None]
    seen = np.any(masks, axis=0) if len(masks) == len(ours) else None
    accuracies = [arm.test.mean(axis=1) for arm in candidates]
    return Results(
        pretrained=arms[0],
        scratch=arms[1],
        choices=tuple(
            Choice(
                is_pretrained=is_pretrained,
                is_chosen=number == 0,
                name=recipe_name(runs, recipes),
                num_runs=len(runs),
                validation_accuracy=float(np.mean([run.best_validation_accuracy for run in runs])),
                chosen=float(resampled[not is_pretrained].chosen[number]),
                accuracy=float(own[number]),
                gain=float(own[number] - other[0] if is_pretrained else other[0] - own[number]),
            )
            for is_pretrained, recipes, own, other in (
                (True, pretrained, *accuracies),
                (False, scratch, *reversed(accuracies)),
            )
            for number, runs in enumerate(recipes)
        ),
        num_test_images=len(baseline[0].test),
        num_validation_images=len(baseline[0].validation),
        num_seen_test_images=None if seen is None else int(seen.sum()),
        unseen=None if seen is None or not 0 < seen.sum() < len(seen) else _unseen(ours, baseline, candidates, ~seen),
        gain=arms[0].accuracy.center - arms[1].accuracy.center,
        gain_interval=percentile_interval(resampled[0].accuracy - resampled[1].accuracy),
        seeds_test=welch(arms[0].accuracy.values, arms[1].accuracy.values) if are_independent else None,
        pairs=_pairs(ours, baseline),
        target=target,
        epochs=shared,
    )


def recipe_name(runs: Recipe, recipes: Sequence[Recipe]) -> str:
    """Return `key value` of the settings in which the recipes of an arm differ, as these runs have them."""
    others = [dict(other[0].recipe) for other in recipes]
    differing = [(key, value) for key, value in runs[0].recipe if any(other.get(key) != value for other in others)]
    return ", ".join(f"{key} {value}" for key, value in differing) or "the only one"


@functools.cache
def scores_on_test(run: Run) -> dict[str, Any]:
    """Return what `classification_metrics` computes from a run's predictions of test images."""
    return classification_metrics(run.test.probabilities, run.test.labels, run.class_names)


def epochs_to(run: Run, accuracy: float) -> float:
    """Return the first epoch at which validation accuracy is at least `accuracy`; `inf` if it never is."""
    return epochs_to_reach(*run.curve, accuracy - TOLERANCE)


def f1_of_classes(runs: Recipe) -> dict[str, float]:
    """Return F1 of each class, the mean over runs; NaN for a class without test images."""
    names, tested = runs[0].class_names, set(runs[0].test.labels.tolist())
    return {
        name: float(np.mean([scores_on_test(run)["f1_per_class"][name] for run in runs])) if i in tested else math.nan
        for i, name in enumerate(names)
    }


def recall_of_classes(runs: Recipe) -> dict[str, float]:
    """Return the share of each class that is recognised, the mean over runs; NaN for a class without test images."""
    matrix = np.mean([scores_on_test(run)["confusion_matrix"] for run in runs], axis=0)
    with np.errstate(invalid="ignore"):
        return dict(zip(runs[0].class_names, np.diag(matrix) / matrix.sum(axis=1), strict=True))


def _units(runs: Recipe) -> list[list[Run]]:
    """The independent units of an arm: its encoders with their fine-tuning runs; with at most one encoder, its runs."""
    by_encoder: dict[str | None, list[Run]] = {}
    for run in runs:
        by_encoder.setdefault(run.encoder, []).append(run)
    return list(by_encoder.values()) if len(by_encoder) > 1 else [[run] for run in runs]


def _of_units(runs: Recipe, number: Callable[[Run], float]) -> Spread:
    return mean_spread([float(np.mean([number(run) for run in unit])) for unit in _units(runs)])


def _share_correct(runs: Recipe, correct: Callable[[Run], NDArray[np.bool_]]) -> NDArray[np.float64]:
    """The share of the runs that classify each image correctly, (n,); every unit has the same weight."""
    return np.mean([np.mean([correct(run) for run in unit], axis=0) for unit in _units(runs)], axis=0)


def _arm(runs: Recipe, target: float, epochs: tuple[float, float] | None, interval: Interval | None) -> Arm:
    has_encoders = len({run.encoder for run in runs}) > 1
    return Arm(
        seeds=tuple(run.config.train.seed for run in runs),
        spread_over=(
            "seeds" if runs[0].from_scratch else "encoders" if has_encoders else "fine-tuning seeds of one encoder"
        ),
        num_units=len(_units(runs)),
        accuracy=_of_units(runs, lambda run: float(run.test.correct.mean())),
        f1=_of_units(runs, lambda run: scores_on_test(run)["f1"]),
        loss=_of_units(runs, lambda run: scores_on_test(run)["loss"]),
        best_validation_accuracy=_of_units(runs, lambda run: run.best_validation_accuracy),
        accuracy_interval=interval,
        mean_validation_accuracy=_of_units(runs, lambda run: mean_under_curve(*run.curve, *epochs)) if epochs else None,
        epochs_to_target=median_spread([epochs_to(run, target) for run in runs]),
    )


def _unseen(ours: Recipe, baseline: Recipe, candidates: Sequence[Candidates], rows: NDArray[np.bool_]) -> Unseen:
    resampled = resample_arms([dataclasses.replace(arm, test=arm.test[:, rows]) for arm in candidates])
    spreads = [_of_units(runs, lambda run: float(run.test.correct[rows].mean())) for runs in (ours, baseline)]
    return Unseen(
        num_images=int(rows.sum()),
        pretrained=spreads[0],
        scratch=spreads[1],
        gain=spreads[0].center - spreads[1].center,
        gain_interval=percentile_interval(resampled[0].accuracy - resampled[1].accuracy),
    )


def _pairs(pretrained: Recipe, scratch: Recipe) -> tuple[Pair, ...]:
    """Tests of runs of equal seed; where there are none, of the best run of each arm by validation."""
    # with several encoders, of a seed's runs the best by validation: every scratch run is in one pair
    ours, baseline = ({run.config.train.seed: run for run in reversed(arm)} for arm in (pretrained, scratch))
    pairs: list[tuple[int | None, Run, Run]] = [
        (seed, ours[seed], baseline[seed]) for seed in sorted(ours) if seed in baseline
    ]
    return tuple(
        Pair(str(first.path), str(second.path), seed, mcnemar(first.test.correct, second.test.correct))
        for seed, first, second in pairs or [(None, pretrained[0], scratch[0])]
    )
