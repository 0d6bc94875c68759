"""Training state on disk: written beside and renamed, named by step, rotated, and read back to go on.

A checkpoint is a folder `step-00001234` with what Accelerate saves (weights, optimizer, gradient scaler) and
`train_state.json`, everything else that the loop changes. Schedule, data order, crops and masks need no state: they are
functions of the step.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator


@dataclass
class TrainState:
    """What the training loop changes besides tensors.

    Args:
        step: optimizer steps done.
        best_step: the step of the best validation value, or None before the first evaluation.
        best_value: that value.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Fills a folder beside `path` with `write(folder)` and renames it, so that `path` is whole or not there."""
    beside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    write(beside)
    if path.exists():
        shutil.rmtree(path)
    os.replace(beside, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file beside `path` and renames it."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text)
    os.replace(beside, path)


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: the run's `checkpoints` folder.
        keep: how many of the newest stay; the best stays too.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, accelerator: Accelerator, state: TrainState) -> None:
        """Writes `step-N` and removes what rotation no longer keeps. Every process must call it."""
        path = self.path(state.step)
        beside = path.with_name(f".{path.name}.partial")
        if accelerator.is_main_process:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(beside))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (beside / "train_state.json").write_text(json.dumps(dataclasses.asdict(state)))
            shutil.rmtree(path, ignore_errors=True)
            os.replace(beside, path)
            self._rotate(state)
        accelerator.wait_for_everyone()

    def load(self, accelerator: Accelerator, path: Path) -> TrainState:
        """Reads a checkpoint into the prepared model and optimizer, and returns its `TrainState`."""
        accelerator.load_state(str(path))
        return TrainState(**json.loads((path / "train_state.json").read_text()))

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        paths = self._all()
        return paths[-1] if paths else None

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"step-{step:08d}"

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))

    def _rotate(self, state: TrainState) -> None:
        kept = {*self._all()[-self.keep :], self.path(state.best_step or state.step)}
        for path in self._all():
            if path not in kept:
                shutil.rmtree(path)
