"""The training loop of both stages. It knows steps, a loss and evaluations, but no images, YAML or Hub."""

import contextlib
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mae_hf.config.train import Plan, TrainConfig
from mae_hf.data.random import Draws, integer_seed
from mae_hf.data.sampler import BatchSampler
from mae_hf.data.stream.order import StreamSampler
from mae_hf.errors import RunError, RunStopped
from mae_hf.training.checkpoint import Checkpoints, TrainState
from mae_hf.training.hardware import free_unused
from mae_hf.training.losses import LossOf
from mae_hf.training.memory import explained_lack
from mae_hf.training.optim import WeightAverage, learning_rate_at, set_learning_rate
from mae_hf.training.pace import RunProgress, describe_machine
from mae_hf.training.run_folder import RunLog
from mae_hf.training.signals import StopSignals, handling


@dataclass(frozen=True)
class Evaluation:
    """What is measured or drawn while the model trains, by all processes together."""

    name: str  # shown in the progress bar meanwhile
    every_steps: int  # steps between two evaluations
    run: Callable[[int], dict[str, float]]  # from the number of steps done to the values for the log
    at_end: bool = True  # whether it runs after the last step in any case, or never there

    def is_due(self, step: int, last: bool) -> bool:
        """Return whether it runs when `step` steps are done; `last` says that the run has no more."""
        return self.at_end if last else step % self.every_steps == 0


@dataclass(frozen=True)
class Training:
    """What makes a step, and what is measured between steps."""

    accelerator: Accelerator
    model: nn.Module  # prepared, as the optimizer
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    sampler: BatchSampler | StreamSampler
    loss_of: LossOf
    evaluations: Sequence[Evaluation] = ()
    starts_trained: bool = False  # whether the weights before the first step may be the best ones
    average: WeightAverage | None = None  # of the weights, if the run keeps one
    reading: Callable[[int, int], Any] | None = None  # the context that reads a stream, from a step to before another


def train(
    training: Training, plan: Plan, state: TrainState, log: RunLog, checkpoints: Checkpoints, best_key: str = ""
) -> TrainState:
    """Train from `state.step` to `plan.total_steps`, and return the state after the last step.

    The last checkpoint holds that state. The greatest value of `best_key` in an evaluation marks the best checkpoint.
    RunError if a loss or gradient is not finite: the weights are those before that step; or if no memory is left.
    RunStopped if SIGTERM, SIGHUP or Ctrl-C arrived: the state is saved. One process stops within a step, which the
    resumed run repeats. Several processes finish their step, and on GPUs up to 20 steps.
    """
    accelerator, config = training.accelerator, training.config
    progress = RunProgress(accelerator, plan, state, describe_machine(accelerator, training.model, config))
    save_every_steps = plan.steps(config.save_every_epochs)
    failure = torch.zeros(4, device=accelerator.device)
    saved_step = state.step or None
    if state.step == plan.total_steps and not log.has_line(state.step):  # a crash tore the last line
        due = [item for item in training.evaluations if item.at_end]
        values = _evaluate(training.model, due, state.step, progress)
        log.metrics(state.step, state.step / plan.steps_per_epoch, values)
    if training.starts_trained and state.best_step is None:
        values = _evaluate(training.model, training.evaluations, 0, progress)
        log.metrics(0, 0.0, values)
        state.best_step, state.best_value, saved_step = 0, values[best_key], 0
        checkpoints.save(progress.noted_in(state))
    signals = StopSignals(accelerator.is_main_process)
    reading = training.reading(state.step, plan.total_steps) if training.reading else contextlib.nullcontext()
    with reading, handling(signals.note), contextlib.closing(progress), explained_lack(plan.micro_batch_size):
        try:
            while state.step < plan.total_steps:
                # ---- step ----
                learning_rate = learning_rate_at(state.step, plan, config.learning_rate)
                set_learning_rate(training.optimizer, learning_rate)
                loss, grad_norm = gradients(training, state.step, signals)
                loss, told_to_stop = over_processes(accelerator, loss, signals)
                failure = first_failure(failure, loss, grad_norm, state.step)
                update(training.optimizer, failure[0])
                if training.average is not None:
                    training.average.update(state.step)
                state.step += 1
                progress.add(loss, config.batch_size)

                last = state.step == plan.total_steps
                due = [item for item in training.evaluations if item.is_due(state.step, last)]
                log_due = last or state.step % config.log_every_steps == 0
                save_due = last or state.step % save_every_steps == 0
                if not (due or log_due or save_due or _may_check(accelerator, signals, state.step)):
                    continue
                check_failure(accelerator, failure, checkpoints)
                progress.pause()

                # ---- evaluate ----
                values = {}
                if due:
                    log.check_folder()  # a figure would create a folder that was moved away
                    values = _evaluate(training.model, due, state.step, progress)
                if best_key in values and (state.best_value is None or values[best_key] > state.best_value):
                    state.best_step, state.best_value, save_due = state.step, values[best_key], True

                # ---- log ----
                if log_due or values:
                    rates = {"train/learning_rate": learning_rate, "train/grad_norm": float(grad_norm)}
                    log.metrics(state.step, state.step / plan.steps_per_epoch, progress.values() | rates | values)

                # ---- save ----
                if save_due:
                    checkpoints.save(progress.noted_in(state))
                    saved_step = state.step
                progress.resume()
                if told_to_stop.item() > 0:
                    raise RunStopped("", signals.received or signal.SIGTERM)  # another rank may have got the signal
        except RunStopped as stopped:
            if saved_step != state.step:
                check_failure(accelerator, failure, checkpoints)
                checkpoints.save(progress.noted_in(state))
            name, path = signal.Signals(stopped.signal_number).name, checkpoints.path(state.step)
            raise RunStopped(f"{name}: saved as {path}", stopped.signal_number) from None
    return state


def gradients(training: Training, step: int, signals: StopSignals) -> tuple[Tensor, Tensor]:
    """Compute the gradients of a global batch; return the mean loss of this rank's share, and the norm before clipping.

    A single process stops here as soon as a signal arrives: nothing has changed yet that a checkpoint holds.
    """
    accelerator, config = training.accelerator, training.config
    training.model.train()
    # A network's dropout draws from torch's generator: seeded by the step, a resumed run draws the same numbers.
    torch.manual_seed(integer_seed(config.seed, step, f"process {accelerator.process_index}"))
    micro_batches = training.sampler.micro_batches(step)
    total = torch.zeros((), device=accelerator.device)
    signals.interrupts = accelerator.num_processes == 1
    for index, rows in enumerate(micro_batches):
        signals.raise_if_received()
        last = index == len(micro_batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(training.model):
            draws = Draws(config.seed, training.sampler.plan.epoch(step), rows, step)
            loss = training.loss_of(draws) / len(micro_batches)
            # A loss that is not finite can have finite gradients. Make them NaN: the scaler of fp16 checks only these.
            accelerator.backward(loss * torch.ones_like(loss).masked_fill(~loss.isfinite(), math.nan))
        total += loss.detach()
    signals.interrupts = False
    grad_norm = accelerator.clip_grad_norm_(training.model.parameters(), config.max_grad_norm)
    assert grad_norm is not None
    if isinstance(grad_norm, DTensor):  # of sharded weights
        grad_norm = grad_norm.full_tensor()
    return total, grad_norm


def over_processes(accelerator: Accelerator, loss: Tensor, signals: StopSignals) -> tuple[Tensor, Tensor]:
    """Return the mean loss over the processes, and a number above 0 if one of them got a signal; no device sync."""
    told = torch.full_like(loss, bool(signals.received))
    reduced: Tensor = accelerator.reduce(torch.stack((loss, told)), reduction="mean")
    return reduced[0], reduced[1]


def update(optimizer: torch.optim.Optimizer, failed: Tensor) -> None:
    """Make the optimizer's step, or none if `failed` () is 1, without a device sync."""
    inner: Any = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    inner.found_inf = failed  # as gradient scalers do: AdamW's fused kernel reads it before it changes a weight
    optimizer.step()
    optimizer.zero_grad()


def first_failure(failure: Tensor, loss: Tensor, grad_norm: Tensor, step: int) -> Tensor:
    """Return the first step whose loss or gradient norm is not finite, as (1, step, loss, norm), or zeros: (4,)."""
    values = torch.stack((loss, grad_norm))
    here = torch.cat((values.new_full((1,), 1.0), values.new_full((1,), step), values))
    return torch.where(~values.isfinite().all() & (failure[0] == 0), here, failure)


def check_failure(accelerator: Accelerator, failure: Tensor, checkpoints: Checkpoints) -> None:
    """Raise `RunError` if `failure` names a step; no update has been made since. Waits for the device."""
    failed, step, loss, grad_norm = failure.tolist()
    if not failed:
        return
    if math.isfinite(loss) and accelerator.scaler is not None and accelerator.scaler.get_scale() >= 1:
        failure.zero_()  # fp16 searches for its loss scale this way: the scaler skips the step and halves the scale
        return
    problem = f"the loss ({loss:.4g}) or the gradient norm ({grad_norm:.4g}) of step {step:.0f} is not finite"
    good = f"the last good checkpoint is {checkpoints.latest() or 'none yet'}"
    raise RunError(f"{problem}; {good}: lower --train.base_lr, or use bf16 or fp32 instead of fp16")


def _may_check(accelerator: Accelerator, signals: StopSignals, step: int) -> bool:
    """Whether to check for failures and signals after this step; every process must get the same answer.

    A check makes the host wait for its GPU. On a CPU it costs nothing, and the scaler of fp16 waits anyway. Otherwise
    check every 20 steps: preemption usually allows 30 s.
    """
    waits = accelerator.device.type != "cuda" or accelerator.scaler is not None
    return waits or step % 20 == 0 or (accelerator.num_processes == 1 and signals.received != 0)


def _evaluate(model: nn.Module, due: Sequence[Evaluation], step: int, progress: RunProgress) -> dict[str, float]:
    model.eval()
    free_unused()  # what an evaluation allocates has other sizes than in training
    values = dict[str, float]()
    for evaluation in due:
        progress.set_description_str(evaluation.name)
        values |= evaluation.run(step)
    progress.set_description_str("training")
    free_unused()
    return values
