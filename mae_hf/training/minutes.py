"""The number of steps that fit into `train.minutes`, from a few steps and evaluations that leave no trace."""

import contextlib
import time

import torch
from accelerate.utils import broadcast_object_list

from mae_hf.training.loop import Training, gradients, update
from mae_hf.training.signals import StopSignals

NUM_TIMED = 5  # steps, after one that warms up
SHARE_TIMED = 0.05  # of the minutes, after which no further step is timed


def steps_that_fit(training: Training) -> int:
    """Return how many steps, with their evaluations, fit into `train.minutes`; the same number on every process.

    The time of this measurement counts, too. It leaves weights, moments, loss scale and the order of the images as they
    were.
    """
    assert training.config.minutes is not None
    started, limit = time.perf_counter(), 60 * training.config.minutes
    with training.reading(0, 1 + NUM_TIMED) if training.reading else contextlib.nullcontext():
        step_seconds = _time_steps(training, SHARE_TIMED * limit)
    training.model.eval()
    at_end = 0.0
    for evaluation in training.evaluations:
        for _ in range(2):  # the first one imports libraries
            before = time.perf_counter()
            evaluation.run(0)
            cost = time.perf_counter() - before
            if broadcast_object_list([cost > SHARE_TIMED * limit])[0]:  # the processes evaluate together
                break
        step_seconds += cost / evaluation.every_steps
        at_end += cost * evaluation.at_end
    left = limit - (time.perf_counter() - started) - at_end
    return int(broadcast_object_list([max(1, int(left / step_seconds))])[0])


def _time_steps(training: Training, most_seconds: float) -> float:
    """Return the seconds of a step without its effect: the optimizer treats its gradients as not finite."""
    accelerator, optimizer = training.accelerator, training.optimizer
    scaler = accelerator.scaler
    scale = scaler.state_dict() if scaler is not None else None
    signals = StopSignals(accelerator.is_main_process)  # handles none: nothing is to be saved, so a signal ends the run
    times = [time.perf_counter()]
    with torch.random.fork_rng(devices=[]):
        for step in range(1 + NUM_TIMED):
            loss, _ = gradients(training, step, signals)
            if scaler is None:
                update(optimizer, torch.ones((), device=accelerator.device))
            else:  # it would make the step, since it found no infinite gradient
                scaler.update()
                optimizer.zero_grad()
            loss.item()  # wait for the device
            times.append(time.perf_counter())
            is_enough = step > 0 and times[-1] - times[0] > most_seconds
            if broadcast_object_list([is_enough])[0]:
                break
    if scaler is not None:
        scaler.load_state_dict(scale)
    return (times[-1] - times[1]) / (len(times) - 2)
