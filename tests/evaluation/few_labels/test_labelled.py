"""The images of a protocol: probes and fine-tuning learn from the same ones, whatever cannot be decoded."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import load_labelled_images
from mae_hf.evaluation.few_labels.labelled import load_protocol_images
from mae_hf.evaluation.few_labels.protocol import label_sets
from mae_hf.leakage.record import NOT_PRETRAINED


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
        of_tuning = np.sort(np.concatenate([tuned["train"].rows, tuned["validation"].rows]))
        assert images.rows_of(label_set).tolist() == of_tuning.tolist(), label_set.name
        assert not np.isin(of_tuning, images.test.rows).any() or has_test
        sizes.add(len(of_tuning))
    if protocol == "budgets":
        assert max(sizes) == len(images.rows)


def test_what_was_seen_is_that_of_the_record_and_is_said(image_folder: Path):
    data = DataConfig(source=str(image_folder), class_names=None)
    unknown, nothing = (load_protocol_images(data, 12, audit) for audit in (None, NOT_PRETRAINED))
    assert unknown.seen is None and "not known which test images" in unknown.describe()
    assert nothing.seen is not None and nothing.seen.tolist() == [False] * 4
    assert nothing.describe().splitlines() == [
        "20 labelled train images; every accuracy is of all 4 test images",
        "pre-training has seen none of the test images",
    ]
    assert unknown.fingerprint == nothing.fingerprint
