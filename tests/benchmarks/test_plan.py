"""The plan agrees with the formulas in its arithmetic; tests/training/test_memory.py compares memory with models."""

import dataclasses
from pathlib import Path

import pytest
from forks import succeed

from benchmarks.config import ScalingConfig
from benchmarks.flops import pretraining_gflop
from benchmarks.plan import estimate, table
from mae_hf.config.model import MAEConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.errors import ConfigError
from mae_hf.training.memory import activation_bytes, model_bytes, num_parameters

ROOT = Path(__file__).parents[2]
SMALL = MAEConfig(
    image_size=48, patch_size=8, hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=192,
    decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4, decoder_intermediate_size=128,
)  # fmt: skip
TRAIN = PretrainTrainConfig(batch_size=64, epochs=10, warmup_ratio=0)


def test_one_device_computes_and_sends_nothing():
    (row,) = estimate(PretrainConfig(model=SMALL, train=TRAIN), "no", ScalingConfig(devices=1), tflops=2.0)
    seconds = 64 * pretraining_gflop(SMALL) * 1e9 / (2e12 * 0.5)
    assert row.step_seconds == pytest.approx(seconds)
    assert row.images_per_second == pytest.approx(64 / seconds)
    assert (row.traffic_bytes, row.efficiency) == (0, 1)
    assert row.hours[100_000] == pytest.approx(10 * 100_000 * seconds / 64 / 3600)
    trained, stored = num_parameters(SMALL)
    assert row.replicated_bytes == row.sharded_bytes == 4 * stored + 12 * trained + 64 * activation_bytes(SMALL, "no")


def test_more_devices_share_the_batch_and_send_the_traffic_of_a_ring():
    config = PretrainConfig(model=SMALL, train=dataclasses.replace(TRAIN, per_device_batch_size=8))
    scaling = ScalingConfig(devices=4, link_gb_per_second=0.5)
    one, two, four = estimate(config, "bf16", scaling, tflops=1.0)
    trained, stored = num_parameters(SMALL)
    assert [row.num_devices for row in (one, two, four)] == [1, 2, 4]
    assert four.traffic_bytes == pytest.approx(2 * 3 / 4 * 4 * trained)
    computing = one.step_seconds / 4  # in 2 micro-batches of 8 on each device, the second of which hides some sending
    assert four.step_seconds == pytest.approx(computing + four.traffic_bytes / 0.5e9 - computing / 3)
    assert four.efficiency == pytest.approx(four.images_per_second / one.images_per_second / 4) and four.efficiency < 1
    activations = 8 * activation_bytes(SMALL, "bf16")
    assert four.replicated_bytes == model_bytes(trained, stored, "bf16", True) + activations
    assert four.sharded_bytes == pytest.approx((6 * stored + 12 * trained) / 4 + activations)


def test_the_last_row_has_the_maximum_of_devices_and_too_large_runs_are_marked():
    rows = estimate(
        PretrainConfig(train=dataclasses.replace(TRAIN, batch_size=384)), "no", ScalingConfig(devices=6), 1.0
    )
    assert [row.num_devices for row in rows] == [1, 2, 4, 6]
    lines = table(rows, memory_gib=rows[-1].replicated_bytes / 2**30 + 0.01).splitlines()[1:]
    assert ["!" in line for line in lines] == [True, True, True, False]


@pytest.mark.parametrize(
    ("per_device", "message"),
    [
        (None, r"3 devices cannot share the preset's batch_size 64: choose one of 1, 2, 4, 8, 16, 32, 64 \("),
        (16, r"3 devices cannot share the preset's batch_size 64 by 16 at a time: choose one of 1, 2, 4 \("),
    ],
)
def test_devices_that_cannot_share_the_batch_are_refused_with_a_flag_of_the_benchmark(per_device, message):
    config = PretrainConfig(model=SMALL, train=dataclasses.replace(TRAIN, per_device_batch_size=per_device))
    with pytest.raises(ConfigError, match=message + r"--scaling\.devices\)$"):
        estimate(config, "no", ScalingConfig(devices=3), 1.0)


def test_numbers_of_devices_that_cannot_share_the_batch_are_left_out():
    config = PretrainConfig(model=SMALL, train=dataclasses.replace(TRAIN, batch_size=12))
    rows = estimate(config, "no", ScalingConfig(devices=12), 1.0)
    assert [row.num_devices for row in rows] == [1, 2, 4, 12]


@pytest.mark.parametrize(("name", "value"), [("devices", 0), ("efficiency", 1.5), ("device_tflops", -1.0)])
def test_impossible_devices_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        ScalingConfig(**{name: value})


def test_the_command_prints_a_row_for_each_number_of_devices():
    command = ("benchmarks/speed.py", "--preset", "configs/pretrain/stl10_base.yaml", "--plan")
    printed = succeed(*command, "--scaling.devices", 4, "--scaling.device_tflops", 100)
    assert "100 TFLOP/s of matrix products (as given)" in printed
    assert [line.split()[0] for line in printed.splitlines()[-3:]] == ["1", "2", "4"]


def test_traffic_that_overlaps_the_backward_pass_costs_nothing():
    scaling = ScalingConfig(devices=2, link_gb_per_second=1e6)
    one, two = estimate(PretrainConfig(model=SMALL, train=TRAIN), "no", scaling, tflops=1.0)
    assert two.step_seconds == pytest.approx(one.step_seconds / 2) and two.efficiency == pytest.approx(1)
