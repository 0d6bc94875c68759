"""A resumed run keeps the numbers that its first start has found."""

import dataclasses
from typing import Any

import pytest
from accelerate import Accelerator

from mae_hf.commands import open_run
from mae_hf.commands.open_run import OpenRun
from mae_hf.config.parse import read_file
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.errors import ConfigError
from mae_hf.training.checkpoint import Checkpoints
from mae_hf.training.provenance import RunRecord

UNUSED: Any = None  # a training of which no step is timed


def opened(tmp_path, record: RunRecord, **train: float) -> OpenRun:
    config = PretrainConfig(output_dir=str(tmp_path), train=PretrainTrainConfig(batch_size=64, **train))
    accelerator = Accelerator(cpu=True)
    return OpenRun(config, accelerator, tmp_path, Checkpoints(accelerator, tmp_path, keep=2), record=record)


def test_micro_batch_and_steps_come_from_run_json(tmp_path):
    run = opened(tmp_path, RunRecord(micro_batch_size=4, total_steps=30), minutes=5)
    plan = run.plan(run.config, 640)
    assert (plan.accumulation_steps, plan.total_steps, plan.warmup_steps) == (16, 30, 3)
    assert run.fit_minutes(UNUSED, plan, step=20) == plan


def test_a_run_of_epochs_counts_its_own_steps(tmp_path):
    run = opened(tmp_path, RunRecord(total_steps=30), epochs=2)
    plan = run.plan(run.config, 640)
    assert plan.total_steps == 20 and run.fit_minutes(UNUSED, plan, step=0) == plan


def test_minutes_are_fitted_once(tmp_path, monkeypatch):
    run = opened(tmp_path, RunRecord(), minutes=5)
    plan = run.plan(run.config, 640)
    monkeypatch.setattr(open_run, "steps_that_fit", lambda training: 7)
    assert run.fit_minutes(UNUSED, plan, step=0) == dataclasses.replace(plan, total_steps=7)
    assert read_file(PretrainConfig, tmp_path / "config.yaml") == run.config  # the folder is marked as this run's
    with pytest.raises(ConfigError, match=r"run\.json has lost its total_steps.*--output_dir"):
        run.fit_minutes(UNUSED, plan, step=1)
