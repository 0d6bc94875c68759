"""A comparison: the runs of two or more arms, checked against each other, and the answer that they give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from mae_hf.errors import require
from mae_hf.evaluation.statistics import Interval, Spread
from mae_hf.report.recipes import Recipe, epochs_to, mean_best, preparation_of, recipe_name, scores_on_test, sort_arms
from mae_hf.report.results import Results, measure
from mae_hf.training.finished_runs import Run, read_run, read_runs
from mae_hf.training.provenance import Provenance, find_provenance

MIN_VALIDATION_IMAGES = 100  # below, one image is more than a point


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two or more arms. The answer is about the first two: pre-trained and scratch, or the two best on validation."""

    recipes: dict[str, tuple[Recipe, ...]]  # of each arm, the chosen one first; its runs, the best on validation first
    chooses_arm: bool = False  # whether validation chooses the best arm; otherwise pre-training is against scratch

    @property
    def arms(self) -> dict[str, tuple[Run, ...]]:
        """All runs of each arm."""
        return {name: tuple(chain(*recipes)) for name, recipes in self.recipes.items()}

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, arm by arm."""
        return tuple(chain(*self.arms.values()))

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
        """The settings that all chosen recipes have, and in which they differ."""
        first, *others = (dict(run.settings) for run in self.best.values())
        return [key for key, value in first.items() if any(other.get(key, value) != value for other in others)]

    @cached_property
    def origins(self) -> list[Provenance]:
        """Where the encoders of the arms come from, each once."""
        return [find_provenance(init) for init in dict.fromkeys(run.init for run in self.runs if not run.from_scratch)]

    @property
    def has_choice(self) -> bool:
        """Whether validation has chosen between recipes."""
        return any(len(recipes) > 1 for recipes in self.recipes.values())

    @cached_property
    def results(self) -> Results:
        """The numbers of the comparison."""
        return measure(self.recipes, chooses_arm=self.chooses_arm)

    def answer(self) -> str:
        """Return the result in one sentence with its interval, however it turned out."""
        results, interval, pair = self.results, self.results.gain_interval, self.results.pairs[0]
        num_labels = self.runs[0].record.num_train_images  # the same in all runs, as their data are
        labels = f"{num_labels:,} labels" if num_labels else "the same labels"
        # of arms that validation chooses, the first two look good
        p_value = pair.corrected_p_value if pair.seeds_test or self.chooses_arm else 0.0
        verdict = f"{100 * results.gain:+.1f} points"
        if round(100 * results.gain, 1) == 0:
            verdict = "less than 0.1 points apart"
        elif (interval and interval.low <= 0 <= interval.high) or p_value > 0.05:
            verdict += ", which may be chance"
        elif results.gain < 0:
            problem = "validation did not choose the better one" if self.chooses_arm else "pre-training did not help"
            verdict += f", so {problem} here"
        images = f"{results.num_test_images:,} test images"
        ends = f", over {images}"
        if interval is None:
            ends = f", as the difference is the same for each of the {images}"
        elif choices := ["arm"] * self.chooses_arm + ["recipe"] * self.has_choice:
            ends += f" and the choice of {listed(choices)} on {results.num_validation_images:,} validation images"
        first, second = "the MAE-pre-trained ViT", "the same network from scratch"
        if self.chooses_arm:
            best, following, *_ = self.recipes
            advice = f" (use the probe {self.best[best].probe})" if self.best[best].probe else ""
            first = f"{best} is the best of {len(self.recipes)} arms on validation images{advice} and"
            second = f"the next best, {following},"
        ours, baseline, *_ = (spread_text(arm.accuracy) for arm in results.arms.values())
        return (
            f"With {labels}, {first} reaches {ours} % test accuracy, {second} {baseline} %: {verdict} "
            f"({_interval_text(interval)}{ends})."
        )

    def details(self) -> str:
        """Return what supports the answer: runs, tests and choices."""
        results, pair = self.results, self.results.pairs[0]
        units = [f"{arm.units} ({name})" for name, arm in results.arms.items() if arm.num_units > 1]
        spread = f"± is the standard deviation over {listed(units)}."
        sentences = [spread if units else "Each arm has one run, so the spread over seeds is unknown."]
        if len(results.pairs) > 1:
            test = "Welch's t-test" if pair.seeds_test else "exact McNemar test"
            correction = f"with Holm's correction for {len(results.pairs)} pairs of arms"
            sentences.append(f"The two best arms: p = {pair.corrected_p_value:.2g} ({test}, {correction}).")
        else:
            if pair.seeds_test:
                sentences.append(f"Welch's t-test over them: p = {pair.seeds_test['p_value']:.2g}.")
            elif units and next(iter(results.arms.values())).is_of_one_encoder:
                sentences.append("One encoder gives no p-value for pre-training as a whole.")
            values = sorted(paired["test"]["p_value"] for paired in pair.tests)
            which, p = "", f"{values[0]:.2g}"
            if len(values) > 1:
                which, p = f" of {len(values)} pairs of equal seed", f"{p} to {values[-1]:.2g}"
            elif any(len(runs) > 1 for runs in self.chosen.values()):
                which = " of the best runs" if pair.tests[0]["seed"] is None else " of the pair of equal seed"
            sentences.append(f"Exact McNemar test{which}: p = {p}.")
        among = [f"{len(self.recipes)} arms"] * self.chooses_arm
        for name, recipes in self.recipes.items():
            among += [f"{len(recipes)} recipes {'of ' * self.chooses_arm}{name}"] * (len(recipes) > 1)
        if among:
            sentences.append(f"Validation chose among {listed(among)}.")
            sentences.append("The interval includes that choice, p-values do not.")
        return " ".join([*sentences, *self.advice()])

    def advice(self) -> list[str]:
        """Return a sentence for each arm that fine-tunes an encoder whose probe is better on validation images."""
        probes = sorted((run for run in self.runs if run.probe), key=lambda run: -run.best_validation_accuracy)
        sentences = []
        for name, runs in self.chosen.items():
            encoder = {runs[0].encoder, runs[0].init}
            probe = next((probe for probe in probes if {probe.encoder, probe.init} & encoder), None)
            if not runs[0].probe and probe and probe.best_validation_accuracy > mean_best(runs):
                reached = f"{probe.name} reaches {100 * probe.best_validation_accuracy:.1f} % on validation images"
                ours = f"fine-tuning the same encoder {100 * mean_best(runs):.1f} %"
                sentences.append(f"Use the probe instead of {name}: {reached}, {ours}.")
        return sentences

    def leak(self) -> str | None:
        """Return how test images that pre-training has seen affect the result; None where it has seen none."""
        results, sentences = self.results, list[str]()
        if results.unknown_arms:
            sentences.append(
                "It is unknown whether pre-training has seen these test images, or near-duplicates of them "
                f"({listed(results.unknown_arms)}). If it has, these numbers may be too high."
            )
        if results.num_seen_test_images:
            sentences.append(
                f"Pre-training has seen {results.num_seen_test_images:,} of the {results.num_test_images:,} test "
                "images, or near-duplicates, without labels."
            )
            rest = "No other test images are left to score."
            if unseen := results.unseen:
                two = list(unseen["accuracy"].items())[:2]
                accuracies = " and ".join(f"{spread_text(value)} % {name}" for name, value in two)
                gain = f"{100 * unseen['gain']:+.1f} points ({_interval_text(unseen['gain_interval'])})"
                rest = f"On the other {unseen['num_images']:,}, the accuracy is {accuracies}: {gain}."
            sentences.append(rest)
        return " ".join(sentences) or None

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
        runs = [run for recipe in self.chosen.values() for run in recipe]
        gains = [100 * row["gain"] for row in self.results.choices if row["arm"] in list(self.recipes)[:2]]
        also = [key for key in self.differing_settings if key != "model.init" and not self.chooses_arm]
        growing = ", ".join(str(run.path) for run in runs if not run.probe and run.best_epoch == run.curve[0][-1])
        precisions = sorted({str(run.record.mixed_precision) for run in runs})
        empty = [name for name in runs[0].class_names if name not in scores_on_test(runs[0])["f1_per_class"]]
        range_of_gains = f"{min(gains):+.1f} to {max(gains):+.1f} points"
        preparations = {preparation_of(run) for run in runs}
        one_encoder = [name for name, arm in self.results.arms.items() if arm.is_of_one_encoder and arm.num_units > 1]
        notes: dict[str | None, object] = {
            self.leak(): True,
            self.few_validation_images(): True,
            f"Depending on the recipe, the gain is {range_of_gains}: see the table of recipes.": len(gains) > 2,
            f"The chosen recipes differ in more than their first weights: {', '.join(also)}.": also,
            f"Longer training may change the difference: the last epoch is the best one of {growing}.": growing,
            f"The spread of {listed(one_encoder)} is over fine-tuning seeds of one encoder. Other pre-training seeds "
            "may vary more.": one_encoder,
            "Curves and F1 show all runs; the other pictures show the best run of each arm on validation: "
            f"{listed([run.name for run in self.best.values()])}.": len(runs) > len(self.recipes),
            f"The runs differ in precision ({', '.join(precisions)}).": len(precisions) > 1,
            "The networks take images of different sizes, or prepare them differently (data.resize). That the images "
            "are the same was checked by source, splits and labels, not by their pixels.": len(preparations) > 1,
            f"No test image belongs to {', '.join(empty)}. Such classes have no F1, and macro-F1 is the mean over the "
            "other classes.": empty,
        }
        return [note for note, applies in notes.items() if note and applies]

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each run, as comparison.json holds it: accuracies and F1 in 0..1, `inf` for never."""
        target = self.results.target
        return [
            {
                "arm": arm,
                "run": run.name,
                "init": run.init,
                "recipe": recipe_name(recipe, recipes),
                "chosen": recipe is recipes[0],
                "seed": run.seed,
                **{f"test_{key}": scores_on_test(run)[key] for key in ("accuracy", "f1", "loss")},
                "best_validation_accuracy": run.best_validation_accuracy,
                "best_epoch": run.best_epoch,
                "epochs_to_scratch_best": None if run.probe or target is None else epochs_to(run, target),
                "num_parameters": run.record.num_parameters,
                **run.shape,
            }
            for arm, recipes in self.recipes.items()
            for recipe in recipes
            for run in recipe
        ]


def compare_runs(pretrained: Sequence[str | Path], scratch: Sequence[str | Path]) -> Comparison:
    """Read the run folders of fine-tuning and of the same training from scratch, and check that they can be compared.

    ConfigError if a run is unfinished, in the wrong arm or given twice, or differs in images, classes or network.
    """
    arms = {"MAE pre-trained": [read_run(path) for path in pretrained]}
    arms["from scratch"] = [read_run(path) for path in scratch]
    for option, runs in zip(("--pretrained", "--scratch"), arms.values(), strict=True):
        for run in runs:
            other = "--scratch" if run.from_scratch else "--pretrained"
            require(option == other, f"{run.path} has model.init {run.init}: name it after {other}")
    return Comparison(sort_arms(arms, chooses_arm=False))


def compare_arms(arms: Mapping[str, Sequence[str | Path]]) -> Comparison:
    """Read the folders of two or more arms by name, fine-tuning runs and probes, and check that they can be compared.

    The arms are sorted by validation, the best first. ConfigError if a run is unfinished or given twice, or differs in
    images or classes.
    """
    paths = [Path(path).expanduser().resolve() for of_arm in arms.values() for path in of_arm]
    twice = [str(path) for path in paths if paths.count(path) > 1]
    require(not twice, f"{', '.join(twice[:1])} is named twice: name each run once, in one arm (--arm)")
    runs = {name: [run for path in of_arm for run in read_runs(path)] for name, of_arm in arms.items()}
    return Comparison(sort_arms(runs, chooses_arm=True), chooses_arm=True)


def listed(texts: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    return " and ".join([*[", ".join(texts[:-1])][: len(texts) - 1], *texts[-1:]])


def spread_text(value: Spread, factor: float = 100, digits: int = 1) -> str:
    """Return a mean, ± its standard deviation where it has one; by default in per cent."""
    sd = "" if value.sd is None else f" ± {factor * value.sd:.{digits}f}"
    return f"{factor * value.center:.{digits}f}{sd}"


def _interval_text(gain: Interval | None) -> str:
    return f"95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}" if gain else "no interval"
