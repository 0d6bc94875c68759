"""The arms of a comparison, read from their run folders and checked against each other."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from mae_hf.errors import require
from mae_hf.report.comparison import Comparison
from mae_hf.report.recipes import check_comparable, mean_best, sort_recipes
from mae_hf.training.finished_runs import Run, read_run, read_runs

PRETRAINED_ARM, SCRATCH_ARM = "MAE pre-trained", "from scratch"  # of `compare_runs`


def compare_runs(pretrained: Sequence[str | Path], scratch: Sequence[str | Path]) -> Comparison:
    """Read the run folders of fine-tuning and of the same training from scratch, and check that they can be compared.

    Raises:
        ConfigError: a run is unfinished, in the wrong arm or given twice, or differs in images, classes or network.
    """
    arms = {PRETRAINED_ARM: [read_run(path) for path in pretrained], SCRATCH_ARM: [read_run(path) for path in scratch]}
    for arm, runs in arms.items():
        for run in runs:
            option = "--scratch" if run.from_scratch else "--pretrained"
            message = f"{run.path} has model.init {run.init}: name it after {option}"
            require(run.from_scratch == (arm == SCRATCH_ARM), message)
    return _compared(arms, chooses_arm=False)


def compare_arms(arms: Mapping[str, Sequence[str | Path]]) -> Comparison:
    """Read the folders of two or more arms by name, fine-tuning runs and probes, and check that they can be compared.

    The arms are sorted by validation, the best first.

    Raises:
        ConfigError: there is one arm, a run is unfinished or given twice, or it differs in images or classes.
    """
    require(len(arms) > 1, f"{len(arms)} arm: name two or more (--arm NAME=RUN --arm NAME=RUN)")
    paths = [Path(path).expanduser().resolve() for of_arm in arms.values() for path in of_arm]
    twice = [str(path) for path in paths if paths.count(path) > 1]
    require(not twice, f"{', '.join(twice[:1])} is named twice: name each run once, in one arm (--arm)")
    runs = {name: [run for path in of_arm for run in read_runs(path)] for name, of_arm in arms.items()}
    return _compared(runs, chooses_arm=True)


def _compared(arms: Mapping[str, Sequence[Run]], *, chooses_arm: bool) -> Comparison:
    first, *others = chain(*arms.values())
    for run in others:
        check_comparable(first, run, same_network=not chooses_arm)
    recipes = {name: sort_recipes(runs) for name, runs in arms.items()}
    ranked = sorted(recipes.items(), key=lambda arm: -mean_best(arm[1][0])) if chooses_arm else recipes
    return Comparison(dict(ranked), chooses_arm)
