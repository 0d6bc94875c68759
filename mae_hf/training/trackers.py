"""The trackers of a run, such as TensorBoard: Accelerate opens them, and the main process sends values and pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from numpy.typing import NDArray

from mae_hf.config import parse
from mae_hf.config.runs import RunConfig
from mae_hf.errors import RunError, warn


def start_trackers(accelerator: Accelerator, config: RunConfig, step: int) -> None:
    """Open the trackers of the config, with the run's folder `trackers` for their files; RunError if one cannot."""
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


def tell_trackers(accelerator: Accelerator, action: Callable[[GeneralTracker], object]) -> None:
    """Call `action` with each tracker. The run continues without a tracker that fails, with a warning."""
    for tracker in list(accelerator.trackers):
        try:
            action(tracker)
        except Exception as error:  # anything: a full disk, a server, a database
            accelerator.trackers.remove(tracker)
            problem = f"the tracker {tracker.name} failed ({_cause(error)}) and is no longer updated"
            warn(f"{problem}; metrics.jsonl has all values")


def send_picture(tracker: GeneralTracker, name: str, pixels: NDArray[np.uint8], step: int) -> None:
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
