"""The pace of a run: its progress, the mean loss, images per second, and when it is expected to end."""

import contextlib
import time
from datetime import datetime, timedelta

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mae_hf.config.train import Plan, TrainConfig
from mae_hf.data.cores import num_cores
from mae_hf.progress import Progress, in_words
from mae_hf.training.checkpoint import TrainState


def describe_machine(accelerator: Accelerator, model: nn.Module, config: TrainConfig) -> str:
    """Return the size of a model, its machine, and what takes less time: for a run of more than a day."""
    kind = accelerator.device.type
    machine = f"{num_cores()} CPU cores" if kind == "cpu" else f"{accelerator.num_processes} {kind} devices"
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"{size:.0f} M parameters on {machine}; {config.quick}, and --train.minutes sets the duration"


class RunProgress(Progress):
    """The progress of the run, with the mean loss and the images per second since the last line of the log.

    Pauses do not count as time. The loss survives an interruption, since `state` holds it; the speed does not.
    """

    def __init__(self, accelerator: Accelerator, plan: Plan, state: TrainState, machine: str) -> None:
        options = {"initial": state.step, "unit": "step", "smoothing": 0.05}
        super().__init__(desc="training", total=plan.total_steps, disable=not accelerator.is_main_process, **options)
        self._loss = torch.tensor(state.loss_sum, device=accelerator.device)
        self._steps, self._images, self._done, self._machine = state.loss_steps, 0, 0, machine
        self._seconds = self._logged = 0.0  # without pauses: now, and at the last line of the log
        self.resume()

    def add(self, loss: Tensor, num_images: int) -> None:
        """Count a step with its mean loss ()."""
        self._loss += loss
        self._steps += 1
        self._images += num_images
        self._done += 1
        self.update()
        if self._done not in (2, 10):  # the first steps compile; after ten, print when the run is expected to end
            return
        loss.item()  # wait for the device
        self.pause()
        self.resume()
        if self._done == 2:
            self._compiled = self._seconds
        elif not self.disable and self.n < self.total:
            seconds = (self._seconds - self._compiled) / 8 * (self.total - self.n)
            end = datetime.now() + timedelta(seconds=min(seconds, 1e10))  # a year has four digits
            clock = "%H:%M" if end.date() == datetime.now().date() else "%d %b %Y %H:%M"
            text = f"time            about {in_words(seconds)}, until {end.strftime(clock)}, plus evaluations"
            with contextlib.suppress(OSError):
                self.write(f"{text}: {self._machine}" if seconds > 86_400 else text)

    def pause(self) -> None:
        """Stop the clock."""
        self._seconds += time.perf_counter() - self._started

    def resume(self) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def noted_in(self, state: TrainState) -> TrainState:
        """Return `state` with what a resumed run needs to write the same next line."""
        state.loss_sum, state.loss_steps = self._loss.item(), self._steps
        return state

    def values(self) -> dict[str, float]:
        """Show and return `train/loss` and `train/images_per_second`, and start anew. The clock is paused."""
        loss, images_per_second = (self._loss / self._steps).item(), self._images / (self._seconds - self._logged)
        self._loss = torch.zeros_like(self._loss)
        self._steps, self._images, self._logged = 0, 0, self._seconds
        self.set_postfix_str(f"loss {loss:.4f}, {images_per_second:.0f} images/s")
        return {"train/loss": loss, "train/images_per_second": images_per_second}
