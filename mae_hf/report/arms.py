"""The arms of a comparison: their recipes and runs, and which of them represent an arm."""

from dataclasses import dataclass
from functools import cached_property

from mae_hf.report.recipes import Recipe, mean_best
from mae_hf.report.results import Results, measure
from mae_hf.training.finished_runs import Run
from mae_hf.training.provenance import Provenance, find_provenance


@dataclass(frozen=True, eq=False)
class ComparedArms:
    """Two or more arms. The answer is about the first two: pre-trained and scratch, or the two best on validation."""

    recipes: dict[str, tuple[Recipe, ...]]  # of each arm, the chosen one first; its runs, the best on validation first
    chooses_arm: bool = False  # whether validation chooses the best arm; otherwise pre-training is against scratch

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
        """The settings that all chosen recipes have, and in which they differ."""
        first, *others = (dict(recipe[0].settings) for recipe in self.chosen.values())
        return [key for key, value in first.items() if any(other.get(key, value) != value for other in others)]

    @cached_property
    def better_probes(self) -> list[tuple[str, Run]]:
        """The arms whose chosen recipe fine-tunes an encoder that a probe beats on validation, and the best probe."""
        probes = [run for run in sorted(self.runs, key=lambda run: -run.best_validation_accuracy) if run.probe]
        found = []
        for name, runs in self.chosen.items():
            of_encoder = [probe for probe in probes if {probe.encoder, probe.init} & {runs[0].encoder, runs[0].init}]
            if not runs[0].probe and of_encoder and of_encoder[0].best_validation_accuracy > mean_best(runs):
                found.append((name, of_encoder[0]))
        return found

    @cached_property
    def origins(self) -> list[Provenance]:
        """Where the encoders of the arms come from, each once."""
        inits = dict.fromkeys(run.init for run in self.runs if not run.from_scratch)
        return [find_provenance(init) for init in inits]

    @property
    def has_choice(self) -> bool:
        """Whether validation has chosen between recipes."""
        return any(len(recipes) > 1 for recipes in self.recipes.values())

    @cached_property
    def results(self) -> Results:
        """The numbers of the comparison."""
        return measure(self.recipes, chooses_arm=self.chooses_arm)
