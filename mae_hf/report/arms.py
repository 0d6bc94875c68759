"""The arms of a comparison, read from their run folders and checked against each other.

Runs that do not answer the same question (different test images or classes) are refused. Runs of an arm that differ in
their seeds alone are one recipe; validation chooses the recipe that represents the arm, with all its runs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from mae_hf.errors import require
from mae_hf.report.comparison import Comparison
from mae_hf.report.recipes import Recipe, check_comparable, mean_best, sort_recipes
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
    return Comparison(_sorted_recipes(arms, same_network=True))


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
    recipes = _sorted_recipes(runs, same_network=False)
    ranked = sorted(recipes.items(), key=lambda arm: -mean_best(arm[1][0]))
    return Comparison(dict(ranked), chooses_arm=True)


def _sorted_recipes(arms: Mapping[str, Sequence[Run]], *, same_network: bool) -> dict[str, tuple[Recipe, ...]]:
    """The recipes of each arm, after checks that all runs can be compared."""
    first, *others = chain(*arms.values())
    for run in others:
        check_comparable(first, run, same_network=same_network)
    return {name: sort_recipes(runs) for name, runs in arms.items()}
