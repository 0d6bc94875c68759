"""The line that says when a run ends."""

import datetime
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from mae_hf.config.train import FinetuneTrainConfig, PretrainTrainConfig
from mae_hf.training import pace
from mae_hf.training.checkpoint import TrainState
from mae_hf.training.pace import RunProgress, describe_machine

NOON = datetime.datetime(2026, 11, 28, 12)
SLOW = "94 M parameters on 2 CPU cores"


class Noon(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOON


def print_end(monkeypatch, capsys, *, step_seconds: float, total: int, start: int = 0, steps: int = 12) -> str:
    """What a run prints in its first steps, of which each is followed by a pause of an hour."""
    clock = [0.0]
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(pace, "datetime", Noon)
    plan = PretrainTrainConfig(batch_size=8, epochs=total / 4).plan(32, 1)
    progress = RunProgress(Accelerator(cpu=True), plan, TrainState(step=start), SLOW)
    for step in range(steps):
        clock[0] += 50 * step_seconds if step == 0 else step_seconds  # the first one compiles
        progress.add(torch.tensor(1.0), 8)
        progress.pause()
        clock[0] += 3600
        progress.resume()
    progress.close()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("step_seconds", "total", "start", "line"),
    [
        (60, 140, 0, "time            about 2 h 10 min, until 14:10, plus evaluations\n"),
        (60, 140, 100, "time            about 30 min, until 12:30, plus evaluations\n"),
        (600, 138, 0, "time            about 21 h 20 min, until 29 Nov 2026 09:20, plus evaluations\n"),
        (3600, 898, 0, f"time            about 37 days, until 04 Jan 2027 12:00, plus evaluations: {SLOW}\n"),
        (60, 10, 0, ""),
        (
            3.6e9,
            10**6,
            0,
            f"time            about 41666250000 days, until 19 Oct 2343 05:46, plus evaluations: {SLOW}\n",
        ),
    ],
)
def test_after_ten_steps_a_run_says_when_it_ends(monkeypatch, capsys, step_seconds, total, start, line):
    steps = min(12, total)
    assert print_end(monkeypatch, capsys, step_seconds=step_seconds, total=total, start=start, steps=steps) == line


@pytest.mark.parametrize("config", [PretrainTrainConfig(), FinetuneTrainConfig()])
def test_a_slow_run_hears_of_a_preset_that_exists(config):
    words = describe_machine(Accelerator(cpu=True), torch.nn.Linear(1000, 1000), config)
    assert words.startswith("1 M parameters on ") and "--config stl10_tiny takes" in words
