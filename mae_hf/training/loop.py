"""The one loop that both stages share. It knows steps, a loss and an evaluation; not images, YAML or the Hub."""

import contextlib
import math
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from mae_hf.config.train import Plan, TrainConfig
from mae_hf.data.random import Draws, integer_seed
from mae_hf.data.sampler import BatchSampler
from mae_hf.data.stream.order import StreamSampler
from mae_hf.errors import RunError, RunStopped
from mae_hf.training.checkpoint import Checkpoints, TrainState
from mae_hf.training.losses import LossOf
from mae_hf.training.optim import learning_rate_at, set_learning_rate
from mae_hf.training.run_folder import RunLog
from mae_hf.training.signals import StopSignals

Evaluate = Callable[[int], dict[str, float]]
Sampler = BatchSampler | StreamSampler

# Several GPUs are asked this often whether one of their processes was told to stop: a machine that goes gives 30 s.
_MOST_STEPS_UNASKED = 20


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    config: TrainConfig,
    plan: Plan,
    state: TrainState,
    sampler: Sampler,
    loss_of: LossOf,
    evaluate: Evaluate,
    log: RunLog,
    checkpoints: Checkpoints,
    best_key: str | None = None,
) -> TrainState:
    """Runs the steps from `state.step` to `plan.total_steps`.

    Args:
        accelerator: has prepared `model` and `optimizer`.
        sampler: which images come in which batch: `batch_sampler`, or that of a stream.
        loss_of: mean loss of the images of these rows, as they are augmented in this epoch and mixed in this batch.
        evaluate: values on validation images after this many steps.
        best_key: the key of `evaluate`'s values whose greatest value marks the best checkpoint; None keeps no best.

    Returns:
        The state after the last step; `checkpoints` holds it, and the best. The log has a line of the last evaluation;
        one that was lost with all steps made is evaluated again, its `train/loss` stays lost.

    Raises:
        RunStopped: SIGTERM or Ctrl-C has come, and the state is saved. It is looked for after each step; on several
            GPUs, which must agree without waiting, after 20 steps at most.
        RunError: a loss or gradient is not finite, and no `config.max_skipped_windows` are
            left. No update is made from there on; a GPU in bf16 or fp32 is asked only when a line of the log is due,
            and may go on until then.
    """
    progress = tqdm(
        total=plan.total_steps, initial=state.step, unit="step", disable=not accelerator.is_main_process, smoothing=0.05
    )
    meter = _Meter(accelerator.device, state)
    failure = torch.zeros(4, device=accelerator.device)
    if config.max_skipped_windows and state.step == 0:
        checkpoints.save(accelerator, state)  # there must be one to go back to
    if state.skipped:
        log.note(skipped_batches=state.skipped)
    if state.step == plan.total_steps and not log.has_line(state.step):  # torn after the last checkpoint
        model.eval()
        log.metrics(state.step, state.step / plan.steps_per_epoch, evaluate(state.step))
    with StopSignals(accelerator.is_main_process) as signals:
        while state.step < plan.total_steps:
            learning_rate = learning_rate_at(state.step, plan, config.learning_rate)
            set_learning_rate(optimizer, learning_rate)
            batch_index = state.step + state.num_skipped_batches
            loss, grad_norm = gradients(accelerator, model, sampler, loss_of, batch_index, config)
            loss, told_to_stop = over_processes(accelerator, loss, signals)
            failure = _first_failure(failure, loss, grad_norm, state.step)
            update(optimizer, failure[0])
            if checkpoints.average is not None:
                checkpoints.average.update(state.step)
            state.step += 1
            meter.add(loss, config.batch_size)
            progress.update()

            last = state.step == plan.total_steps
            evaluation_due = last or state.step % plan.eval_every_steps == 0
            line_due = evaluation_due or state.step % config.log_every_steps == 0
            save_due = last or state.step % plan.save_every_steps == 0
            if not (line_due or save_due or _may_ask(accelerator, signals, state.step)):
                continue
            if _failed(accelerator, failure):
                _go_back(accelerator, failure, state, config, checkpoints, log)
                meter, failure = _Meter(accelerator.device, state), torch.zeros_like(failure)
                progress.n = state.step
                continue
            stopping = told_to_stop.item() > 0
            if line_due:
                values = meter.values()
                progress.set_postfix_str(
                    f"loss {values['train/loss']:.4f}, {values['train/images_per_second']:.0f} images/s"
                )
                values |= {"train/learning_rate": learning_rate, "train/grad_norm": float(grad_norm)}
                if evaluation_due:
                    log.check_folder()  # pictures that an evaluation draws would make it anew
                    model.eval()
                    values |= evaluate(state.step)
                    if best_key is not None and (state.best_value is None or values[best_key] > state.best_value):
                        state.best_step, state.best_value, save_due = state.step, values[best_key], True
                log.metrics(state.step, state.step / plan.steps_per_epoch, values)
            if save_due or stopping:
                meter.write_into(state)
                log.sync()  # a checkpoint whose lines are lost in a power cut would leave a gap
                checkpoints.save(accelerator, state)
            if evaluation_due or save_due:
                meter.restart()
            if stopping:
                progress.close()
                raise _stopped(signals, checkpoints.path(state.step))
    progress.close()
    return state


def batch_sampler(accelerator: Accelerator, config: TrainConfig, plan: Plan) -> BatchSampler:
    """This process's share of every batch."""
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
    sampler: Sampler,
    loss_of: LossOf,
    batch_index: int,
    config: TrainConfig,
) -> tuple[Tensor, Tensor]:
    """Gradients of one global batch; returns the mean loss of this process's share, and the norm before clipping."""
    model.train()
    # a network's dropout draws from torch's generator: seeded by the batch, a resumed run draws as it would have
    torch.manual_seed(integer_seed(config.seed, batch_index, f"process {accelerator.process_index}"))
    micro_batches = sampler.micro_batches(batch_index)
    total = torch.zeros((), device=accelerator.device)
    for index, rows in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            loss = loss_of(Draws(config.seed, sampler.epoch(batch_index), rows, batch_index)) / len(micro_batches)
            accelerator.backward(loss)
        total += loss.detach()
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    assert grad_norm is not None
    if isinstance(grad_norm, DTensor):  # of weights in shards
        grad_norm = grad_norm.full_tensor()
    return total, grad_norm


def over_processes(accelerator: Accelerator, loss: Tensor, signals: StopSignals) -> tuple[Tensor, Tensor]:
    """The mean loss over the processes, and above 0 where one of them was told to stop; a GPU is not waited for."""
    told = torch.full_like(loss, bool(signals.received))
    reduced: Tensor = accelerator.reduce(torch.stack((loss, told)), reduction="mean")
    return reduced[0], reduced[1]


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


def _may_ask(accelerator: Accelerator, signals: StopSignals, step: int) -> bool:
    """Whether to look at failures and signals after this step: where that costs nothing, is needed, or is overdue.

    Looking makes the host wait for its GPU. Every process must come to the same answer.
    """
    if accelerator.device.type != "cuda" or accelerator.scaler is not None:
        return True
    return step % _MOST_STEPS_UNASKED == 0 or (accelerator.num_processes == 1 and signals.received != 0)


def _failed(accelerator: Accelerator, failure: Tensor) -> bool:
    """Whether a loss or gradient was not finite; no weight has changed since. It waits for the device."""
    failed, _, loss, _ = failure.tolist()
    if failed and math.isfinite(loss) and accelerator.scaler is not None and accelerator.scaler.get_scale() >= 1:
        failure.zero_()  # fp16 looks for its loss scale this way: the scaler skips the step and halves the scale
        return False
    return bool(failed)


def _go_back(
    accelerator: Accelerator,
    failure: Tensor,
    state: TrainState,
    config: TrainConfig,
    checkpoints: Checkpoints,
    log: RunLog,
) -> None:
    """Goes back to the last good checkpoint, and on with the batches after the one that failed.

    Raises:
        RunError: that was done `max_skipped_windows` times already, or no checkpoint is good.
    """
    _, failed_step, loss, grad_norm = failure.tolist()
    what = f"the loss ({loss:.4g}) or the gradient norm ({grad_norm:.4g}) of step {failed_step:.0f} is not finite"
    if len(state.skipped) >= config.max_skipped_windows:
        raise RunError(
            f"{what}; the last good checkpoint is {checkpoints.latest() or 'none yet'}: lower --train.base_lr, leave "
            "fp16 for bf16 or fp32, or leave such batches out (--train.max_skipped_windows)"
        )
    ahead, skipped = state.num_skipped_batches, state.skipped
    good = checkpoints.go_back(accelerator)
    if good is None:  # the weights are those of the step that failed
        raise RunError(f"{what}, and no checkpoint is good to go back to: the same command starts at step 0")
    vars(state).update(vars(good))
    # from one and the same checkpoint, windows may have been skipped since it was written
    state.skipped = [*skipped, [good.step + ahead, int(failed_step) + ahead]]
    log.rewind(state.step)
    log.note(skipped_batches=state.skipped)
    if accelerator.is_main_process:
        warnings.warn(
            f"{what}: back to step {good.step}, and on without the batches {state.skipped[-1][0]} to "
            f"{state.skipped[-1][1]} ({len(state.skipped)} of at most {config.max_skipped_windows} times)",
            stacklevel=2,
        )


def _stopped(signals: StopSignals, path: Path) -> RunStopped:
    number = signals.received or signal.SIGTERM  # another rank may have got it
    return RunStopped(f"{signal.Signals(number).name}: saved as {path}", number)


class _Meter:
    """Mean loss and images per second since it was last read; evaluations and checkpoints do not count as time.

    The loss goes on over an interruption: `state` carries it. The speed is that of this process's steps.
    """

    def __init__(self, device: torch.device, state: TrainState) -> None:
        self._loss = torch.tensor(state.loss_sum, device=device)
        self._steps = state.loss_steps
        self._images, self._seconds = 0, 0.0
        self.restart()

    def restart(self) -> None:
        """Starts the clock now."""
        self._started = time.perf_counter()

    def add(self, loss: Tensor, num_images: int) -> None:
        """Counts one optimizer step."""
        self._loss += loss
        self._steps += 1
        self._images += num_images

    def write_into(self, state: TrainState) -> None:
        """Stops the clock, and puts into `state` what a resumed run needs to write the same next line."""
        self._seconds += time.perf_counter() - self._started
        state.loss_sum, state.loss_steps = self._loss.item(), self._steps

    def values(self) -> dict[str, float]:
        """`train/loss` and `train/images_per_second`; starts anew."""
        loss = (self._loss / self._steps).item()
        seconds = self._seconds + time.perf_counter() - self._started
        images_per_second = self._images / seconds
        self._loss = torch.zeros_like(self._loss)
        self._steps, self._images, self._seconds = 0, 0, 0.0
        self.restart()
        return {"train/loss": loss, "train/images_per_second": images_per_second}
