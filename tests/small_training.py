"""A run small enough for a test, through the real loop, log and checkpoints: an MLP learns a line.

test_two_processes.py starts `small_training.py FOLDER` on several processes.
"""

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mae_hf.config.data import DataConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.data.random import Draws
from mae_hf.data.sampler import BatchSampler
from mae_hf.errors import RunError, RunStopped
from mae_hf.evaluation.inference import infer
from mae_hf.training.checkpoint import Checkpoints, TrainState
from mae_hf.training.distributed import prepare
from mae_hf.training.loop import Evaluation, Training, train
from mae_hf.training.minutes import steps_that_fit
from mae_hf.training.optim import WeightAverage
from mae_hf.training.run_folder import RunLog

NUM_IMAGES = 32
# 4 steps an epoch; lines of the log, evaluations and checkpoints every 3, 6 and 7 of 20 steps: they rarely coincide.
DEFAULTS = {"batch_size": 8, "epochs": 5, "warmup_ratio": 0.2, "base_lr": 0.6, "log_every_steps": 3}
DEFAULTS |= {"eval_every_epochs": 1.5, "save_every_epochs": 1.75}

PLAIN = DataConfig(image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))  # pixel_values are pixels / 255
Change = Callable[[int, Tensor], Tensor]


class Interrupted(Exception):
    """Stands for a crash."""


def network(dropout: float = 0.0) -> nn.Module:
    """Return an MLP from 4 numbers to 1, with the same weights at each call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1))


def batch(rows: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
    """Return inputs (B, 4), different in every epoch, and targets (B, 1)."""
    inputs = torch.from_numpy(Draws(0, epoch, rows, 0).uniform("inputs", 4)).float() / 10
    position = torch.from_numpy(rows)[:, None] / NUM_IMAGES
    return inputs + position, 4 * position - 2


def run(
    folder: Path,
    *,
    dropout: float = 0.0,
    ema_decay: float = 0.0,
    stop_at: int | None = None,
    change: Change = lambda step, loss: loss,
    evaluate: Callable[[int], dict[str, float]] = lambda step: {"eval/loss": 1 / step},
    best_key: str = "",
    starts_trained: bool = False,
    **settings: object,
) -> tuple[nn.Module, TrainState]:
    """Start the run in this folder, or resume it, as the recipes do.

    Args:
        dropout: rate of the MLP's dropout.
        ema_decay: of an average of the weights, which is then what is returned.
        stop_at: raises `Interrupted` in the middle of this step, from 0.
        change: changes the loss of a micro-batch, given its step.
        evaluate: the values of an evaluation after a step.
        best_key: as `train` takes it.
        starts_trained: as `Training` takes it.
        settings: fields of `TrainConfig` that differ from DEFAULTS.
    """
    config = PretrainConfig(output_dir=str(folder), train=PretrainTrainConfig(**(DEFAULTS | settings)))
    accelerator = Accelerator(cpu=True)
    plan = config.train.plan(NUM_IMAGES, accelerator.num_processes)
    model = network(dropout)
    average = WeightAverage(model, ema_decay, accelerator.device) if ema_decay else None
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr_scale": 1.0}], fused=True)
    model, optimizer, _ = prepare(accelerator, model, optimizer, average)
    checkpoints = Checkpoints(accelerator, folder / "checkpoints", config.train.keep_checkpoints)
    state = checkpoints.resume()
    log = RunLog(accelerator, config, state.step, {})

    def loss_of(draws: Draws) -> Tensor:
        if state.step == stop_at:
            raise Interrupted
        inputs, targets = batch(draws.rows, draws.epoch)
        return change(state.step, nn.functional.mse_loss(model(inputs), targets))

    sampler = BatchSampler(plan, config.train.seed, accelerator.process_index)
    evaluations = [Evaluation("evaluation", plan.steps(config.train.eval_every_epochs), evaluate)]
    extra = {"starts_trained": starts_trained, "average": average}
    training = Training(accelerator, model, optimizer, config.train, sampler, loss_of, evaluations, **extra)
    if config.train.minutes and not state.step:
        timed = [Evaluation("evaluation", evaluations[0].every_steps, lambda step: {})]  # `evaluate` divides by it
        num_steps = steps_that_fit(dataclasses.replace(training, evaluations=timed))
        plan = dataclasses.replace(plan, total_steps=num_steps)
    try:
        state = train(training, plan, state, log, checkpoints, best_key)
    except RunError as error:
        error.model = accelerator.unwrap_model(model)  # for tests that look at the weights it left
        raise
    return average.module if average else accelerator.unwrap_model(model), state


class Numbered:
    """Images of one pixel, whose level is the number of the image."""

    def __init__(self, num_images: int) -> None:
        self.num_images, self.asked = num_images, list[int]()

    def __len__(self) -> int:
        return self.num_images

    def batch_on(self, device: torch.device, rows: np.ndarray) -> Tensor:
        """The images of these rows, which are noted in `asked`."""
        self.asked += rows.tolist()
        return torch.from_numpy(rows).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 1, 3)


def number_and_square(network: nn.Module, pixel_values: Tensor) -> Tensor:
    """The number of each image and its square, (B, 2)."""
    numbers = (255 * network(pixel_values)[:, 0, 0, 0]).round()
    return torch.stack([numbers, numbers**2], dim=1)


def main(folder: Path) -> None:
    """Write the files that test_two_processes.py checks."""
    accelerator = Accelerator(cpu=True)
    rank, is_main = accelerator.process_index, accelerator.is_main_process
    seen = {"num_processes": accelerator.num_processes}

    run(folder / "whole")
    run(folder / "accumulated", per_device_batch_size=2)
    try:
        run(folder / "resumed", stop_at=12)
    except Interrupted:
        run(folder / "resumed")

    def stop_one_process(step: int, loss: Tensor) -> Tensor:
        """Send a signal to the last process alone: all must stop after the same step."""
        if step == 9 and rank == accelerator.num_processes - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    try:
        run(folder / "begun on two", change=stop_one_process)
    except RunStopped as error:
        seen["stopped"] = str(error)
    run(folder / "begun on one")

    def spoil_one_process(step: int, loss: Tensor) -> Tensor:
        """Make the loss NaN on the last process alone, with finite gradients."""
        spoilt = step == 9 and rank == accelerator.num_processes - 1
        return loss + (float("nan") if spoilt else 0.0)

    try:
        run(folder / "not-finite", change=spoil_one_process)
    except RunError as error:
        seen["error"] = str(error)

    for num_images in (1, 2, 3, 8, 13):
        images = Numbered(num_images)
        values = infer(accelerator, number_and_square, nn.Identity(), images, PLAIN, 2)  # type: ignore[arg-type]
        seen[f"values of {num_images}"] = values.tolist()
        seen[f"computed of {num_images}"] = images.asked
    (folder / f"process-{rank}.json").write_text(json.dumps(seen))
    accelerator.wait_for_everyone()
    if is_main:
        print("done")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
