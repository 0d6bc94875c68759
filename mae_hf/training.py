"""The one loop that both stages share. It knows steps, a loss and an evaluation; not images, YAML or the Hub."""

import contextlib
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from mae_hf.checkpoint import Checkpoints, TrainState
from mae_hf.config import Plan, RunError, TrainConfig, require
from mae_hf.data.draws import integer_seed
from mae_hf.data.sampler import BatchSampler
from mae_hf.optim import learning_rate_at, set_learning_rate
from mae_hf.tracking import RunLog

LossOf = Callable[[np.ndarray, int], Tensor]
Evaluate = Callable[[int], dict[str, float]]


def attention_for(accelerator: Accelerator) -> str:
    """The attention kind that is fastest where this run runs.

    On a CPU the bf16 backward of sdpa takes 39 % of a step and eager attention is 1.4 times as fast; in fp32, and on a
    GPU, sdpa is.

    Raises:
        ConfigError: fp16 without a GPU, which Accelerate would quietly run as fp32.
    """
    require(
        accelerator.mixed_precision != "fp16" or accelerator.device.type == "cuda",
        f"mixed_precision fp16 needs a GPU and this run is on {accelerator.device.type}: choose bf16 or no (accelerate "
        "launch --mixed_precision)",
    )
    return "eager" if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16" else "sdpa"


def use_all_cores(accelerator: Accelerator) -> None:
    """Gives a CPU run the cores it may use; without it, `accelerate launch` leaves a process one thread.

    Accelerate sets OMP_NUM_THREADS=1 unless `--num_cpu_threads_per_process` says more, and the other cores stay idle.
    """
    if accelerator.device.type == "cpu" and torch.get_num_threads() == 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    config: TrainConfig,
    plan: Plan,
    state: TrainState,
    loss_of: LossOf,
    evaluate: Evaluate,
    log: RunLog,
    checkpoints: Checkpoints,
    best_key: str | None = None,
) -> TrainState:
    """Runs the steps from `state.step` to `plan.total_steps`.

    Args:
        accelerator: has prepared `model` and `optimizer`.
        loss_of: mean loss of the images of these rows, as augmented in this epoch.
        evaluate: values on validation images after this many steps.
        best_key: the key of `evaluate`'s values whose greatest value marks the best checkpoint; None keeps no best.

    Returns:
        The state after the last step; `checkpoints` holds it, and the best.

    Raises:
        RunError: a loss or gradient is not finite; the weights have not been touched by it.
    """
    sampler = BatchSampler(
        plan.num_images,
        config.batch_size,
        config.seed,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        accumulation_steps=plan.accumulation_steps,
    )
    progress = tqdm(
        total=plan.total_steps, initial=state.step, unit="step", disable=not accelerator.is_main_process, smoothing=0.05
    )
    meter = _Meter(accelerator.device)
    while state.step < plan.total_steps:
        learning_rate = learning_rate_at(state.step, plan, config.learning_rate)
        set_learning_rate(optimizer, learning_rate)
        loss, grad_norm = _gradients(accelerator, model, sampler, loss_of, state.step, config)
        _stop_unless_finite(accelerator, loss, grad_norm, state.step, checkpoints)
        optimizer.step()
        optimizer.zero_grad()
        state.step += 1
        meter.add(loss, config.batch_size)
        progress.update()

        last = state.step == plan.total_steps
        evaluation_due = last or state.step % plan.eval_every_steps == 0
        save_due = last or state.step % plan.save_every_steps == 0
        # a checkpoint closes the line, since a resumed run starts a new mean there
        if evaluation_due or save_due or state.step % config.log_every_steps == 0:
            values = meter.values()
            progress.set_postfix_str(
                f"loss {values['train/loss']:.4f}, {values['train/images_per_second']:.0f} images/s"
            )
            values |= {"train/learning_rate": learning_rate, "train/grad_norm": float(grad_norm)}
            if evaluation_due:
                model.eval()
                values |= evaluate(state.step)
                if best_key is not None and (state.best_value is None or values[best_key] > state.best_value):
                    state.best_step, state.best_value, save_due = state.step, values[best_key], True
            log.metrics(state.step, state.step / plan.steps_per_epoch, values)
        if save_due:
            checkpoints.save(accelerator, state)
        if evaluation_due or save_due:
            meter.restart()
    progress.close()
    return state


def _gradients(
    accelerator: Accelerator,
    model: nn.Module,
    sampler: BatchSampler,
    loss_of: LossOf,
    step: int,
    config: TrainConfig,
) -> tuple[Tensor, Tensor]:
    """Gradients of one global batch; returns its mean loss and the gradient norm before clipping."""
    model.train()
    # drop-path draws from torch's generator: seeded by the step, a resumed run draws what an uninterrupted one would
    torch.manual_seed(integer_seed(config.seed, step, f"process {accelerator.process_index}"))
    micro_batches = sampler.micro_batches(step)
    total = torch.zeros((), device=accelerator.device)
    for index, rows in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            loss = loss_of(rows, sampler.epoch(step)) / len(micro_batches)
            accelerator.backward(loss)
        total += loss.detach()
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    assert grad_norm is not None
    return accelerator.reduce(total, reduction="mean"), grad_norm


def _stop_unless_finite(
    accelerator: Accelerator, loss: Tensor, grad_norm: Tensor, step: int, checkpoints: Checkpoints
) -> None:
    """Refuses the update that would spoil the weights; every process sees the same two numbers and stops with them."""
    # both: the gradient of an L1 loss is finite where the loss is not
    if torch.isfinite(loss) and torch.isfinite(grad_norm):
        return
    if torch.isfinite(loss) and accelerator.scaler is not None and accelerator.scaler.get_scale() >= 1:
        return  # fp16 looks for its loss scale this way: the optimizer skips the step and halves the scale
    last_good = checkpoints.latest()
    raise RunError(
        f"the loss ({float(loss):.4g}) or the gradient norm ({float(grad_norm):.4g}) of step {step} is not finite; the "
        f"last good checkpoint is {last_good or 'none yet'}: lower --train.base_lr, or leave fp16 for bf16 or fp32"
    )


class _Meter:
    """Mean loss and images per second since it was last read; evaluations and checkpoints do not count as time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self._loss = torch.zeros((), device=self._device)
        self._steps = self._images = 0
        self.restart()

    def restart(self) -> None:
        """Starts the clock now."""
        self._started = time.perf_counter()

    def add(self, loss: Tensor, num_images: int) -> None:
        """Counts one optimizer step."""
        self._loss += loss
        self._steps += 1
        self._images += num_images

    def values(self) -> dict[str, float]:
        """`train/loss` and `train/images_per_second`; starts anew."""
        loss = (self._loss / self._steps).item()
        images_per_second = self._images / (time.perf_counter() - self._started)
        self._clear()
        return {"train/loss": loss, "train/images_per_second": images_per_second}
