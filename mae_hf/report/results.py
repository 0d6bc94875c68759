"""The numbers of a comparison: means and spreads, intervals over test images, paired tests, epochs to a target.

A recipe is a set of runs that differ in their seeds alone. An arm is a list of recipes, the chosen recipe first. The
bootstrap repeats that choice on resampled images.

Shapes: n images.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_hf.evaluation import statistics
from mae_hf.evaluation.metrics import classification_metrics
from mae_hf.evaluation.statistics import Candidates, Interval, Resampled, Spread
from mae_hf.training.finished_runs import TOLERANCE, Run

Recipe = Sequence[Run]
_ONE_ENCODER = "fine-tuning seeds of one encoder"


@dataclass(frozen=True)
class Arm:
    """The runs of the chosen recipe of an arm.

    A spread is over independent units: over seeds from scratch, and over encoders, each the mean of its fine-tuning
    runs. With a single encoder it is over its fine-tuning seeds, which says nothing about other pre-training runs.
    """

    seeds: tuple[int, ...]  # of its runs
    spread_over: str  # `seeds`, `encoders` or `fine-tuning seeds of one encoder`
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
        return self.spread_over == _ONE_ENCODER

    def describe_units(self) -> str:
        """Return what its spread is over, such as `3 encoders`."""
        if self.num_units == 1:
            return "1 run"
        means = " (each the mean of its fine-tuning runs)" if len(self.seeds) > self.num_units else ""
        return f"{self.num_units} {self.spread_over}{means}"


@dataclass(frozen=True)
class PairedTest:
    """A test of two runs on the same test images."""

    pretrained: str  # its run folder
    scratch: str  # its run folder
    seed: int | None  # of both; None where no seeds match, and the best runs on validation are paired
    test: statistics.McNemar  # first: pre-trained


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
    seeds_test: statistics.Welch | None  # None without several independent runs of the pipeline in both arms
    pairs: tuple[PairedTest, ...]
    target: float  # the scratch arm's best validation accuracy, the mean over its runs
    epochs: tuple[float, float] | None  # the range in which every run was evaluated


def measure(pretrained: Sequence[Recipe], scratch: Sequence[Recipe]) -> Results:
    """Return the results of two arms that were validated and tested on the same images.

    The first recipe of each arm is the chosen one, and its first run the best on validation.
    """
    ours, baseline = pretrained[0], scratch[0]
    target = float(np.mean([run.best_validation_accuracy for run in baseline]))
    curves = [run.curve[0] for run in (*ours, *baseline)]
    start, end = max(epochs[0] for epochs in curves), min(epochs[-1] for epochs in curves)
    shared = (start, end) if start < end else None
    candidates = [_candidates(pretrained), _candidates(scratch)]
    resampled = statistics.resample_arms(candidates)
    arms = [_arm(ours, target, shared, resampled[0]), _arm(baseline, target, shared, resampled[1])]
    independent = [arm.accuracy.values for arm in arms if not arm.is_of_one_encoder]
    masks = [run.test.seen for run in ours if run.test.seen is not None]
    seen = np.any(masks, axis=0) if len(masks) == len(ours) else None
    return Results(
        pretrained=arms[0],
        scratch=arms[1],
        choices=tuple(_choices((pretrained, scratch), candidates, resampled)),
        num_test_images=len(baseline[0].test),
        num_validation_images=len(baseline[0].validation),
        num_seen_test_images=None if seen is None else int(seen.sum()),
        unseen=None if seen is None or not 0 < seen.sum() < len(seen) else _unseen(ours, baseline, candidates, ~seen),
        gain=arms[0].accuracy.center - arms[1].accuracy.center,
        gain_interval=statistics.percentile_interval(resampled[0].accuracy - resampled[1].accuracy),
        seeds_test=statistics.welch(*independent) if len(independent) == 2 else None,
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
    return next((epoch for epoch, value in zip(*run.curve, strict=True) if value >= accuracy - TOLERANCE), math.inf)


def f1_of_classes(runs: Recipe) -> dict[str, float]:
    """Return F1 of each class, the mean over runs; NaN for a class without test images."""
    scores = [scores_on_test(run)["f1_per_class"] for run in runs]
    return {name: float(np.mean([of_run.get(name, math.nan) for of_run in scores])) for name in runs[0].class_names}


def _means_of_units(runs: Recipe, value: Callable[[Run], Any]) -> list[Any]:
    """The mean number or array of each independent unit: of an encoder's runs; with at most one encoder, of a run."""
    by_encoder: dict[str | None, list[Run]] = {}
    for run in runs:
        by_encoder.setdefault(run.encoder, []).append(run)
    units = list(by_encoder.values()) if len(by_encoder) > 1 else [[run] for run in runs]
    return [np.mean([value(run) for run in unit], axis=0) for unit in units]


def _spread(runs: Recipe, number: Callable[[Run], float]) -> Spread:
    return statistics.mean_spread(_means_of_units(runs, number))


def _candidates(recipes: Sequence[Recipe]) -> Candidates:
    def share_correct(correct: Callable[[Run], NDArray[np.bool_]]) -> NDArray[np.float64]:
        return np.array([np.mean(_means_of_units(runs, correct), axis=0) for runs in recipes])

    return Candidates(share_correct(lambda run: run.validation.correct), share_correct(lambda run: run.test.correct))


def _arm(runs: Recipe, target: float, epochs: tuple[float, float] | None, resampled: Resampled) -> Arm:
    accuracy = _spread(runs, lambda run: run.test.correct.mean())
    has_encoders = len({run.encoder for run in runs}) > 1
    return Arm(
        seeds=tuple(run.config.train.seed for run in runs),
        spread_over="seeds" if runs[0].from_scratch else "encoders" if has_encoders else _ONE_ENCODER,
        num_units=len(accuracy.values),
        accuracy=accuracy,
        f1=_spread(runs, lambda run: scores_on_test(run)["f1"]),
        loss=_spread(runs, lambda run: scores_on_test(run)["loss"]),
        best_validation_accuracy=_spread(runs, lambda run: run.best_validation_accuracy),
        accuracy_interval=statistics.percentile_interval(resampled.accuracy),
        mean_validation_accuracy=(
            _spread(runs, lambda run: statistics.mean_under_curve(*run.curve, *epochs)) if epochs else None
        ),
        epochs_to_target=statistics.median_spread([epochs_to(run, target) for run in runs]),
    )


def _choices(
    arms: Sequence[Sequence[Recipe]], candidates: Sequence[Candidates], resampled: Sequence[Resampled]
) -> Iterator[Choice]:
    """Every recipe of the pre-trained arm, then of the other arm."""
    accuracies = [of_arm.test.mean(axis=1) for of_arm in candidates]
    for arm, recipes in enumerate(arms):
        for number, runs in enumerate(recipes):
            accuracy = [accuracies[0][0], accuracies[1][0]]  # of both arms, if validation had chosen this recipe
            accuracy[arm] = accuracies[arm][number]
            yield Choice(
                is_pretrained=arm == 0,
                is_chosen=number == 0,
                name=recipe_name(runs, recipes),
                num_runs=len(runs),
                validation_accuracy=float(np.mean([run.best_validation_accuracy for run in runs])),
                chosen=float(resampled[arm].chosen[number]),
                accuracy=float(accuracy[arm]),
                gain=float(accuracy[0] - accuracy[1]),
            )


def _unseen(ours: Recipe, baseline: Recipe, candidates: Sequence[Candidates], rows: NDArray[np.bool_]) -> Unseen:
    pretrained, scratch = (_spread(runs, lambda run: run.test.correct[rows].mean()) for runs in (ours, baseline))
    resampled = statistics.resample_arms([replace(arm, test=arm.test[:, rows]) for arm in candidates])
    interval = statistics.percentile_interval(resampled[0].accuracy - resampled[1].accuracy)
    return Unseen(int(rows.sum()), pretrained, scratch, pretrained.center - scratch.center, interval)


def _pairs(pretrained: Recipe, scratch: Recipe) -> tuple[PairedTest, ...]:
    """Tests of runs of equal seed; where there are none, of the best run of each arm by validation."""
    # with several encoders, of a seed's runs the best by validation: every scratch run is in one pair
    ours, baseline = ({run.config.train.seed: run for run in reversed(arm)} for arm in (pretrained, scratch))
    pairs: list[tuple[int | None, Run, Run]] = [
        (seed, ours[seed], baseline[seed]) for seed in sorted(ours.keys() & baseline.keys())
    ]
    return tuple(
        PairedTest(str(first.path), str(second.path), seed, statistics.mcnemar(first.test.correct, second.test.correct))
        for seed, first, second in pairs or [(None, pretrained[0], scratch[0])]
    )
