"""The numbers of a comparison: means and spreads, intervals over test images, paired tests, epochs to a target.

The answer is about the first two arms. Shapes: R recipes of an arm, n images.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_hf.evaluation import statistics
from mae_hf.evaluation.statistics import Floats, Interval, Resampled, Spread
from mae_hf.report.recipes import Recipe, epochs_to, mean_best, means_of_units, recipe_name, scores_on_test
from mae_hf.training.finished_runs import Run

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
    best_in: float  # share of resamples in which validation puts the arm first
    mean_validation_accuracy: Spread | None  # mean height of the validation curve over `Results.epochs`
    epochs_to_target: Spread | None  # first epoch of each run at which it reaches `Results.target`; `inf`: never

    @property
    def is_of_one_encoder(self) -> bool:
        """Whether its spread leaves out pre-training."""
        return self.spread_over == _ONE_ENCODER

    @property
    def units(self) -> str:
        """What its spread is over, such as `3 encoders`."""
        if self.num_units == 1:
            return "1 run"
        means = " (each the mean of its fine-tuning runs)" if len(self.seeds) > self.num_units else ""
        return f"{self.num_units} {self.spread_over}{means}"


@dataclass(frozen=True)
class Pair:
    """Two arms and the difference of their test accuracies, in 0..1, first minus second."""

    arms: tuple[str, str]
    gain: float
    gain_interval: Interval | None  # resamples validation images, chooses the recipes, and resamples test images
    tests: tuple[dict[str, Any], ...]  # each of two runs on the same test images: `runs` (names), `seed` and `test`
    seeds_test: dict[str, Any] | None  # of `welch`; None without several independent runs of the pipeline in both arms
    p_value: float  # of `seeds_test`; without it the greatest of `tests`
    corrected_p_value: float  # for the number of pairs, by Holm's method


@dataclass(frozen=True)
class Results:
    """The arms, and the difference of the first two."""

    arms: dict[str, Arm]
    choices: tuple[dict[str, Any], ...]  # every recipe of every arm, a row each (`_choices`)
    num_test_images: int
    num_validation_images: int
    num_seen_test_images: int | None  # by a pre-training of these runs; None if unknown
    unknown_arms: tuple[str, ...]  # whose pre-training may have seen test images: it is unknown
    unseen: dict[str, Any] | None  # the numbers of `_unseen`; None where the unseen images are unknown, all or none
    gain: float  # of test accuracy, in 0..1; negative where the first arm lost
    gain_interval: Interval | None  # resamples validation images, makes the choices, and resamples test images
    pairs: tuple[Pair, ...]  # every pair of arms, the first two arms first
    target: float | None  # the best validation accuracy from scratch, the mean over runs; None without such an arm
    epochs: tuple[float, float] | None  # the range in which every fine-tuning run was evaluated


def measure(arms: Mapping[str, Sequence[Recipe]], *, chooses_arm: bool = False) -> Results:
    """Return the results of arms that were validated and tested on the same images.

    The first recipe of each arm is the chosen one, and its first run the best on validation. With `chooses_arm`, the
    arms are sorted by validation, the best first, and the interval of the gain contains that choice, too.
    """
    chosen = {name: recipes[0] for name, recipes in arms.items()}
    scratch = next((recipe for recipe in chosen.values() if recipe[0].from_scratch), None)
    target = mean_best(scratch) if scratch else None
    curves = [run.curve[0] for recipe in chosen.values() for run in recipe if not run.probe]
    start, end = max((epochs[0] for epochs in curves), default=0), min((epochs[-1] for epochs in curves), default=0)
    shared = (start, end) if start < end else None

    validation, test = _shares_right(arms, "validation"), _shares_right(arms, "test")
    resampled = dict(zip(arms, statistics.resample_arms(validation, test), strict=True))
    gains = statistics.first_over_second(list(resampled.values()), chooses_arm)
    numbers = {name: _arm(recipe, target, shared, resampled[name]) for name, recipe in chosen.items()}
    pairs = [_pair(two, chosen, numbers, resampled) for two in itertools.combinations(arms, 2)]
    corrected = statistics.holm([pair.p_value for pair in pairs])

    pretrained = {name: recipe for name, recipe in chosen.items() if not recipe[0].from_scratch}
    unknown = tuple(name for name, recipe in pretrained.items() if any(run.test.seen is None for run in recipe))
    any_run = next(iter(chosen.values()))[0]
    seen = np.zeros(len(any_run.test), bool)
    for run in (run for name, recipe in pretrained.items() if name not in unknown for run in recipe):
        seen |= run.test.seen
    return Results(
        arms=numbers,
        choices=_choices(arms, test, resampled),
        num_test_images=len(any_run.test),
        num_validation_images=len(any_run.validation),
        num_seen_test_images=None if unknown and not seen.any() else int(seen.sum()),
        unknown_arms=unknown,
        unseen=_unseen(chosen, validation, test, ~seen, chooses_arm) if 0 < seen.sum() < len(seen) else None,
        gain=pairs[0].gain,
        gain_interval=statistics.percentile_interval(gains),
        pairs=tuple(replace(pair, corrected_p_value=p) for pair, p in zip(pairs, corrected, strict=True)),
        target=target,
        epochs=shared,
    )


def _spread(runs: Recipe, number: Callable[[Run], float]) -> Spread:
    return statistics.mean_spread(means_of_units(runs, number))


def _shares_right(arms: Mapping[str, Sequence[Recipe]], role: str) -> list[Floats]:
    """The share of each recipe's runs that are right on each image, (R, n), for each arm."""
    right = attrgetter(f"{role}.correct")
    return [np.array([np.mean(means_of_units(runs, right), axis=0) for runs in recipes]) for recipes in arms.values()]


def _arm(runs: Recipe, target: float | None, epochs: tuple[float, float] | None, resampled: Resampled) -> Arm:
    accuracy = _spread(runs, lambda run: run.test.correct.mean())
    has_encoders = len({run.encoder for run in runs}) > 1
    height = reached = None
    if epochs and not runs[0].probe:
        height = _spread(runs, lambda run: statistics.mean_under_curve(*run.curve, *epochs))
    if target is not None and not runs[0].probe:
        reached = statistics.median_spread([epochs_to(run, target) for run in runs])
    return Arm(
        seeds=tuple(run.seed for run in runs if run.seed is not None),
        spread_over="seeds" if runs[0].from_scratch else "encoders" if has_encoders else _ONE_ENCODER,
        num_units=len(accuracy.values),
        accuracy=accuracy,
        f1=_spread(runs, lambda run: scores_on_test(run)["f1"]),
        loss=_spread(runs, lambda run: scores_on_test(run)["loss"]),
        best_validation_accuracy=_spread(runs, lambda run: run.best_validation_accuracy),
        accuracy_interval=statistics.percentile_interval(resampled.accuracy),
        best_in=resampled.best_in,
        mean_validation_accuracy=height,
        epochs_to_target=reached,
    )


def _pair(
    names: tuple[str, str], chosen: Mapping[str, Recipe], arms: Mapping[str, Arm], resampled: Mapping[str, Resampled]
) -> Pair:
    """Two arms, before the correction for the number of pairs.

    Tests are of runs of equal seed; where there are none, of the best run of each arm by validation, without a seed.
    """
    first, second = (arms[name] for name in names)
    # with several encoders, of a seed's runs the best by validation: every scratch run is in one pair
    ours, baseline = ({run.seed: run for run in reversed(chosen[name]) if run.seed is not None} for name in names)
    seeds = sorted(ours.keys() & baseline.keys())
    pairs: list[tuple[int | None, Run, Run]] = [(seed, ours[seed], baseline[seed]) for seed in seeds]
    tests: tuple[dict[str, Any], ...] = tuple(
        {"runs": (one.name, other.name), "seed": seed, "test": statistics.mcnemar(one.test.correct, other.test.correct)}
        for seed, one, other in pairs or [(None, chosen[names[0]][0], chosen[names[1]][0])]
    )
    independent = not (first.is_of_one_encoder or second.is_of_one_encoder)
    welch = statistics.welch(first.accuracy.values, second.accuracy.values) if independent else None
    p_value = welch["p_value"] if welch else max(paired["test"]["p_value"] for paired in tests)
    interval = statistics.percentile_interval(resampled[names[0]].accuracy - resampled[names[1]].accuracy)
    return Pair(names, first.accuracy.center - second.accuracy.center, interval, tests, welch, p_value, p_value)


def _choices(
    arms: Mapping[str, Sequence[Recipe]], test: Sequence[Floats], resampled: Mapping[str, Resampled]
) -> tuple[dict[str, Any], ...]:
    """Every recipe that validation could choose, and the gain of the answer that would follow."""
    accuracies = [of_arm.mean(axis=1) for of_arm in test]
    return tuple(
        {
            "arm": arm,
            "is_chosen": runs is recipes[0],
            "name": recipe_name(runs, recipes),
            "num_runs": len(runs),
            "validation_accuracy": mean_best(runs),  # which decides
            "chosen": float(share),  # the share of resampled validation images that choose it
            "accuracy": float(accuracy),  # on test images
            # of the first arm over it; of a recipe of the first arm over the second arm
            "gain": float(accuracy - accuracies[1][0] if of_arm is accuracies[0] else accuracies[0][0] - accuracy),
        }
        for (arm, recipes), of_arm in zip(arms.items(), accuracies, strict=True)
        for runs, accuracy, share in zip(recipes, of_arm, resampled[arm].chosen, strict=True)
    )


def _unseen(
    chosen: Mapping[str, Recipe], validation: Sequence[Floats], test: Sequence[Floats], rows: NDArray[np.bool_],
    chooses_arm: bool,
) -> dict[str, Any]:  # fmt: skip
    """The arms on these test images, which no known pre-training of their runs has seen."""
    accuracy = {name: _spread(runs, lambda run: run.test.correct[rows].mean()) for name, runs in chosen.items()}
    resampled = statistics.resample_arms(validation, [of_arm[:, rows] for of_arm in test])
    gains = statistics.first_over_second(resampled, chooses_arm)
    first, second, *_ = accuracy.values()
    numbers = {"num_images": int(rows.sum()), "accuracy": accuracy, "gain": first.center - second.center}
    return numbers | {"gain_interval": statistics.percentile_interval(gains)}
