"""The label sets of a protocol, counted by hand, and what they are called."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import load_labelled_images
from mae_hf.data.splits import Split, describe_few_labels
from mae_hf.evaluation.few_labels.methods import Protocol, load_protocol_images


def protocol(folds: tuple | None = None, **fields) -> Protocol:
    """A protocol on 20 images of 2 classes."""
    split = Split("drawn", "train", np.zeros((20, 2, 2), np.uint8), np.repeat([0, 1], 10), ("a", "b"), "f", folds)
    config = FewLabelsConfig(model="m", output_dir="o", data=DataConfig(source="digits"), **fields)
    return Protocol(config, split, np.arange(20))


def test_each_fold_is_a_label_set_of_its_own():
    sets = protocol().label_sets("knn")
    assert [(s.name, s.data.label_fraction, s.draw, s.data.fold) for s in sets] == [
        (f"fold-{i}", None, i, i) for i in range(10)
    ]
    assert len(protocol((np.arange(5), np.arange(5))).label_sets("knn")) == 2


@pytest.mark.parametrize(("method", "of_all"), [("knn", 1), ("linear", 1), ("finetune", 3)])
def test_each_budget_is_drawn_several_times_but_all_labels_only_for_a_method_with_a_seed(method: str, of_all: int):
    sets = protocol(protocol="budgets", draws=3).label_sets(method)
    fractions = [0.01] * 3 + [0.05] * 3 + [0.1] * 3 + [0.25] * 3 + [1.0] * of_all
    assert [s.data.label_fraction for s in sets] == fractions
    assert [s.data.label_seed for s in sets[:3]] == [0, 1, 2] and sets[-1].data.label_seed == 0
    assert len({s.name for s in sets}) == len(sets)
    assert [s.draw for s in sets[-of_all:]] == list(range(of_all))


def test_only_predefined_folds_are_called_official():
    folds = tuple(np.arange(i, i + 5) for i in range(10))
    official = protocol(folds)
    assert official.is_official and official.note.startswith("official protocol: the 10 predefined folds")
    data = official.label_sets("knn")[3].data
    assert describe_few_labels(official.split, data) == "official fold 3 of 10 (fold_indices.txt)"
    for other in (protocol(), protocol(folds, protocol="budgets")):
        assert "UNOFFICIAL" in other.note and not other.is_official


@pytest.mark.parametrize("kind", ["folds", "budgets"])
@pytest.mark.parametrize("has_test", [True, False])
@pytest.mark.filterwarnings("ignore:3 of 20")
def test_a_label_set_is_the_same_images_for_probes_and_for_fine_tuning(image_folder: Path, kind: str, has_test: bool):
    for name in ("cat/02.png", "cat/07.png", "dog/11.png"):
        (image_folder / "train" / name).write_bytes(b"not an image")
    data = DataConfig(source=str(image_folder), class_names=None, on_bad_image="skip")
    if not has_test:  # a part of train is test
        (image_folder / "test").rename(image_folder.with_name("elsewhere"))
        data = dataclasses.replace(data, test_fraction=0.2)
    config = FewLabelsConfig(model="m", output_dir="o", data=data, protocol=kind, draws=4)
    train, test = load_protocol_images(data, 12)
    sizes = set()
    for label_set in Protocol(config, train.parts[0][0].split, np.sort(train.split_rows)).label_sets("finetune"):
        tuned = load_labelled_images(label_set.data, 12, roles=("train", "validation"))
        of_tuning = np.sort(np.concatenate([tuned["train"].split_rows, tuned["validation"].split_rows]))
        assert label_set.rows.tolist() == of_tuning.tolist(), label_set.name
        assert not np.isin(of_tuning, test.split_rows).any() or has_test
        sizes.add(len(of_tuning))
    if kind == "budgets":
        assert max(sizes) == len(train)
