"""The label sets of a protocol, counted by hand, and what they are called."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import load_labelled_images
from mae_hf.data.splits import Split
from mae_hf.evaluation.few_labels.protocol import describe_protocol, is_official, label_sets, load_protocol_images
from mae_hf.leakage.record import NOT_PRETRAINED


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


@pytest.mark.parametrize("protocol", ["folds", "budgets"])
@pytest.mark.parametrize("has_test", [True, False])
@pytest.mark.filterwarnings("ignore:left out 3 of 20")
def test_a_label_set_is_the_same_images_for_probes_and_for_fine_tuning(
    image_folder: Path, protocol: str, has_test: bool
):
    for name in ("cat/02.png", "cat/07.png", "dog/11.png"):
        (image_folder / "train" / name).write_bytes(b"not an image")
    data = DataConfig(source=str(image_folder), class_names=None, on_bad_image="skip")
    if not has_test:  # a part of train is test
        (image_folder / "test").rename(image_folder.with_name("elsewhere"))
        data = dataclasses.replace(data, test_fraction=0.2)
    config = FewLabelsConfig(model="m", output_dir="o", data=data, protocol=protocol, draws=4)
    images = load_protocol_images(data, 12, None)
    sizes = set()
    for label_set in label_sets(config, images.split, "finetune"):
        tuned = load_labelled_images(label_set.data, 12, roles=("train", "validation"))
        of_tuning = np.sort(np.concatenate([tuned["train"].split_rows, tuned["validation"].split_rows]))
        assert images.rows_of(label_set).tolist() == of_tuning.tolist(), label_set.name
        assert not np.isin(of_tuning, images.test.split_rows).any() or has_test
        sizes.add(len(of_tuning))
    if protocol == "budgets":
        assert max(sizes) == len(images.rows)


def test_what_was_seen_is_that_of_the_record(image_folder: Path):
    data = DataConfig(source=str(image_folder), class_names=None)
    unknown, nothing = (load_protocol_images(data, 12, audit) for audit in (None, NOT_PRETRAINED))
    assert unknown.seen is None and nothing.seen is not None and nothing.seen.tolist() == [False] * 4
    assert unknown.fingerprint == nothing.fingerprint
