"""A comparison: the runs of two arms, checked against each other, and the answer they give.

Runs that do not answer the same question (different test images, classes or network) are refused. Runs of an arm that
differ in their seeds alone are one recipe; validation chooses the recipe that represents the arm, with all its runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
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
    """Two arms that can be compared, the pre-trained arm first."""

    recipes: dict[str, tuple[Recipe, ...]]  # of each arm, the chosen one first; its runs, the best on validation first

    @property
    def arms(self) -> dict[str, tuple[Run, ...]]:
        """All runs of each arm."""
        return {name: tuple(run for recipe in recipes for run in recipe) for name, recipes in self.recipes.items()}

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, the pre-trained ones first."""
        return tuple(run for arm in self.arms.values() for run in arm)

    @property
    def chosen(self) -> dict[str, Recipe]:
        """The runs that the answer is about: all runs of each arm's chosen recipe."""
        return {name: recipes[0] for name, recipes in self.recipes.items()}

    @property
    def best(self) -> dict[str, Run]:
        """The run of each arm that pictures of a single run show."""
        return {name: runs[0] for name, runs in self.chosen.items()}

    @property
    def differing_settings(self) -> list[str]:
        """The settings in which the chosen recipes of the arms differ."""
        ours, baseline = (recipe[0].settings for recipe in self.chosen.values())
        return [key for key, value in ours if (key, value) not in baseline]

    @cached_property
    def origins(self) -> list[Provenance]:
        """Where the encoders of the pre-trained arm come from, each once."""
        inits = dict.fromkeys(run.config.model.init for run in self.runs if not run.from_scratch)
        return [find_provenance(init) for init in inits]

    @property
    def has_choice(self) -> bool:
        """Whether validation has chosen between recipes."""
        return any(len(recipes) > 1 for recipes in self.recipes.values())

    @cached_property
    def results(self) -> Results:
        """The numbers of the comparison."""
        return measure(*self.recipes.values())

    def answer(self) -> str:
        """Return the result in one sentence with its interval, however it turned out."""
        results, interval, seeds_test = self.results, self.results.gain_interval, self.results.seeds_test
        num_labels = self.runs[0].record.num_train_images  # the same in all runs, as their data are
        labels = f"{num_labels:,} labels" if num_labels else "the same labels"
        verdict = f"{100 * results.gain:+.1f} points"
        if round(100 * results.gain, 1) == 0:
            verdict = "less than 0.1 points apart"
        elif (interval and interval.low <= 0 <= interval.high) or (seeds_test and seeds_test.p_value > 0.05):
            verdict += ", which may be chance"
        elif results.gain < 0:
            verdict += ", so pre-training did not help here"
        images = f"{results.num_test_images:,} test images"
        ends = f", over {images}"
        if interval is None:
            ends = f", as the difference is the same for each of the {images}"
        elif self.has_choice:
            ends += f" and the choice of recipe on {results.num_validation_images:,} validation images"
        ours, baseline = spread_text(results.pretrained.accuracy), spread_text(results.scratch.accuracy)
        return (
            f"With {labels}, the MAE-pre-trained ViT reaches {ours} % test accuracy, the same network from scratch "
            f"{baseline} %: {verdict} ({_interval_text(interval)}{ends})."
        )

    def details(self) -> str:
        """Return what supports the answer: runs, tests and choices."""
        results = self.results
        ours, baseline = results.pretrained.describe_units(), results.scratch.describe_units()
        sentences = [f"± is the standard deviation over {ours} (pre-trained) and {baseline} (from scratch)."]
        if ours == baseline == "1 run":
            sentences = ["Each arm has one run, so the spread over seeds is unknown."]
        elif results.seeds_test:
            sentences.append(f"Welch's t-test over them: p = {results.seeds_test.p_value:.2g}.")
        elif results.pretrained.is_of_one_encoder:
            sentences.append("One encoder gives no p-value for pre-training as a whole.")
        values = sorted(pair.test.p_value for pair in results.pairs)
        which, p = "", f"{values[0]:.2g}"
        if len(values) > 1:
            which, p = f" of {len(values)} pairs of equal seed", f"{p} to {values[-1]:.2g}"
        elif any(len(runs) > 1 for runs in self.chosen.values()):
            which = " of the best runs" if results.pairs[0].seed is None else " of the pair of equal seed"
        sentences.append(f"Exact McNemar test{which}: p = {p}.")
        if self.has_choice:
            named = zip(("pre-trained", "from scratch"), self.recipes.values(), strict=True)
            among = " and ".join(f"{len(recipes)} recipes {name}" for name, recipes in named if len(recipes) > 1)
            sentences.append(f"Validation chose among {among}. The interval includes that choice, p-values do not.")
        return " ".join(sentences)

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
        ours, baseline = spread_text(unseen.pretrained), spread_text(unseen.scratch)
        return (
            f"{known} On the other {unseen.num_images:,}, the accuracy is {ours} % pre-trained and {baseline} % from "
            f"scratch: {100 * unseen.gain:+.1f} points ({_interval_text(unseen.gain_interval)})."
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
        ours, baseline = self.chosen.values()
        runs = [*ours, *baseline]
        gains = [100 * choice.gain for choice in self.results.choices]
        also = [key for key in self.differing_settings if key != "model.init"]
        growing = ", ".join(str(run.path) for run in runs if run.metrics["best_epoch"] >= run.curve[0][-1] - TOLERANCE)
        precisions = sorted({str(run.record.mixed_precision) for run in runs})
        empty = [name for name in runs[0].class_names if name not in scores_on_test(runs[0])["f1_per_class"]]
        range_of_gains = f"{min(gains):+.1f} to {max(gains):+.1f} points"
        notes: dict[str | None, object] = {
            self.leak(): True,
            self.few_validation_images(): True,
            f"Depending on the recipe, the gain is {range_of_gains}: see the table of recipes.": self.has_choice,
            f"The chosen recipes differ in more than their first weights: {', '.join(also)}.": also,
            f"Longer training may change the difference: the last epoch is the best one of {growing}.": growing,
            "The pre-trained arm's spread is over fine-tuning seeds of one encoder. Other pre-training seeds may vary "
            "more.": self.results.pretrained.is_of_one_encoder and len(ours) > 1,
            "Curves and F1 show all runs; the other pictures show the best run of each arm on validation: "
            f"{ours[0].path} and {baseline[0].path}.": len(runs) > 2,
            f"The runs differ in precision ({', '.join(precisions)}).": len(precisions) > 1,
            f"No test image belongs to {', '.join(empty)}. Such classes have no F1, and macro-F1 is the mean over the "
            "other classes.": empty,
        }
        return [note for note, applies in notes.items() if note and applies]

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each run, as comparison.json holds it: accuracies and F1 in 0..1, `inf` for never."""
        return [
            {
                "run": str(run.path),
                "init": run.config.model.init,
                "recipe": recipe_name(recipe, recipes),
                "chosen": recipe is recipes[0],
                "seed": run.config.train.seed,
                **{f"test_{key}": scores_on_test(run)[key] for key in ("accuracy", "f1", "loss")},
                "best_validation_accuracy": run.best_validation_accuracy,
                "best_epoch": run.metrics["best_epoch"],
                "epochs_to_scratch_best": epochs_to(run, self.results.target),
                "num_parameters": run.record.num_parameters,
            }
            for recipes in self.recipes.values()
            for recipe in recipes
            for run in recipe
        ]


def spread_text(value: Spread, factor: float = 100, digits: int = 1) -> str:
    """Return a mean, ± its standard deviation where it has one; by default in per cent."""
    sd = "" if value.sd is None else f" ± {factor * value.sd:.{digits}f}"
    return f"{factor * value.center:.{digits}f}{sd}"


def _interval_text(gain: Interval | None) -> str:
    return f"95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}" if gain else "no interval"


def compare_runs(pretrained: Sequence[str | Path], scratch: Sequence[str | Path]) -> Comparison:
    """Read the run folders of both arms and check that they answer one question.

    Raises:
        ConfigError: a run is unfinished, in the wrong arm or given twice, or differs in images, classes or network.
    """
    ours, baseline = [read_run(path) for path in pretrained], [read_run(path) for path in scratch]
    for run in ours + baseline:
        option = "--scratch" if run.from_scratch else "--pretrained"
        message = f"{run.path} has model.init {run.config.model.init}: name it after {option}"
        require(run.from_scratch == (run in baseline), message)
        _check_comparable(ours[0], run)
    return Comparison({PRETRAINED_ARM: _best_recipe_first(ours), SCRATCH_ARM: _best_recipe_first(baseline)})


def _best_recipe_first(runs: list[Run]) -> tuple[Recipe, ...]:
    """Sort recipes by their mean best validation accuracy, and the runs of a recipe by theirs."""
    recipes: dict[Any, dict[Any, Run]] = {}
    for run in sorted(runs, key=lambda run: -run.best_validation_accuracy):
        seed = run.config.train.seed
        other = recipes.setdefault(run.recipe, {}).setdefault((seed, run.encoder), run)
        require(
            other is run,
            f"{other.path} and {run.path} are the same recipe with the same train.seed {seed}, and would count as two "
            "seeds: name one of them",
        )
    found = [tuple(recipe.values()) for recipe in recipes.values()]
    return tuple(sorted(found, key=lambda recipe: -np.mean([run.best_validation_accuracy for run in recipe])))


def _check_comparable(first: Run, other: Run) -> None:
    """Refuse two runs that do not answer the same question."""
    both, paths = (first, other), f"{first.path} and {other.path}"
    classes = [", ".join(run.class_names) for run in both]
    message = f"{first.path} has the classes {classes[0]}, {other.path} {classes[1]}: compare runs on the same classes"
    require(first.class_names == other.class_names, message)
    shape = [f"model.{field.name}" for field in fields(EncoderConfig)]
    sizes = [key for key, value in first.settings if key in shape and (key, value) not in other.settings]
    require(not sizes, f"{paths} are different networks: they differ in {', '.join(sizes)}")
    for what, key, are_same in (
        ("trained", "data_fingerprint", True),
        ("validated", "validation_fingerprint", first.validation.are_of_the_same_images(other.validation)),
        ("tested", "test_fingerprint", first.test.are_of_the_same_images(other.test)),
    ):
        known = [getattr(run.record, key) for run in both]
        require(
            are_same and known[0] == known[1],
            f"{paths} were {what} on different images or labels ({key} {known[0]} and {known[1]} in run.json): compare "
            "runs on the same data and splits",
        )
