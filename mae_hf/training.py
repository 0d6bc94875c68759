"""The one loop that both stages share. It knows steps, a loss and an evaluation; not images, YAML or the Hub."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from mae_hf.checkpoint import Checkpoints, TrainState
from mae_hf.config import Plan, RunError, TrainConfig
from mae_hf.data.draws import integer_seed
from mae_hf.data.sampler import BatchSampler
from mae_hf.data.stream_order import StreamSampler
from mae_hf.objectives import LossOf
from mae_hf.optim import learning_rate_at, set_learning_rate
from mae_hf.tracking import RunLog

Evaluate = Callable[[int], dict[str, float]]


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
    sampler: BatchSampler | StreamSampler | None = None,
) -> TrainState:
    """Runs the steps from `state.step` to `plan.total_steps`.

    Args:
        accelerator: has prepared `model` and `optimizer`.
        loss_of: mean loss of the images of these rows, as they are augmented in this epoch.
        evaluate: values on validation images after this many steps.
        best_key: the key of `evaluate`'s values whose greatest value marks the best checkpoint; None keeps no best.
        sampler: the order of images that are streamed; None shuffles all of them.

    Returns:
        The state after the last step; `checkpoints` holds it, and the best.

    Raises:
        RunError: a loss or gradient is not finite. No update is made from there on; a GPU in
            bf16 or fp32 is asked only when a line of the log is due, and may go on until then.
    """
    sampler = sampler or batch_sampler(accelerator, config, plan)
    progress = tqdm(
        total=plan.total_steps, initial=state.step, unit="step", disable=not accelerator.is_main_process, smoothing=0.05
    )
    meter = _Meter(accelerator.device)
    failure = torch.zeros(4, device=accelerator.device)
    while state.step < plan.total_steps:
        learning_rate = learning_rate_at(state.step, plan, config.learning_rate)
        set_learning_rate(optimizer, learning_rate)
        loss, grad_norm = gradients(accelerator, model, sampler, loss_of, state.step, config)
        failure = _first_failure(failure, loss, grad_norm, state.step)
        if accelerator.device.type != "cuda" or accelerator.scaler is not None:  # asking costs nothing, or is needed
            _stop_at_failure(accelerator, failure, checkpoints)
        update(optimizer, failure[0])
        state.step += 1
        meter.add(loss, config.batch_size)
        progress.update()

        last = state.step == plan.total_steps
        evaluation_due = last or state.step % plan.eval_every_steps == 0
        save_due = last or state.step % plan.save_every_steps == 0
        # a checkpoint closes the line, since a resumed run starts a new mean there
        if evaluation_due or save_due or state.step % config.log_every_steps == 0:
            _stop_at_failure(accelerator, failure, checkpoints)
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


def batch_sampler(accelerator: Accelerator, config: TrainConfig, plan: Plan) -> BatchSampler:
    """This process's share of every step's batch."""
    return BatchSampler(
        plan.num_images,
        config.batch_size,
        config.seed,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        accumulation_steps=plan.accumulation_steps,
    )


def gradients(
    accelerator: Accelerator,
    model: nn.Module,
    sampler: BatchSampler | StreamSampler,
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


def update(optimizer: torch.optim.Optimizer, failed: Tensor) -> None:
    """Makes the optimizer's step, and none where `failed` () is 1: on a GPU without asking it which of the two it is.

    AdamW's fused kernel looks at `found_inf` before it touches a weight, which is how a gradient scaler skips a step.
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    inner.found_inf = failed
    optimizer.step()
    optimizer.zero_grad()


def _first_failure(failure: Tensor, loss: Tensor, grad_norm: Tensor, step: int) -> Tensor:
    """`failure` (4,), if it tells of one: 1, the step, its loss and gradient norm. Else that of this step, or zeros.

    Computed where loss and gradient norm are, and equal on every process.
    """
    values = torch.stack((loss, grad_norm))
    # both: the gradient of an L1 loss is finite where the loss is not
    failed = ~values.isfinite().all()
    here = torch.cat((values.new_full((1,), 1.0), values.new_full((1,), step), values))
    return torch.where(failed & (failure[0] == 0), here, failure)


def _stop_at_failure(accelerator: Accelerator, failure: Tensor, checkpoints: Checkpoints) -> None:
    """Stops the run if a loss or gradient was not finite; no weight has changed since. It waits for the device."""
    failed, step, loss, grad_norm = failure.tolist()
    if not failed:
        return
    if math.isfinite(loss) and accelerator.scaler is not None and accelerator.scaler.get_scale() >= 1:
        failure.zero_()  # fp16 looks for its loss scale this way: the scaler skips the step and halves the scale
        return
    last_good = checkpoints.latest()
    raise RunError(
        f"the loss ({loss:.4g}) or the gradient norm ({grad_norm:.4g}) of step {step:.0f} is not finite; the last good "
        f"checkpoint is {last_good or 'none yet'}: lower --train.base_lr, or leave fp16 for bf16 or fp32"
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
