"""A resumed run keeps the numbers that its first start has found."""

import pytest
from accelerate import Accelerator

from mae_hf.commands.open_run import OpenRun
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.errors import ConfigError
from mae_hf.training.provenance import RunRecord


def opened(tmp_path, record: RunRecord, **train: float) -> OpenRun:
    config = PretrainConfig(output_dir=str(tmp_path), train=PretrainTrainConfig(batch_size=64, **train))
    return OpenRun(config, Accelerator(cpu=True), tmp_path, record=record)


def test_micro_batch_and_steps_come_from_run_json(tmp_path):
    run = opened(tmp_path, RunRecord(micro_batch_size=4, total_steps=30), minutes=5)
    plan = run.plan(run.config, 640)
    assert (plan.accumulation_steps, plan.total_steps, plan.warmup_steps) == (16, 30, 3)
    assert not run.must_fit_minutes(20)


def test_a_run_of_epochs_counts_its_own_steps(tmp_path):
    run = opened(tmp_path, RunRecord(total_steps=30), epochs=2)
    assert run.plan(run.config, 640).total_steps == 20 and not run.must_fit_minutes(0)


def test_minutes_are_fitted_once(tmp_path):
    run = opened(tmp_path, RunRecord(), minutes=5)
    assert run.must_fit_minutes(0)
    with pytest.raises(ConfigError, match=r"run\.json has lost its total_steps.*--output_dir"):
        run.must_fit_minutes(1)
