"""A comparison: the runs of two or more arms, checked against each other, and the answer they give.

Runs that do not answer the same question (different test images or classes) are refused. Runs of an arm that differ in
their seeds alone are one recipe; validation chooses the recipe that represents the arm, with all its runs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_hf.errors import require
from mae_hf.evaluation.statistics import Interval, Spread
from mae_hf.report.arms import ComparedArms
from mae_hf.report.recipes import check_comparable, epochs_to, mean_best, recipe_name, scores_on_test, sort_recipes
from mae_hf.training.finished_runs import Run, read_run, read_runs

PRETRAINED_ARM, SCRATCH_ARM = "MAE pre-trained", "from scratch"  # in pictures and tables
MIN_VALIDATION_IMAGES = 100  # below, one image is more than a point


class Comparison(ComparedArms):
    """The same arms, and what they say."""

    @property
    def _names(self) -> list[str]:
        """The arms as sentences name them, in their order."""
        return list(self.recipes) if self.chooses_arm else ["pre-trained", "from scratch"]

    def answer(self) -> str:
        """Return the result in one sentence with its interval, however it turned out."""
        results, interval, pair = self.results, self.results.gain_interval, self.results.pairs[0]
        num_labels = self.runs[0].record.num_train_images  # the same in all runs, as their data are
        labels = f"{num_labels:,} labels" if num_labels else "the same labels"
        p_value = pair.seeds_test.p_value if pair.seeds_test else 0.0
        if self.chooses_arm:  # of several pairs, the first is one that looks good
            p_value = pair.corrected_p_value
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
        elif self.has_choice or self.chooses_arm:
            chosen = ["arm"] * self.chooses_arm + ["recipe"] * self.has_choice
            ends += f" and the choice of {listed(chosen)} on {results.num_validation_images:,} validation images"
        worth = f"{verdict} ({_interval_text(interval)}{ends})"
        ours, baseline = (spread_text(arm.accuracy) for arm in results.leading)
        if not self.chooses_arm:
            return (
                f"With {labels}, the MAE-pre-trained ViT reaches {ours} % test accuracy, the same network from scratch "
                f"{baseline} %: {worth}."
            )
        probe = next(iter(self.best.values())).probe
        best, following = self._names[:2]
        return (
            f"With {labels}, {best} is the best of {len(self.recipes)} arms on validation images"
            f"{f' (use the probe {probe})' if probe else ''} and reaches {ours} % test accuracy, the next best, "
            f"{following}, {baseline} %: {worth}."
        )

    def details(self) -> str:
        """Return what supports the answer: runs, tests and choices."""
        units, pair = [arm.describe_units() for arm in self.results.arms.values()], self.results.pairs[0]
        is_single = set(units) == {"1 run"}
        shown = zip(units, self._names, strict=True)
        of_arms = [f"{unit} ({name})" for unit, name in shown if unit != "1 run" or not self.chooses_arm]
        sentences = [f"± is the standard deviation over {listed(of_arms)}."]
        if is_single:
            sentences = ["Each arm has one run, so the spread over seeds is unknown."]
        if self.chooses_arm:
            test = "Welch's t-test" if pair.seeds_test else "exact McNemar test"
            sentences.append(
                f"The two best arms: p = {pair.corrected_p_value:.2g} ({test}, with Holm's correction for "
                f"{len(self.results.pairs)} pairs of arms)."
            )
        else:
            if pair.seeds_test:
                sentences.append(f"Welch's t-test over them: p = {pair.seeds_test.p_value:.2g}.")
            elif not is_single and self.results.leading[0].is_of_one_encoder:
                sentences.append("One encoder gives no p-value for pre-training as a whole.")
            sentences.append(self._mcnemar())
        several = zip(self._names, map(len, self.recipes.values()), strict=True)
        among = [f"{len(self.recipes)} arms"] * self.chooses_arm
        among += [f"{count} recipes {'of ' * self.chooses_arm}{name}" for name, count in several if count > 1]
        if among:
            sentences.append(
                f"Validation chose among {listed(among)}. The interval includes that choice, p-values do not."
            )
        return " ".join([*sentences, *self.advice()])

    def advice(self) -> list[str]:
        """Return a sentence for each arm that fine-tunes an encoder whose probe is better on validation images."""
        return [
            f"Use the probe instead of {name}: {probe.name} reaches {100 * probe.best_validation_accuracy:.1f} % on "
            f"validation images, fine-tuning the same encoder {100 * mean_best(self.chosen[name]):.1f} %."
            for name, probe in self.better_probes
        ]

    def _mcnemar(self) -> str:
        """The tests of single runs of the first two arms."""
        tests = self.results.pairs[0].tests
        values = sorted(paired.test.p_value for paired in tests)
        which, p = "", f"{values[0]:.2g}"
        if len(values) > 1:
            which, p = f" of {len(values)} pairs of equal seed", f"{p} to {values[-1]:.2g}"
        elif any(len(runs) > 1 for runs in self.chosen.values()):
            which = " of the best runs" if tests[0].seed is None else " of the pair of equal seed"
        return f"Exact McNemar test{which}: p = {p}."

    def leak(self) -> str | None:
        """Return how test images that pre-training has seen affect the result; None where it has seen none."""
        results, sentences = self.results, list[str]()
        if results.unknown_arms:
            whose, their = f" of {listed(results.unknown_arms)}", "their"
            whose, their = (whose, their) if self.chooses_arm else ("", "the pre-trained arm's")
            sentences.append(
                f"It is unknown whether pre-training{whose} has seen these test images, or near-duplicates of them. If "
                f"it has, {their} numbers may be too high."
            )
        if results.num_seen_test_images:
            sentences.append(
                f"Pre-training has seen {results.num_seen_test_images:,} of the {results.num_test_images:,} test "
                "images, or near-duplicates, without labels."
            )
            unseen = results.unseen
            two = zip(unseen.accuracy.values() if unseen else (), self._names[:2], strict=False)
            accuracies = " and ".join(f"{spread_text(value)} % {name}" for value, name in two)
            sentences.append(
                f"On the other {unseen.num_images:,}, the accuracy is {accuracies}: {100 * unseen.gain:+.1f} points "
                f"({_interval_text(unseen.gain_interval)})."
                if unseen
                else "No other test images are left to score."
            )
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
        gains = [100 * choice.gain for choice in self.results.choices if choice.arm in list(self.recipes)[:2]]
        also = [key for key in self.differing_settings if key != "model.init"]
        growing = ", ".join(str(run.path) for run in runs if not run.probe and _is_best_at_its_end(run))
        precisions = sorted({str(run.record.mixed_precision) for run in runs})
        empty = [name for name in runs[0].class_names if name not in scores_on_test(runs[0])["f1_per_class"]]
        range_of_gains = f"{min(gains):+.1f} to {max(gains):+.1f} points"
        arms = self.results.arms.items()
        of_one_encoder = [name for name, arm in arms if arm.is_of_one_encoder and arm.num_units > 1]
        whose = f"The spread of {listed(of_one_encoder)}" if self.chooses_arm else "The pre-trained arm's spread"
        sizes = {run.shape["image_size"] for run in runs}
        notes: dict[str | None, object] = {
            self.leak(): True,
            self.few_validation_images(): True,
            f"Depending on the recipe, the gain is {range_of_gains}: see the table of recipes.": len(gains) > 2,
            f"The chosen recipes differ in more than their first weights: {', '.join(also)}.": also
            and not self.chooses_arm,
            f"Longer training may change the difference: the last epoch is the best one of {growing}.": growing,
            f"{whose} is over fine-tuning seeds of one encoder. Other pre-training seeds may vary "
            "more.": of_one_encoder,
            "Curves and F1 show all runs; the other pictures show the best run of each arm on validation: "
            f"{listed([run.name for run in self.best.values()])}.": len(runs) > len(self.recipes),
            f"The runs differ in precision ({', '.join(precisions)}).": len(precisions) > 1,
            "The networks take images of different sizes. That the images are the same was checked by source, splits "
            "and labels, not by their pixels.": len(sizes) > 1,
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


def _is_best_at_its_end(run: Run) -> bool:
    return run.best_epoch == run.curve[0][-1]


def listed(texts: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    return " and ".join([*[", ".join(texts[:-1])][: len(texts) - 1], *texts[-1:]])


def spread_text(value: Spread, factor: float = 100, digits: int = 1) -> str:
    """Return a mean, ± its standard deviation where it has one; by default in per cent."""
    sd = "" if value.sd is None else f" ± {factor * value.sd:.{digits}f}"
    return f"{factor * value.center:.{digits}f}{sd}"


def _interval_text(gain: Interval | None) -> str:
    return f"95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}" if gain else "no interval"


def compare_runs(pretrained: Sequence[str | Path], scratch: Sequence[str | Path]) -> Comparison:
    """Read the run folders of fine-tuning and of the same training from scratch, and check that they can be compared.

    Raises:
        ConfigError: a run is unfinished, in the wrong arm or given twice, or differs in images, classes or network.
    """
    ours, baseline = [read_run(path) for path in pretrained], [read_run(path) for path in scratch]
    for run in ours + baseline:
        option = "--scratch" if run.from_scratch else "--pretrained"
        message = f"{run.path} has model.init {run.init}: name it after {option}"
        require(run.from_scratch == (run in baseline), message)
        check_comparable(ours[0], run, same_network=True)
    return Comparison({PRETRAINED_ARM: sort_recipes(ours), SCRATCH_ARM: sort_recipes(baseline)})


def compare_arms(arms: Mapping[str, Sequence[str | Path]]) -> Comparison:
    """Read the folders of two or more arms by name, fine-tuning runs and probes, and check that they can be compared.

    The arms are sorted by validation, the best first.

    Raises:
        ConfigError: there is one arm, a run is unfinished or given twice, or it differs in images or classes.
    """
    require(len(arms) > 1, f"{len(arms)} arm: name two or more (--arm NAME=RUN --arm NAME=RUN)")
    paths = Counter(Path(path).expanduser().resolve() for of_arm in arms.values() for path in of_arm)
    twice = [str(path) for path, count in paths.items() if count > 1]
    require(not twice, f"{', '.join(twice[:1])} is named twice: name each run once, in one arm (--arm)")
    runs = {name: [run for path in of_arm for run in read_runs(path)] for name, of_arm in arms.items()}
    first = next(iter(runs.values()))[0]
    for run in (run for of_arm in runs.values() for run in of_arm):
        check_comparable(first, run, same_network=False)
    recipes = {name: sort_recipes(of_arm) for name, of_arm in runs.items()}
    ranked = sorted(recipes, key=lambda name: -mean_best(recipes[name][0]))
    return Comparison({name: recipes[name] for name in ranked}, chooses_arm=True)
