"""The contenders of mae_hf run the loop, losses and features of the scripts, as their log shows."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from few_turns import MODEL, few, small_run

from benchmarks import drawn, ours
from mae_hf.config.augment import AugmentConfig, CropConfig
from mae_hf.config.runs import PretrainConfig

pytestmark = pytest.mark.filterwarnings("ignore:this CPU has no bf16 instructions")


@pytest.fixture
def run(tmp_path: Path) -> PretrainConfig:
    return small_run(tmp_path, base_lr=0.3)


@pytest.fixture(autouse=True)
def _new_process():
    """Reset Accelerate and the threads of torch, as in a new process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


def given(run: PretrainConfig, **others: object) -> dict[str, object]:
    return {"config": run, "open_images": partial(drawn.image_set, Path(run.output_dir), 16), **others}


def losses(run: PretrainConfig) -> list[float]:
    """Those in the log of the one loop that ran."""
    (file,) = Path(run.output_dir).glob("*/metrics.jsonl")
    return [json.loads(line)["train/loss"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_pre_training_is_that_of_the_loop_and_another_batch_each_time(run: PretrainConfig, precision: str):
    amounts = few(ours.pretrain, 5, **given(run, precision=precision))
    assert amounts == [8] * 5
    assert len(set(losses(run))) == len(losses(run)) == 5


def test_a_step_alone_memorises_its_one_batch(run: PretrainConfig):
    few(ours.step_alone, 60, **given(run, precision="no"))
    first, *_, last = losses(run)
    assert last < 0.9 * first


def test_micro_batches_are_counted_one_by_one(tmp_path: Path):
    run = small_run(tmp_path, per_device_batch_size=4)
    assert few(ours.pretrain, 4, **given(run, precision="no")) == [4] * 4
    assert few(ours.step_alone, 4, **given(run, precision="no")) == [4] * 4
    assert few(ours.preparation_alone, 4, **given(run)) == [4] * 4


def test_preparation_alone_trains_nothing(run: PretrainConfig):
    assert few(ours.preparation_alone, 3, **given(run)) == [8] * 3
    assert not list(Path(run.output_dir).glob("*/metrics.jsonl"))


def test_fine_tuning_augments_images_only_as_stock_does(run: PretrainConfig):
    run = dataclasses.replace(run, augment=CropConfig(crop_scale=(0.3, 0.9), flip=False))
    task = ours.finetuning_config(run)
    crops = {field.name for field in dataclasses.fields(CropConfig)}
    assert (task.augment.crop_scale, task.augment.flip) == ((0.3, 0.9), False)
    extras = [field.name for field in dataclasses.fields(AugmentConfig) if field.name not in crops]
    assert extras
    assert all(getattr(task.augment, name) == 0 for name in extras)
    assert (task.model.init, task.model.drop_path, task.model.hidden_size) == ("scratch", 0, MODEL.hidden_size)
    assert task.train.batch_size == 8


def test_fine_tuning_is_that_of_the_loop(run: PretrainConfig):
    assert few(ours.finetune, 3, **given(run, precision="no")) == [8] * 3


def test_features_are_taken_batch_by_batch(run: PretrainConfig):
    assert few(ours.extract_features, 3, **given(run, precision="bf16", batch_size=64)) == [64] * 3
