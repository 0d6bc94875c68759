"""The settings of the optimisation, and the numbers that follow from them."""

import dataclasses
import re

import pytest
from refused import check_refused, id_of

from mae_hf.config.train import FinetuneTrainConfig, PretrainTrainConfig, TrainConfig
from mae_hf.errors import ConfigError


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (
            TrainConfig,
            {"base_lr": -1e-3},
            "train.base_lr is -0.001 but must be above 0, such as 0.00015 (--train.base_l",
        ),
        (
            TrainConfig,
            {"per_device_batch_size": 0},
            "train.per_device_batch_size is 0 but must be above 0, such as auto (--train.per",
        ),
        (TrainConfig, {"keep_checkpoints": 1}, "train.keep_checkpoints is 1 but must be at least 2"),
        (
            TrainConfig,
            {"warmup_ratio": 1.0},
            "train.warmup_ratio is 1.0 but must be at least 0 and below 1, such as 0.1",
        ),
        (TrainConfig, {"adam_beta2": 1.0}, "train.adam_beta2 is 1.0 but must be above 0 and below 1, such as 0.95"),
        (TrainConfig, {"weight_decay": -0.1}, "train.weight_decay is -0.1 but must be at least 0"),
        (PretrainTrainConfig, {"probe_every_epochs": -1.0}, "train.probe_every_epochs is -1.0 but must be at least 0"),
        (FinetuneTrainConfig, {"adam_beta2": 0.0}, "train.adam_beta2 is 0.0 but must be above 0 and below 1"),
        (FinetuneTrainConfig, {"layer_decay": 1.1}, "train.layer_decay is 1.1 but must be above 0 and at most 1"),
        (FinetuneTrainConfig, {"min_steps": -1}, "train.min_steps is -1 but must be at least 0"),
        (FinetuneTrainConfig, {"ema_decay": 1.0}, "train.ema_decay is 1.0 but must be at least 0 and below 1"),
    ],
    ids=id_of,
)
def test_a_wrong_value_is_named_with_what_is_allowed_and_the_flag(config_class, fields, message):
    check_refused(config_class, fields, message)


@pytest.mark.parametrize(
    ("base_lr", "batch_size", "learning_rate"), [(1.5e-4, 4096, 2.4e-3), (1.5e-4, 512, 3e-4), (1e-3, 128, 5e-4)]
)
def test_the_learning_rate_grows_with_the_global_batch(base_lr, batch_size, learning_rate):
    train = TrainConfig(base_lr=base_lr, batch_size=batch_size)
    assert train.learning_rate == pytest.approx(learning_rate)


PLANS = [  # batch, per device, images, processes -> steps an epoch, accumulation, micro-batch; 10 epochs, 15 % warm-up
    (128, None, 1240, 1, 9, 1, 128),
    (128, 32, 1240, 1, 9, 4, 32),
    (128, None, 1240, 4, 9, 1, 32),
    (128, 16, 1240, 4, 9, 2, 16),
    (64, 64, 64, 1, 1, 1, 64),
    (512, 128, 104500, 4, 204, 1, 128),
]


@pytest.mark.parametrize(("batch", "device", "images", "processes", "steps", "accumulation", "micro"), PLANS)
def test_a_plan_counts_in_optimizer_steps(batch, device, images, processes, steps, accumulation, micro):
    train = TrainConfig(batch_size=batch, per_device_batch_size=device, epochs=10, warmup_ratio=0.15)
    plan = train.plan(images, processes)
    assert (plan.num_images, plan.num_processes, plan.steps_per_epoch) == (images, processes, steps)
    assert (plan.steps(0.5), plan.steps(2)) == ({9: 4, 1: 1, 204: 102}[steps], 2 * steps)
    assert (plan.total_steps, plan.warmup_steps) == (10 * steps, {9: 14, 1: 2, 204: 306}[steps])
    assert (plan.accumulation_steps, plan.micro_batch_size) == (accumulation, micro)


def test_a_plan_has_at_least_one_step_between_events():
    plan = TrainConfig(batch_size=4, epochs=0.01, warmup_ratio=0).plan(8, 1)
    assert (plan.total_steps, plan.warmup_steps, plan.steps(0.01)) == (1, 0, 1)


@pytest.mark.parametrize("epochs", [1, 8, 50])
def test_a_shorter_run_of_a_preset_has_a_shorter_warm_up(epochs):
    plan = TrainConfig(batch_size=64, epochs=epochs, warmup_ratio=0.2).plan(1240, 1)
    assert (plan.total_steps, plan.warmup_steps) == (19 * epochs, round(0.2 * 19 * epochs))


@pytest.mark.parametrize(
    ("fields", "images", "processes", "message"),
    [
        ({"batch_size": 256}, 240, 1, "batch_size 256 .* 240: choose at most 240 (--train.batch_size)"),
        ({"batch_size": 10}, 240, 4, "batch_size 10 .*4 processes: choose a multiple of 4 (--train.batch_size)"),
        (
            {"batch_size": 24, "per_device_batch_size": 5},
            240,
            2,
            "per_device_batch_size 5 .*12 images.*one of 1, 2, 3, 4, 6, 12 (--train.per_device_batch_size)",
        ),
        ({"batch_size": 8, "per_device_batch_size": 16}, 240, 1, "per_device_batch_size 16 .*one of 1, 2, 4, 8 "),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_with_the_fix(fields, images, processes, message):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**fields).plan(images, processes)
    assert re.search(".*".join(re.escape(part) for part in message.split(".*")), str(caught.value)), str(caught.value)


FEW = {"batch_size": 48, "epochs": 40.0, "eval_every_epochs": 2.0, "save_every_epochs": 20.0, "warmup_ratio": 0.125}


def test_few_images_get_a_smaller_batch_and_more_epochs():
    train = FinetuneTrainConfig(**FEW, per_device_batch_size=24, min_steps=200).fit(20)
    # 20 images: a batch of 20, one step an epoch, 40 steps planned, so five times as long
    assert (train.batch_size, train.per_device_batch_size) == (20, FinetuneTrainConfig.per_device_batch_size)
    assert (train.epochs, train.eval_every_epochs, train.save_every_epochs) == (200, 10, 100)
    assert (train.plan(20, 1).total_steps, train.plan(20, 1).warmup_steps) == (200, 25)
    assert FinetuneTrainConfig(**FEW, min_steps=200).fit(21, num_processes=4).batch_size == 20


@pytest.mark.parametrize("images", [20, 240])
def test_without_a_minimum_and_with_enough_images_the_recipe_stays(images):
    train = FinetuneTrainConfig(**FEW, per_device_batch_size=24)
    assert train.fit(images) == train
    enough = dataclasses.replace(train, min_steps=200)
    assert enough.fit(240) == enough, "5 steps in each of 40 epochs"


def test_the_plan_shows_its_arithmetic():
    train = TrainConfig(batch_size=128, per_device_batch_size=16, epochs=10, warmup_ratio=0.1, base_lr=1e-3)
    assert train.plan(1240, 4).describe().splitlines() == [
        "batch           128 = 4 processes x 2 accumulation steps x 16 images",
        "steps per epoch 9 = 1240 images // 128",
        "total steps     90 = 10 epochs x 9",
        "warm-up steps   9 = 0.1 x 90 total steps",
        "learning rate   0.0005 = base_lr 0.001 x 128 / 256, cosine to 0 after the warm-up",
    ]


@pytest.mark.parametrize(("size", "expected"), [(512, 512), (128, 256), (64, 256), (16, 64), (1, 4)])
def test_evaluations_take_up_to_256_images_at_once_and_four_micro_batches_at_most(size, expected):
    train = TrainConfig(batch_size=512, per_device_batch_size=size)
    assert train.plan(1000, 1).eval_batch_size == expected


def test_a_plan_of_another_length_has_its_own_warm_up():
    train = TrainConfig(batch_size=64, warmup_ratio=0.2, minutes=3.5)
    plan = train.plan(1240, 1)
    plan = dataclasses.replace(plan, total_steps=50)
    assert (plan.total_steps, plan.warmup_steps) == (50, 10)
    assert "total steps     50 = what fits into 3.5 minutes" in plan.describe()
