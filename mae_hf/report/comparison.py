"""A comparison: the runs of two arms, set side by side, and the answer they give.

Runs that do not answer the same question (other test images, classes or network) are refused. Runs of an arm that
differ in their seed alone are one recipe; validation chooses the recipe that speaks for the arm, with all its seeds.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mae_hf.config.model import EncoderConfig
from mae_hf.errors import require
from mae_hf.training.finished_runs import TOLERANCE, Run, read_run

if TYPE_CHECKING:
    from mae_hf.evaluation.statistics import OverSeeds
    from mae_hf.report.results import Results


PRETRAINED, SCRATCH = "MAE pre-trained", "from scratch"  # what the arms are called in pictures and tables


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two arms that can be compared.

    Args:
        pretrained: runs from a pre-trained encoder: those of the recipe that speaks for the arm, then the others, the
            best by validation accuracy first in each part.
        scratch: runs from random weights, in the same order.
    """

    pretrained: tuple[Run, ...]
    scratch: tuple[Run, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, the pre-trained ones first."""
        return self.pretrained + self.scratch

    @property
    def chosen(self) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
        """The runs that the answer is about, pre-trained and from scratch: all seeds of each arm's best recipe."""
        ours, baseline = (
            tuple(run for run in arm if run.recipe == arm[0].recipe) for arm in (self.pretrained, self.scratch)
        )
        return ours, baseline

    @cached_property
    def results(self) -> "Results":
        """The numbers of the chosen runs."""
        from mae_hf.report.results import measure  # scipy: refused runs have been refused by now

        return measure(*self.chosen)

    @property
    def points(self) -> float:
        """Percentage points of test accuracy that pre-training gained; negative where it lost."""
        return 100 * self.results.gain

    def answer(self) -> str:
        """The result in one sentence with its interval, however it turned out."""
        num_labels = self.scratch[0].record.get("num_train_images")  # the same in all runs, as their data are
        labels = f"With {num_labels:,} labels" if num_labels else "With the same labels"
        arms = (self.results.pretrained, self.results.scratch)
        ours, baseline = (_percent(arm.accuracy) for arm in arms)
        return (
            f"{labels}, the MAE-pre-trained ViT reaches {ours} test accuracy, the same network from scratch "
            f"{baseline}: {self._verdict()} ({self._interval()})."
        )

    def details(self) -> str:
        """What stands behind the answer: the test, the seeds, and what validation has chosen from; one sentence."""
        details = "; ".join([self._seeds(), self._test(), *self._selection()])
        return f"{details[0].upper()}{details[1:]}."

    def _verdict(self) -> str:
        interval, p_value = self.results.gain_interval, self.results.seeds_p_value
        if round(self.points, 1) == 0:
            return "less than 0.1 points apart"
        verdict = f"{self.points:+.1f} points"
        if (interval and interval.low <= 0 <= interval.high) or (p_value is not None and p_value > 0.05):
            return f"{verdict}, which may be chance"
        return verdict + (", so pre-training did not help here" if self.points < 0 else "")

    def _interval(self) -> str:
        interval, n = self.results.gain_interval, self.results.num_test_images
        if interval is None:
            return f"no interval, as the arms differ alike on all of the {n:,} test images"
        return f"95 % interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f}, over {n:,} test images"

    def _test(self) -> str:
        pairs = self.results.pairs
        values = sorted(pair.test.p_value for pair in pairs)
        if len(pairs) > 1:
            return f"exact McNemar p = {values[0]:.2g} to {values[-1]:.2g} in {len(pairs)} pairs of equal seed"
        several = max(map(len, self.chosen)) > 1
        which = (
            "" if not several else " of the pair of equal seed" if pairs[0].seed is not None else " of the best runs"
        )
        return f"exact McNemar p{which} = {values[0]:.2g}"

    def _seeds(self) -> str:
        ours, baseline = map(len, self.chosen)
        if ours == baseline == 1:
            return "one seed each, so the spread over seeds is unknown"
        p_value = self.results.seeds_p_value
        test = f", Welch's t over seeds p = {p_value:.2g}" if p_value is not None else ""
        if ours == baseline:
            return f"mean ± standard deviation of {ours} seeds each{test}"
        return f"{_count(ours, 'seed')} pre-trained and {baseline} from scratch{test}"

    def _selection(self) -> list[str]:
        """What validation has chosen from."""
        counts = {"pre-trained": self.pretrained, "from scratch": self.scratch}
        return [
            f"{name}: the best of {count} recipes by validation accuracy"
            for name, arm in counts.items()
            if (count := len({run.recipe for run in arm})) > 1
        ]

    def leak(self) -> str | None:
        """What test images that pre-training has seen do to the result; None where it has seen none."""
        num_seen, unseen, n = self.results.num_seen_test_images, self.results.unseen, self.results.num_test_images
        if num_seen == 0:
            return None
        if num_seen is None:
            return (
                "It is not known whether pre-training has seen these test images, or near copies of them. If it has, "
                "the pre-trained arm's numbers may be too high."
            )
        known = f"Pre-training has seen {num_seen:,} of the {n:,} test images, or near copies of them, without labels."
        if unseen is None:
            return f"{known} No score without them can be given."
        interval = unseen.gain_interval
        ends = f"95 % interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f}" if interval else "no interval"
        return (
            f"{known} On the {unseen.num_images:,} others it is {_percent(unseen.pretrained)} pre-trained and "
            f"{_percent(unseen.scratch)} from scratch, {100 * unseen.gain:+.1f} points ({ends})."
        )

    def notes(self) -> list[str]:
        """What a reader must know to judge the numbers, a sentence each."""
        ours, baseline = self.chosen
        leak = self.leak()
        notes = [leak] if leak else []
        other = dict(baseline[0].settings)
        also = [key for key, value in ours[0].settings if key != "model.init" and other[key] != value]
        if also:
            notes.append(f"The chosen recipes differ in more than where they start: {', '.join(also)}.")
        growing = [run for run in (*ours, *baseline) if run.metrics["best_epoch"] >= run.curve[0][-1] - TOLERANCE]
        if growing:
            names = ", ".join(str(run.path) for run in growing)
            notes.append(
                f"Not trained to the end: the last epoch is the best one of {names}. Longer training may change the "
                "difference."
            )
        if min(len(ours), len(baseline)) == 1:
            notes.append(
                "An arm with a single seed has no spread: how far its number would move with another is unknown."
            )
        if len(ours) != len(baseline):
            notes.append(
                f"The arms have different numbers of seeds ({len(ours)} pre-trained, {len(baseline)} from scratch)."
            )
        if max(len(ours), len(baseline)) > 1:
            notes.append(
                "Pictures other than curves and F1, and the numbers in them, are of one run of each arm, its best seed "
                f"by validation: {ours[0].path} and {baseline[0].path}."
            )
        precisions = {str(run.record.get("mixed_precision")) for arm in self.chosen for run in arm}
        if len(precisions) > 1:
            notes.append(f"The runs were not made in one precision ({', '.join(sorted(precisions))}).")
        if self.results.epochs is None:
            notes.append(
                "No mean of the validation curves: there is no range of epochs in which every run was evaluated."
            )
        return notes + self._class_notes()

    def _class_notes(self) -> list[str]:
        names, first = self.scratch[0].class_names, self.scratch[0]
        empty = [name for i, name in enumerate(names) if not (first.labels == i).any()]
        notes = []
        if empty:
            notes.append(
                f"No test image is of {', '.join(empty)}: there is no F1 for what has no images, and macro-F1 is the "
                "mean over the other classes."
            )
        for run in (run for arm in self.chosen for run in arm):
            never = [n for i, n in enumerate(names) if n not in empty and not (run.predictions == i).any()]
            if never:
                notes.append(
                    f"{run.path} never predicts {', '.join(never)}: F1 is 0 there, as no image of it is found."
                )
        return notes

    def table(self) -> list[dict[str, Any]]:
        """A row for each run, as comparison.json holds it: accuracies and F1 in 0..1."""
        from mae_hf.report.results import epochs_to

        chosen = [run for arm in self.chosen for run in arm]
        return [
            {
                "run": str(run.path),
                "init": run.config.model.init,
                "recipe": _what_differs(run, arm),
                "chosen": run in chosen,
                "seed": run.config.train.seed,
                "test_accuracy": run.scores["accuracy"],
                "test_f1": run.scores["f1"],
                "test_loss": run.scores["loss"],
                "best_validation_accuracy": run.best_validation_accuracy,
                "best_epoch": run.metrics["best_epoch"],
                "epochs_to_scratch_best": _reached(epochs_to(run, self.results.target)),
                "num_parameters": run.record.get("num_parameters"),
            }
            for arm in (self.pretrained, self.scratch)
            for run in arm
        ]


def _percent(accuracy: "OverSeeds") -> str:
    spread = "" if accuracy.sd is None else f" ± {100 * accuracy.sd:.1f}"
    return f"{100 * accuracy.center:.1f}{spread} %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _reached(epochs: float) -> float | None:
    return epochs if np.isfinite(epochs) else None


def _what_differs(run: Run, arm: Sequence[Run]) -> str:
    """`key value` of the settings in which the recipes of an arm differ, as this run has them."""
    recipes = [dict(other.recipe) for other in arm]
    differing = [(key, value) for key, value in run.recipe if any(other.get(key) != value for other in recipes)]
    return ", ".join(f"{key} {value}" for key, value in differing) or "the only one"


def compare(pretrained: Sequence[str | Path], scratch: Sequence[str | Path]) -> Comparison:
    """Reads the runs of both arms and sees to it that they answer one question.

    Args:
        pretrained: run folders of fine-tuning from a pre-trained encoder.
        scratch: run folders of the same training from random weights.

    Raises:
        ConfigError: a folder that is no finished run, is in the wrong arm or given twice, a seed that a recipe has
            twice, or a run that differs from the first in test images, classes, labels or network.
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
    return Comparison(pretrained=_best_recipe_first(ours), scratch=_best_recipe_first(baseline))


def _best_recipe_first(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Recipes by their mean best validation accuracy, and within the first recipe, and the others, runs by theirs."""
    recipes: dict[tuple[tuple[str, Any], ...], list[Run]] = {}
    for run in runs:
        recipes.setdefault(run.recipe, []).append(run)
    for same in recipes.values():
        _check_seeds(same)
    chosen = max(recipes.values(), key=lambda same: float(np.mean([run.best_validation_accuracy for run in same])))
    return tuple(sorted(runs, key=lambda run: (run not in chosen, -run.best_validation_accuracy)))


def _check_seeds(runs: Sequence[Run]) -> None:
    by_seed: dict[tuple[int, Path], Run] = {}
    for run in runs:
        seed = run.config.train.seed
        other = by_seed.setdefault((seed, Path(run.config.model.init).expanduser().resolve()), run)
        require(
            other is run,
            f"{other.path} and {run.path} are the same recipe with the same train.seed {seed}: counted as two seeds "
            "they would make the spread too small, name one of them",
        )


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
