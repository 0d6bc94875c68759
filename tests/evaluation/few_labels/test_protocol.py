"""The label sets of a protocol, counted by hand, and what they are called."""

import numpy as np
import pytest

from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.data import DataConfig
from mae_hf.data.splits import Split
from mae_hf.evaluation.few_labels.protocol import describe_protocol, is_official, label_sets


def config(**fields) -> FewLabelsConfig:
    return FewLabelsConfig(model="m", output_dir="o", data=DataConfig(source="digits"), **fields)


def split(folds: tuple | None = None) -> Split:
    return Split("drawn", "train", np.zeros((20, 2, 2), np.uint8), np.repeat([0, 1], 10), ("a", "b"), "f", folds)


def test_each_fold_is_a_label_set_of_its_own():
    sets = label_sets(config(), split(), "knn")
    assert [(s.name, s.fraction, s.draw, s.data.fold) for s in sets] == [(f"fold-{i}", None, i, i) for i in range(10)]
    assert len(label_sets(config(), split((np.arange(5), np.arange(5))), "knn")) == 2


@pytest.mark.parametrize(("method", "of_all"), [("knn", 1), ("linear", 1), ("finetune", 3)])
def test_each_budget_is_drawn_several_times_but_all_labels_only_for_a_method_with_a_seed(method: str, of_all: int):
    sets = label_sets(config(protocol="budgets", draws=3), split(), method)
    assert [s.fraction for s in sets] == [0.01] * 3 + [0.05] * 3 + [0.1] * 3 + [0.25] * 3 + [1.0] * of_all
    assert [s.data.label_fraction for s in sets] == [s.fraction for s in sets]
    assert [s.data.label_seed for s in sets[:3]] == [0, 1, 2] and sets[-1].data.label_seed == 0
    assert len({s.name for s in sets}) == len(sets)
    assert [s.draw for s in sets[-of_all:]] == list(range(of_all))


def test_only_predefined_folds_are_called_official():
    official = split(tuple(np.arange(i, i + 5) for i in range(10)))
    assert describe_protocol(config(), official).startswith("official protocol: the 10 predefined folds")
    assert is_official(config(), official)
    for others, data in ((config(), split()), (config(protocol="budgets"), official)):
        assert "UNOFFICIAL" in describe_protocol(others, data)
        assert not is_official(others, data)
