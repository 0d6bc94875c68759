"""`train.minutes`: the steps that fit, and that measuring them changes nothing."""

import copy
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from small_training import NUM_IMAGES, batch, network, run
from test_loop import assert_equal_runs

from mae_hf.config.train import PretrainTrainConfig
from mae_hf.data.sampler import BatchSampler
from mae_hf.errors import RunStopped
from mae_hf.training import minutes
from mae_hf.training.loop import Evaluation, Training
from mae_hf.training.minutes import steps_that_fit
from mae_hf.training.signals import handling


def measure(monkeypatch, num_minutes: float, step_seconds: float, evaluation_seconds: float):
    """Return what fits by a clock that only steps and evaluations, after every 4 steps, move; and what was changed."""
    clock = [0.0]
    monkeypatch.setattr(minutes, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    accelerator = Accelerator(cpu=True)
    config = PretrainTrainConfig(batch_size=8, minutes=num_minutes)
    sampler = BatchSampler(config.plan(NUM_IMAGES, 1), seed=0)
    model = network(dropout=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)

    def loss_of(draws):
        clock[0] += step_seconds
        inputs, targets = batch(draws.rows, draws.epoch)
        return torch.nn.functional.mse_loss(model(inputs), targets)

    def evaluate(step):
        assert not model.training
        clock[0] += evaluation_seconds
        return {}

    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    evaluations = [Evaluation("evaluation", 4, evaluate)]
    found = steps_that_fit(Training(accelerator, model, optimizer, config, sampler, loss_of, evaluations))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    for moments in optimizer.state_dict()["state"].values():
        assert not any(torch.count_nonzero(moments[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    return found


@pytest.mark.parametrize(
    ("num_minutes", "step", "evaluation", "fits"),
    [
        (2, 1.0, 10.0, 26),  # 104 s are left after 6 steps and an evaluation, 94 before the last one: 26 + 65
        (2, 1.0, 0.0, 114),
        (2, 20.0, 0.0, 4),  # two steps are timed, since one is above 5 % of the minutes
        (0.1, 60.0, 60.0, 1),  # nothing fits, but a run has a step
    ],
)
def test_the_steps_that_fit_leave_time_for_evaluations(monkeypatch, num_minutes, step, evaluation, fits):
    assert measure(monkeypatch, num_minutes, step, evaluation) == fits


def test_a_signal_while_speed_is_measured_ends_the_run_at_once(monkeypatch):
    """Nothing is to be saved yet, so the handler of the command line acts and not the loop's."""

    def signalled(training, step, signals):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the step was not interrupted")

    def outer(number, frame):
        raise RunStopped("SIGTERM", number)

    monkeypatch.setattr(minutes, "gradients", signalled)
    with handling(outer, [signal.SIGTERM]), pytest.raises(RunStopped, match="SIGTERM"):
        measure(monkeypatch, 1, 1.0, 0.0)


def test_a_run_of_some_minutes_equals_a_run_of_as_many_steps_bit_for_bit(tmp_path):
    timed, state = run(tmp_path / "minutes", dropout=0.2, ema_decay=0.9, minutes=0.02)
    expected, _ = run(tmp_path / "epochs", dropout=0.2, ema_decay=0.9, epochs=state.step / 4)
    for found, wanted in zip(timed.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted)
    assert_equal_runs(tmp_path / "minutes", tmp_path / "epochs")
