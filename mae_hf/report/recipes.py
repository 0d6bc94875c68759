"""Recipes: the runs of an arm that differ in their seeds alone, and which runs can be compared at all."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from mae_hf.errors import require
from mae_hf.evaluation.metrics import classification_metrics
from mae_hf.training.finished_runs import TOLERANCE, Run

Recipe = Sequence[Run]
# Settings of the data that decide which images a run has.
_SPLIT = (
    *("source", "revision", "validation_fraction", "test_fraction", "split_seed"),
    *("fold", "label_fraction", "label_seed"),
)


def sort_arms(arms: Mapping[str, Sequence[Run]], *, chooses_arm: bool) -> dict[str, tuple[Recipe, ...]]:
    """Check that all runs answer the same question, and sort the recipes of each arm, and with `chooses_arm` the arms.

    Only where validation chooses the arm, their networks may differ.
    """
    first, *others = chain(*arms.values())
    for run in others:
        _check_comparable(first, run, same_network=not chooses_arm)
    recipes = {name: sort_recipes(runs) for name, runs in arms.items()}
    return dict(sorted(recipes.items(), key=lambda arm: -mean_best(arm[1][0])) if chooses_arm else recipes)


def sort_recipes(runs: Sequence[Run]) -> tuple[Recipe, ...]:
    """Sort recipes by their mean best validation accuracy, and the runs of a recipe by theirs."""
    recipes: dict[Any, dict[Any, Run]] = {}
    for run in sorted(runs, key=lambda run: -run.best_validation_accuracy):
        other = recipes.setdefault(run.recipe, {}).setdefault((run.seed, run.encoder), run)
        seed = "" if run.seed is None else f" with the same train.seed {run.seed}"
        problem = f"{other.name} and {run.name} are the same recipe{seed}, and would count as two seeds"
        require(other is run, f"{problem}: name one of them")
    return tuple(sorted((tuple(recipe.values()) for recipe in recipes.values()), key=lambda runs: -mean_best(runs)))


def mean_best(runs: Recipe) -> float:
    """Return the mean of the runs' best validation accuracies, which decides between recipes."""
    return float(np.mean([run.best_validation_accuracy for run in runs]))


def _check_comparable(first: Run, other: Run, *, same_network: bool) -> None:
    """Refuse runs of different images; those prepared in different ways must agree in source, splits and labels."""
    both, paths = (first, other), f"{first.path} and {other.path}"
    classes = [", ".join(run.class_names) for run in both]
    message = f"{first.path} has the classes {classes[0]}, {other.path} {classes[1]}: compare runs on the same classes"
    require(first.class_names == other.class_names, message)
    sizes = [f"model.{key}" for key, value in first.shape.items() if other.shape[key] != value]
    fix = "compare different networks with --arm NAME=RUN for each"
    require(not sizes or not same_network, f"{paths} are different networks: they differ in {', '.join(sizes)}: {fix}")
    differing = [key for key in _SPLIT if getattr(first.config.data, key) != getattr(other.config.data, key)]
    for what, key, are_same in (
        ("trained", "data_fingerprint", True),
        ("validated", "validation_fingerprint", first.validation.are_of_the_same_images(other.validation)),
        ("tested", "test_fingerprint", first.test.are_of_the_same_images(other.test)),
    ):
        known = [getattr(run.record, key) for run in both]
        is_same, difference = known[0] == known[1], f"{key} {known[0]} and {known[1]} in run.json"
        if preparation_of(first) != preparation_of(other):
            is_same, difference = not differing, ", ".join(f"data.{key}" for key in differing) or "labels"
        problem = f"{paths} were {what} on different images or labels ({difference})"
        require(are_same and is_same, f"{problem}: compare runs on the same data and splits")


def preparation_of(run: Run) -> tuple[Any, ...]:
    """Return the settings that decide an image's pixels: its size, and how it becomes a square."""
    resize = run.config.data.resize
    return run.shape["image_size"], resize, run.config.data.image_mean if resize == "pad" else None


def recipe_name(runs: Recipe, recipes: Sequence[Recipe]) -> str:
    """Return `key value` of the settings in which the recipes of an arm differ, as these runs have them."""
    probe = runs[0].probe
    others = [dict(other[0].recipe) for other in recipes if bool(other[0].probe) == bool(probe)]
    differing = [(key, value) for key, value in runs[0].recipe if any(other.get(key) != value for other in others)]
    alone = f"probe {probe}" if probe else "the only one" if len(others) == len(recipes) else "fine-tuned"
    return ", ".join(f"{key} {value}" for key, value in differing) or alone


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


def means_of_units(runs: Recipe, value: Callable[[Run], Any]) -> list[Any]:
    """The mean number or array of each independent unit: of an encoder's runs; with at most one encoder, of a run."""
    encoders = dict.fromkeys(run.encoder for run in runs)
    units = [[run] for run in runs]
    if len(encoders) > 1:
        units = [[run for run in runs if run.encoder == encoder] for encoder in encoders]
    return [np.mean([value(run) for run in unit], axis=0) for unit in units]
