"""A comparison: the runs of two arms, checked against each other, and the answer they give.

Runs that do not answer the same question (different test images, classes or network) are refused. Runs of an arm that
differ in their seeds alone are one recipe; validation chooses the recipe that represents the arm, with all its runs.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mae_hf.config.model import EncoderConfig
from mae_hf.errors import require
from mae_hf.evaluation.statistics import Interval, Spread
from mae_hf.report.results import Recipe, Results, epochs_to, measure, recipe_name, scores_on_test
from mae_hf.training.finished_runs import TOLERANCE, Run, read_run
from mae_hf.training.provenance import Provenance, find_provenance

PRETRAINED_ARM, SCRATCH_ARM = "MAE pre-trained", "from scratch"  # in pictures and tables
MIN_VALIDATION_IMAGES = 100  # below, one image is more than a point


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two arms that can be compared.

    Args:
        recipes: the recipes of the pre-trained arm and of the arm from scratch, the chosen recipe first. The runs of a
            recipe start with the best on validation.
    """

    recipes: tuple[tuple[Recipe, ...], tuple[Recipe, ...]]

    @property
    def arms(self) -> dict[str, tuple[Run, ...]]:
        """All runs of each arm, by its name."""
        names = (PRETRAINED_ARM, SCRATCH_ARM)
        return {name: tuple(run for runs in arm for run in runs) for name, arm in zip(names, self.recipes, strict=True)}

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, the pre-trained ones first."""
        return tuple(run for arm in self.arms.values() for run in arm)

    @property
    def chosen(self) -> tuple[Recipe, Recipe]:
        """The runs that the answer is about, pre-trained and from scratch: all runs of each arm's chosen recipe."""
        return self.recipes[0][0], self.recipes[1][0]

    @property
    def best(self) -> dict[str, Run]:
        """The run of each arm that pictures of a single run show, by the arm's name."""
        return {name: runs[0] for name, runs in self.arms.items()}

    @property
    def num_test_images(self) -> dict[str, int]:
        """The number of test images of each class."""
        names = self.runs[0].class_names
        return dict(zip(names, np.bincount(self.runs[0].test.labels, minlength=len(names)).tolist(), strict=True))

    @property
    def differing_settings(self) -> list[str]:
        """The settings in which the chosen recipes of the arms differ."""
        ours, baseline = (dict(recipe[0].settings) for recipe in self.chosen)
        return [key for key in ours if ours[key] != baseline[key]]

    @cached_property
    def origins(self) -> list[Provenance]:
        """Where the encoders of the pre-trained arm come from, each once."""
        return [
            find_provenance(init)
            for init in dict.fromkeys(run.config.model.init for run in self.runs if not run.from_scratch)
        ]

    @property
    def has_choice(self) -> bool:
        """Whether validation has chosen between recipes."""
        return max(map(len, self.recipes)) > 1

    @cached_property
    def results(self) -> Results:
        """The numbers of the comparison."""
        return measure(*self.recipes)

    @property
    def points(self) -> float:
        """Percentage points of test accuracy that pre-training gained; negative where it lost."""
        return 100 * self.results.gain

    def answer(self) -> str:
        """Return the result in one sentence with its interval, however it turned out."""
        num_labels = self.runs[0].record.num_train_images  # the same in all runs, as their data are
        labels = f"With {num_labels:,} labels" if num_labels else "With the same labels"
        ours, baseline = (spread_text(arm.accuracy) for arm in (self.results.pretrained, self.results.scratch))
        return (
            f"{labels}, the MAE-pre-trained ViT reaches {ours} % test accuracy, the same network from scratch "
            f"{baseline} %: {self._verdict()} ({self._interval()})."
        )

    def details(self) -> str:
        """Return what supports the answer: runs, tests and choices."""
        ours, baseline = (arm.describe_units() for arm in (self.results.pretrained, self.results.scratch))
        sentences = [f"± is the standard deviation over {ours} (pre-trained) and {baseline} (from scratch)."]
        if ours == baseline == "1 run":
            sentences = ["Each arm has one run, so the spread over seeds is unknown."]
        elif self.results.seeds_test:
            sentences.append(f"Welch's t-test over them: p = {self.results.seeds_test.p_value:.2g}.")
        elif self.results.pretrained.is_of_one_encoder:
            sentences.append("One encoder gives no p-value for pre-training as a whole.")
        sentences.append(f"{self._test()}.")
        if self.has_choice:
            counts = " and ".join(
                f"{len(recipes)} recipes {name}"
                for name, recipes in zip(("pre-trained", "from scratch"), self.recipes, strict=True)
                if len(recipes) > 1
            )
            sentences.append(f"Validation chose among {counts}. The interval includes that choice, p-values do not.")
        return " ".join(sentences)

    def _verdict(self) -> str:
        interval, seeds_test = self.results.gain_interval, self.results.seeds_test
        if round(self.points, 1) == 0:
            return "less than 0.1 points apart"
        verdict = f"{self.points:+.1f} points"
        if (interval and interval.low <= 0 <= interval.high) or (seeds_test and seeds_test.p_value > 0.05):
            return f"{verdict}, which may be chance"
        return verdict + (", so pre-training did not help here" if self.points < 0 else "")

    def _interval(self) -> str:
        interval, results = self.results.gain_interval, self.results
        if interval is None:
            return f"no interval, as the difference is the same for each of the {results.num_test_images:,} test images"
        choice = f" and the choice of recipe on {results.num_validation_images:,} validation images"
        over = f"over {results.num_test_images:,} test images{choice if self.has_choice else ''}"
        return f"95 % interval {interval_text(interval, '+.1f')}, {over}"

    def _test(self) -> str:
        pairs = self.results.pairs
        values = sorted(pair.test.p_value for pair in pairs)
        if len(pairs) > 1:
            return f"Exact McNemar test of {len(pairs)} pairs of equal seed: p = {values[0]:.2g} to {values[-1]:.2g}"
        which = " of the pair of equal seed" if pairs[0].seed is not None else " of the best runs"
        return f"Exact McNemar test{which if max(map(len, self.chosen)) > 1 else ''}: p = {values[0]:.2g}"

    def leak(self) -> str | None:
        """Return how test images that pre-training has seen affect the result; None where it has seen none."""
        num_seen, unseen, n = self.results.num_seen_test_images, self.results.unseen, self.results.num_test_images
        if num_seen == 0:
            return None
        if num_seen is None:
            return (
                "It is unknown whether pre-training has seen these test images, or near-duplicates of them. If it has, "
                "the pre-trained arm's numbers may be too high."
            )
        known = f"Pre-training has seen {num_seen:,} of the {n:,} test images, or near-duplicates, without labels."
        if unseen is None:
            return f"{known} No other test images are left to score."
        ends = f"95 % interval {interval_text(unseen.gain_interval, '+.1f')}" if unseen.gain_interval else "no interval"
        ours, baseline = spread_text(unseen.pretrained), spread_text(unseen.scratch)
        return (
            f"{known} On the other {unseen.num_images:,}, the accuracy is {ours} % pre-trained and {baseline} % from "
            f"scratch: {100 * unseen.gain:+.1f} points ({ends})."
        )

    def few_validation_images(self) -> str | None:
        """Return a warning if choices rest on few validation images, and how to get more."""
        count = self.results.num_validation_images
        if count >= MIN_VALIDATION_IMAGES:
            return None
        return (
            f"{'Recipes and epochs' if self.has_choice else 'Epochs'} were chosen on {count} validation images, where "
            f"one image is {100 / count:.1f} points. Use at least {MIN_VALIDATION_IMAGES}: repeat the runs with a "
            "larger --data.validation_fraction."
        )

    def notes(self) -> list[str]:
        """Return what a reader must know to judge the numbers, a sentence or two each."""
        ours, baseline = self.chosen
        notes = [note for note in (self.leak(), self.few_validation_images()) if note]
        if self.has_choice:
            gains = [100 * choice.gain for choice in self.results.choices]
            notes.append(
                f"Depending on the recipe, the gain is {min(gains):+.1f} to {max(gains):+.1f} points: see the table of "
                "recipes."
            )
        if also := [key for key in self.differing_settings if key != "model.init"]:
            notes.append(f"The chosen recipes differ in more than their first weights: {', '.join(also)}.")
        growing = [run for run in (*ours, *baseline) if run.metrics["best_epoch"] >= run.curve[0][-1] - TOLERANCE]
        if growing:
            names = ", ".join(str(run.path) for run in growing)
            notes.append(f"Longer training may change the difference: the last epoch is the best one of {names}.")
        if self.results.pretrained.is_of_one_encoder and len(ours) > 1:
            notes.append(
                "The pre-trained arm's spread is over fine-tuning seeds of one encoder. Other pre-training seeds may "
                "vary more."
            )
        if max(len(ours), len(baseline)) > 1:
            notes.append(
                "Curves and F1 show all runs; the other pictures show the best run of each arm on validation: "
                f"{ours[0].path} and {baseline[0].path}."
            )
        precisions = {str(run.record.mixed_precision) for run in (*ours, *baseline)}
        if len(precisions) > 1:
            notes.append(f"The runs differ in precision ({', '.join(sorted(precisions))}).")
        if empty := [name for name, count in self.num_test_images.items() if count == 0]:
            notes.append(
                f"No test image belongs to {', '.join(empty)}. Such classes have no F1, and macro-F1 is the mean over "
                "the other classes."
            )
        return notes

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each run, as comparison.json holds it: accuracies and F1 in 0..1."""
        return [
            {
                "run": str(run.path),
                "init": run.config.model.init,
                "recipe": recipe_name(recipe, recipes),
                "chosen": recipe is recipes[0],
                "seed": run.config.train.seed,
                "test_accuracy": scores_on_test(run)["accuracy"],
                "test_f1": scores_on_test(run)["f1"],
                "test_loss": scores_on_test(run)["loss"],
                "best_validation_accuracy": run.best_validation_accuracy,
                "best_epoch": run.metrics["best_epoch"],
                "epochs_to_scratch_best": epochs
                if np.isfinite(epochs := epochs_to(run, self.results.target))
                else None,
                "num_parameters": run.record.num_parameters,
            }
            for recipes in self.recipes
            for recipe in recipes
            for run in recipe
        ]


def spread_text(value: Spread, factor: float = 100, digits: int = 1) -> str:
    """Return a mean, ± its standard deviation where it has one; by default in per cent."""
    sd = "" if value.sd is None else f" ± {factor * value.sd:.{digits}f}"
    return f"{factor * value.center:.{digits}f}{sd}"


def interval_text(interval: Interval, form: str) -> str:
    """Return the ends of an interval in per cent."""
    return f"{100 * interval.low:{form}} to {100 * interval.high:{form}}"


def compare_runs(pretrained: Sequence[str | Path], scratch: Sequence[str | Path]) -> Comparison:
    """Read the runs of both arms and check that they answer one question.

    Args:
        pretrained: run folders of fine-tuning from a pre-trained encoder.
        scratch: run folders of the same training from random weights.

    Raises:
        ConfigError: a folder that is not a finished run or is in the wrong arm, a seed that a recipe has twice, or a
            run that differs from the first in images, classes, labels or network.
    """
    ours, baseline = [read_run(path) for path in pretrained], [read_run(path) for path in scratch]
    for runs, is_scratch, option in ((ours, False, "--scratch"), (baseline, True, "--pretrained")):
        for run in runs:
            require(
                run.from_scratch == is_scratch,
                f"{run.path} has model.init {run.config.model.init}: name it after {option}",
            )
    first, *others = ours + baseline
    for other in others:
        _check_comparable(first, other)
    return Comparison((_best_recipe_first(ours), _best_recipe_first(baseline)))


def _best_recipe_first(runs: Sequence[Run]) -> tuple[Recipe, ...]:
    """Return recipes by their mean best validation accuracy, and the runs of a recipe by theirs."""
    recipes: dict[Any, list[Run]] = {}
    for run in sorted(runs, key=lambda run: -run.best_validation_accuracy):
        recipe = recipes.setdefault(run.recipe, [])
        for other in recipe:
            seeds = other.config.train.seed, run.config.train.seed
            require(
                seeds[0] != seeds[1] or other.encoder != run.encoder,
                f"{other.path} and {run.path} are the same recipe with the same train.seed {seeds[0]}, and would count "
                "as two seeds: name one of them",
            )
        recipe.append(run)
    return tuple(
        sorted(recipes.values(), key=lambda recipe: -np.mean([run.best_validation_accuracy for run in recipe]))
    )


def _check_comparable(first: Run, other: Run) -> None:
    """Refuse two runs that do not answer the same question."""
    paths = f"{first.path} and {other.path}"
    require(
        first.class_names == other.class_names,
        f"{first.path} has the classes {', '.join(first.class_names)}, {other.path} {', '.join(other.class_names)}: "
        "compare runs on the same classes",
    )
    shape = [field.name for field in dataclasses.fields(EncoderConfig)]
    sizes = [name for name in shape if getattr(first.config.model, name) != getattr(other.config.model, name)]
    require(not sizes, f"{paths} are different networks: they differ in {', '.join('model.' + name for name in sizes)}")
    for what, key, are_same in (
        ("trained", "data_fingerprint", True),
        ("validated", "validation_fingerprint", first.validation.are_of_the_same_images(other.validation)),
        ("tested", "test_fingerprint", first.test.are_of_the_same_images(other.test)),
    ):
        known = [getattr(run.record, key) for run in (first, other)]
        require(
            are_same and known[0] == known[1],
            f"{paths} were {what} on different images or labels ({key} {known[0]} and {known[1]} in run.json): compare "
            "runs on the same data and splits",
        )
