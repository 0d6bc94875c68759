"""Recipes: runs that differ in their seeds alone, their names, and the first epoch at an accuracy."""

import math
from types import SimpleNamespace

import pytest
from run_folders import THREE, write_probes, write_run

from mae_hf.errors import ConfigError
from mae_hf.report.recipes import epochs_to, recipe_name, sort_recipes
from mae_hf.training.finished_runs import read_runs


def test_recipes_are_sorted_by_validation_and_named_by_what_differs(tmp_path):
    folders = [
        write_run(tmp_path / "a", "encoder", THREE, curve=(0.5,), layer_decay=1.0),
        write_run(tmp_path / "b", "encoder", THREE, curve=(0.6,)),
        write_run(tmp_path / "c", "encoder", THREE, curve=(0.8,), seed=1),
        write_probes(tmp_path / "p", "encoder", {"linear": (THREE, 0.9)}),
    ]
    runs = [run for folder in folders for run in read_runs(folder)]
    recipes = sort_recipes(runs)
    assert [recipe_name(recipe, recipes) for recipe in recipes] == [
        "probe linear-cls",
        "probe linear-mean",
        "train.layer_decay 0.65",
        "train.layer_decay 1.0",
    ]
    assert [len(recipe) for recipe in recipes] == [1, 1, 2, 1]
    mixed = sort_recipes([run for run in runs if run.probe or run.seed])
    assert recipe_name(mixed[-1], mixed) == "fine-tuned"


def test_a_probe_that_is_named_twice_is_refused_without_a_seed(tmp_path):
    runs = [read_runs(write_probes(tmp_path / name, "encoder", {"knn": (THREE, 0.9)}))[0] for name in "ab"]
    with pytest.raises(ConfigError, match=r"a knn-cls and .*b knn-cls are the same recipe, and would count"):
        sort_recipes(runs)


def test_the_first_epoch_that_reaches_the_target_counts():
    run = SimpleNamespace(curve=([1, 2, 3, 4], [0.2, 0.5, 0.4, 0.6]))
    assert (epochs_to(run, 0.5), epochs_to(run, 0.5 + 1e-9), epochs_to(run, 0.51)) == (2, 2, 4)
    assert epochs_to(run, 0.61) == epochs_to(SimpleNamespace(curve=([], [])), 0.5) == math.inf
