"""The trackers of a run, such as TensorBoard: Accelerate opens them, and the main process sends values and pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mae_hf import figures
from mae_hf.config import parse
from mae_hf.config.runs import RunConfig
from mae_hf.errors import RunError, require, warn


def check_trackers(config: RunConfig) -> None:
    """Raise `ConfigError` for a tracker that is not installed."""
    for name in config.train.trackers:
        fix = f"pip install {name}, or leave it out (--train.trackers)"
        require(name in map(str, get_available_trackers()), f"tracker {name} is not installed: {fix}")


class Trackers:
    """The trackers of the config. The run continues without a tracker that fails later, with a warning.

    Trackers that write files get the folder `trackers` of the run. RunError if a tracker cannot start.
    """

    def __init__(self, accelerator: Accelerator, config: RunConfig, step: int) -> None:
        self._accelerator = accelerator
        if not (config.train.trackers and accelerator.is_main_process):  # wandb would start a run in each process
            return
        folder = Path(config.output_dir).resolve() / "trackers"
        folder.mkdir(parents=True, exist_ok=True)  # if it is missing, wandb writes elsewhere
        options = {
            "tensorboard": {"purge_step": step + 1},  # removes the values after the step; others start a new run
            "wandb": {"dir": str(folder)},
            "dvclive": {"dir": str(folder / "dvclive"), "resume": step > 0},
            "swanlab": {"logdir": str(folder / "swanlab")},
        }
        settings = {key: str(value) for key, value in parse.flatten(config).items()}
        try:
            accelerator.init_trackers(folder.parent.name, settings, init_kwargs=options)
        except Exception as error:  # anything: a login, a server, a database
            fix = "mend it, or leave the trackers out (--train.trackers [])"
            raise RunError(f"the trackers cannot start ({_cause(error)}): {fix}") from error

    def log(self, values: dict[str, float], step: int) -> None:
        """Send the values of a step."""
        self._use(lambda tracker: tracker.log(values, step=step))

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Send the picture of a step to the trackers that accept pictures."""
        if self._accelerator.trackers:
            pixels = figures.pixels(figure)
            self._use(lambda tracker: _send(tracker, name, pixels, step))

    def finish(self) -> None:
        """Close the trackers."""
        self._use(lambda tracker: tracker.finish())
        self._accelerator.trackers.clear()  # otherwise Accelerate closes them once more

    def _use(self, action: Callable[[GeneralTracker], object]) -> None:
        for tracker in list(self._accelerator.trackers):
            try:
                action(tracker)
            except Exception as error:  # anything: a full disk, a server, a database
                self._accelerator.trackers.remove(tracker)
                problem = f"the tracker {tracker.name} failed ({_cause(error)}) and is no longer updated"
                warn(f"{problem}; metrics.jsonl has all values")


def _send(tracker: GeneralTracker, name: str, pixels: NDArray[np.uint8], step: int) -> None:
    """Send a picture, uint8 (H, W, 3), in the form that the tracker takes; Accelerate passes it on unchanged."""
    match tracker.name:
        case "tensorboard":
            tracker.log_images({name: pixels[None]}, step, dataformats="NHWC")
        case "wandb" | "swanlab":
            tracker.log_images({name: [pixels]}, step)
        case "aim" | "clearml":
            tracker.log_images({name: pixels}, step)
        case "trackio":
            import trackio  # an optional extra

            tracker.log({name: trackio.Image(pixels)}, step)


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
