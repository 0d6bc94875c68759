"""What two arms came to: means over seeds, intervals over test images, paired tests, and how soon each arm got there.

An arm is the runs of one recipe, which differ in their seed alone. Nothing here chooses a run.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mae_hf.evaluation.statistics import (
    Interval,
    McNemar,
    OverSeeds,
    epochs_to_reach,
    image_interval,
    mcnemar,
    mean_under_curve,
    over_seeds,
    welch,
)
from mae_hf.training.finished_runs import TOLERANCE, Run


@dataclass(frozen=True)
class Arm:
    """An arm's results on test images and on the way there.

    Args:
        seeds: of its runs.
        accuracy: test accuracy of each seed, mean and spread.
        f1: test macro-F1.
        loss: test loss.
        best_validation_accuracy: of each seed.
        accuracy_interval: bootstrap over test images of the mean accuracy of these seeds.
        mean_validation_accuracy: mean height of the validation curve over `Results.epochs`; None without such a range.
        epochs_to_target: first epoch at which validation accuracy is at least `Results.target`; `inf`: never.
    """

    seeds: tuple[int, ...]
    accuracy: OverSeeds
    f1: OverSeeds
    loss: OverSeeds
    best_validation_accuracy: OverSeeds
    accuracy_interval: Interval | None
    mean_validation_accuracy: OverSeeds | None
    epochs_to_target: OverSeeds


@dataclass(frozen=True)
class Pair:
    """A paired test of two runs on the same test images.

    Args:
        pretrained: its run folder.
        scratch: its run folder.
        seed: the seed of both; None where no seeds match, and the best runs by validation are paired.
        test: McNemar's test; first: pre-trained.
    """

    pretrained: str
    scratch: str
    seed: int | None
    test: McNemar


@dataclass(frozen=True)
class Unseen:
    """Both arms on the test images that no pre-training of these runs has seen.

    Args:
        num_images: how many.
        pretrained: accuracy of each seed of the pre-trained arm, mean and spread.
        scratch: the same from scratch.
        gain: the difference of the means.
        gain_interval: its paired bootstrap over these images.
    """

    num_images: int
    pretrained: OverSeeds
    scratch: OverSeeds
    gain: float
    gain_interval: Interval | None


@dataclass(frozen=True)
class Results:
    """Both arms and their difference.

    Args:
        pretrained: the arm from a pre-trained encoder.
        scratch: the arm from random weights.
        num_test_images: n.
        num_seen_test_images: how many of them a pre-training of these runs has seen; None if it is not known.
        unseen: the arms on the others; None where it is not known which those are, or there are none or only those.
        gain: test accuracy that pre-training gained, in 0..1; negative where it lost.
        gain_interval: its paired bootstrap over test images.
        seeds_p_value: of Welch's t-test of the seeds' accuracies; None without several seeds in both arms.
        pairs: a test for each pair of runs.
        target: the scratch arm's best validation accuracy, the mean over its seeds.
        epochs: the range of epochs in which every run was evaluated; None if there is none.
        mean_validation_gain: difference of `mean_validation_accuracy`, for each pair of equal seed, else of the means.
    """

    pretrained: Arm
    scratch: Arm
    num_test_images: int
    num_seen_test_images: int | None
    unseen: Unseen | None
    gain: float
    gain_interval: Interval | None
    seeds_p_value: float | None
    pairs: tuple[Pair, ...]
    target: float
    epochs: tuple[float, float] | None
    mean_validation_gain: OverSeeds | None

    def to_json(self) -> dict[str, Any]:
        """All numbers; None is unknown or, for epochs, never reached."""
        return _finite(dataclasses.asdict(self))


def _finite(value: Any) -> Any:
    """JSON has no word for infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measure(pretrained: Sequence[Run], scratch: Sequence[Run]) -> Results:
    """The results of two arms, tested on the same images.

    Args:
        pretrained: runs of one recipe, the best by validation first.
        scratch: runs of one recipe, the best by validation first.
    """
    target = float(np.mean([run.best_validation_accuracy for run in scratch]))
    epochs = _shared_epochs([*pretrained, *scratch])
    pairs = _pairs(pretrained, scratch)
    difference = _mean_correct(pretrained) - _mean_correct(scratch)
    seen = _seen(pretrained)
    arms = _arm(pretrained, target, epochs), _arm(scratch, target, epochs)
    seeds_match = pairs[0][0].config.train.seed == pairs[0][1].config.train.seed
    return Results(
        pretrained=arms[0],
        scratch=arms[1],
        num_test_images=len(difference),
        num_seen_test_images=None if seen is None else int(seen.sum()),
        unseen=None if seen is None or not 0 < seen.sum() < len(seen) else _unseen(pretrained, scratch, ~seen),
        gain=float(difference.mean()),
        gain_interval=image_interval(difference),
        seeds_p_value=welch(arms[0].accuracy.values, arms[1].accuracy.values),
        pairs=tuple(
            Pair(
                str(ours.path),
                str(other.path),
                ours.config.train.seed if seeds_match else None,
                mcnemar(ours.correct, other.correct),
            )
            for ours, other in pairs
        ),
        target=target,
        epochs=epochs,
        mean_validation_gain=_mean_validation_gain(arms, pairs if seeds_match else [], epochs),
    )


def _seen(runs: Sequence[Run]) -> np.ndarray | None:
    """bool (n,), the test images that a pre-training of any of the runs has seen; None if one is not known."""
    masks = [run.seen for run in runs if run.seen is not None]
    return np.any(masks, axis=0) if len(masks) == len(runs) else None


def _unseen(pretrained: Sequence[Run], scratch: Sequence[Run], rows: np.ndarray) -> Unseen:
    difference = (_mean_correct(pretrained) - _mean_correct(scratch))[rows]
    return Unseen(
        num_images=int(rows.sum()),
        pretrained=over_seeds([float(run.correct[rows].mean()) for run in pretrained]),
        scratch=over_seeds([float(run.correct[rows].mean()) for run in scratch]),
        gain=float(difference.mean()),
        gain_interval=image_interval(difference),
    )


def _mean_validation_gain(
    arms: tuple[Arm, Arm], pairs: Sequence[tuple[Run, Run]], epochs: tuple[float, float] | None
) -> OverSeeds | None:
    ours, baseline = (arm.mean_validation_accuracy for arm in arms)
    if not (epochs and ours and baseline):
        return None
    gains = [_mean_height(run, epochs) - _mean_height(other, epochs) for run, other in pairs]
    return over_seeds(gains or [ours.center - baseline.center])


def _arm(runs: Sequence[Run], target: float, epochs: tuple[float, float] | None) -> Arm:
    return Arm(
        seeds=tuple(run.config.train.seed for run in runs),
        accuracy=over_seeds([run.scores["accuracy"] for run in runs]),
        f1=over_seeds([run.scores["f1"] for run in runs]),
        loss=over_seeds([run.scores["loss"] for run in runs]),
        best_validation_accuracy=over_seeds([run.best_validation_accuracy for run in runs]),
        accuracy_interval=image_interval(_mean_correct(runs)),
        mean_validation_accuracy=over_seeds([_mean_height(run, epochs) for run in runs]) if epochs else None,
        epochs_to_target=over_seeds([epochs_to(run, target) for run in runs], use_median=True),
    )


def epochs_to(run: Run, accuracy: float) -> float:
    """The first epoch at which validation accuracy is at least `accuracy`; `inf` if it never is."""
    return epochs_to_reach(*run.curve, accuracy - TOLERANCE)


def f1_of_classes(runs: Sequence[Run]) -> dict[str, float]:
    """F1 of each class, the mean over runs; NaN for a class without test images."""
    names, tested = runs[0].class_names, set(runs[0].labels.tolist())
    return {
        name: float(np.mean([run.scores["f1_per_class"][name] for run in runs])) if i in tested else math.nan
        for i, name in enumerate(names)
    }


def _mean_correct(runs: Sequence[Run]) -> np.ndarray:
    """float (n,), the part of the seeds that have each test image right."""
    return np.mean([run.correct for run in runs], axis=0)


def _mean_height(run: Run, epochs: tuple[float, float]) -> float:
    return mean_under_curve(*run.curve, *epochs)


def _shared_epochs(runs: Sequence[Run]) -> tuple[float, float] | None:
    start, end = max(run.curve[0][0] for run in runs), min(run.curve[0][-1] for run in runs)
    return (start, end) if start < end else None


def _pairs(pretrained: Sequence[Run], scratch: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of equal seed; where there are none, the best of each arm by validation."""
    # of several encoders fine-tuned with one seed the best by validation: a scratch run is in one pair
    ours, baseline = ({run.config.train.seed: run for run in reversed(arm)} for arm in (pretrained, scratch))
    return [(ours[seed], baseline[seed]) for seed in sorted(ours) if seed in baseline] or [(pretrained[0], scratch[0])]
