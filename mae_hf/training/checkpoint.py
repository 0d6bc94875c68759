"""Training state on disk: named by step, rotated, and read back to go on.

A checkpoint is a folder `step-00001234` with what Accelerate saves (weights, optimizer, gradient scaler), the average
of the weights where one is kept, `train_state.json`, everything else that the loop changes, and `digests.json`, the
sha256 of each file. Schedule, data order, crops and masks need no state: they are functions of the step. All of it is
on the disk before the folder gets its name, so that neither a kill nor a power cut leaves half of one; where a file is
not what was written all the same, the run goes on from the checkpoint before.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator, DistributedType
from accelerate.utils import RNG_STATE_NAME, broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException

from mae_hf.errors import RunError, require
from mae_hf.files import beside_of, rename, sync
from mae_hf.training.optim import WeightAverage
from mae_hf.training.pickles import check_shards

STATE = "train_state.json"
AVERAGE = "average.safetensors"
DIGESTS = "digests.json"
# What the launcher chooses, is in the state of a checkpoint, and must not change.
_HOW_TO_LAUNCH = {"strategy": "configs/accelerate", "mixed_precision": "accelerate launch --mixed_precision"}


@dataclass
class TrainState:
    """What the training loop changes besides tensors.

    Args:
        step: optimizer steps done.
        best_step: the step of the best validation value, or None before the first evaluation.
        best_value: that value.
        loss_sum: sum of the losses since the last line of the log.
        loss_steps: steps in that sum.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    loss_sum: float = 0.0
    loss_steps: int = 0


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: the run's `checkpoints` folder.
        keep: how many of the newest stay; the best that each of them names stays too.
        average: of the weights, where one is kept; saved and read along.
    """

    def __init__(self, folder: Path, keep: int, average: WeightAverage | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.average = average

    def save(self, accelerator: Accelerator, state: TrainState) -> None:
        """Writes `step-N` and removes what rotation no longer keeps. Every process must call it.

        Raises:
            RunError: it cannot be written; the checkpoints from before are as they were.
        """
        path = self.path(state.step)
        beside = beside_of(path)

        def make_room() -> None:
            if accelerator.is_main_process:
                self.folder.mkdir(exist_ok=True)  # without parents: a run folder that was moved away is not made anew
                for stale in self.folder.glob(".step-*.partial"):
                    shutil.rmtree(stale)
                beside.mkdir()

        def write() -> None:
            accelerator.save_state(str(beside))
            # nothing goes on from random states, and they are pickles; another number of processes has others
            (beside / f"{RNG_STATE_NAME}_{accelerator.process_index}.pkl").unlink()

        def finish() -> None:
            if accelerator.is_main_process:
                content = dataclasses.asdict(state) | _launched(accelerator)
                (beside / STATE).write_text(json.dumps(content))
                if self.average is not None:  # Accelerate would make a pickle of it, and open it as one
                    save_file(self.average.module.state_dict(), beside / AVERAGE)
                _write_digests(beside)
                sync(beside)
                shutil.rmtree(path, ignore_errors=True)
                rename(beside, path)
                self._rotate()

        for part in (make_room, write, finish):
            self._together(accelerator, part, path)

    def load(self, accelerator: Accelerator, path: Path) -> TrainState:
        """Reads a checkpoint into the prepared model and optimizer, and returns its `TrainState`.

        Raises:
            RunError: it is damaged.
            ConfigError: it was saved with shards, an average or another precision than this run has.
        """
        causes = broadcast_object_list([_damage(path) if accelerator.is_main_process else None])
        if causes[0]:
            raise RunError(f"{path} is damaged ({causes[0]}): the same command goes on from a checkpoint before it")
        return self._read(accelerator, path)

    def resume(self, accelerator: Accelerator) -> TrainState:
        """Goes on from the newest checkpoint whose files are what was written; `TrainState()` where there is none.

        A damaged one is set aside as `step-N.damaged`, with a warning that names it and the cause.
        """
        steps = broadcast_object_list([self._newest_good() if accelerator.is_main_process else None])
        return TrainState() if steps[0] is None else self._read(accelerator, self.path(steps[0]))

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        paths = self._all()
        return paths[-1] if paths else None

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"step-{step:08d}"

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))

    def _read(self, accelerator: Accelerator, path: Path) -> TrainState:
        saved = json.loads((path / STATE).read_text())
        for name, now in _launched(accelerator).items():
            before = saved.get(name, now)
            require(
                before == now,
                f"{path} was saved with {name} {before}, and this run was started with {now}: start it as before "
                f"({_HOW_TO_LAUNCH[name]}), or choose another --output_dir",
            )
        has_average = (path / AVERAGE).exists()
        require(
            has_average == (self.average is not None),
            f"{path} has {'an' if has_average else 'no'} average of the weights, and this run keeps "
            f"{'one' if self.average is not None else 'none'}: give --train.ema_decay as before, or choose another "
            "--output_dir",
        )
        try:
            check_shards(path)
            accelerator.load_state(str(path))  # safetensors, and pickles with weights_only
        except pickle.UnpicklingError as error:
            raise RunError(
                f"{path} holds a pickle that is not one of tensors ({_one_line(error)}): remove it"
            ) from None
        except CheckpointException as error:
            raise RunError(
                f"{path} cannot be read ({_one_line(error)}): once that is mended, the same command goes on"
            ) from None
        except (RuntimeError, ValueError) as error:  # of weights, and of the optimizer's moments
            if not re.search("state.dict", str(error)):
                raise
            raise RunError(
                f"{path} is of another network ({_one_line(error)[:200]}): bring the images and the encoder "
                "(--model.init) back that the run began with, remove it if it is not of this run, or choose another "
                "--output_dir"
            ) from None
        if self.average is not None:
            self.average.module.load_state_dict(load_file(path / AVERAGE))
        return _read_state(path)

    def _best(self, state: TrainState) -> Path:
        return self.path(state.best_step or state.step)

    def _rotate(self) -> None:
        kept = set(self._all()[-self.keep :])
        for path in tuple(kept):  # the best of the newest alone would leave the one before it without its own
            with contextlib.suppress(OSError, ValueError, TypeError, RunError):  # a damaged one, that will be set aside
                kept.add(self._best(_read_state(path)))
        for path in self._all():
            if path not in kept:
                _remove(path)

    def _newest_good(self) -> int | None:
        for path in reversed(self._all()):
            cause = _damage(path)
            if cause is None:
                state = _read_state(path)
                best = self._best(state)  # a run that ends needs it
                cause = _damage(best) if best != path else None
                if cause is None:
                    return state.step
                cause = f"its best checkpoint, {best.name}: {cause}"
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            rename(path, aside)
            warnings.warn(
                f"{path} is damaged ({cause}): it is kept as {aside.name}, and the run goes on from the one before it",
                stacklevel=2,
            )
        return None

    def _together(self, accelerator: Accelerator, part: Callable[[], None], path: Path) -> None:
        """Does a part of saving; where it fails on one process, all of them stop with its cause."""
        causes: list[str] = []
        try:
            part()
        # torch.save makes a RuntimeError of a full disk, and what writes shards no Exception at all
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            causes.append(_one_line(error))
        causes = gather_object(causes)
        if not causes:
            return
        free = shutil.disk_usage(_nearest(self.folder)).free / 2**20  # torch does not say that a disk is full
        if accelerator.is_main_process:
            shutil.rmtree(beside_of(path), ignore_errors=True)  # what it takes may be what is missing
        raise RunError(
            f"{path} cannot be written ({causes[0]}; {free:.1f} MiB were free); the last good checkpoint is "
            f"{self.latest() or 'none yet'}: make room, and the same command goes on from there"
        )


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _launched(accelerator: Accelerator) -> dict[str, str]:
    """What the launcher chose and must choose again.

    The strategy is how the files are laid out: whole weights fit one process and several, shards fit shards. In another
    precision the run would be another one, and fp16 needs the state of its gradient scaler.
    """
    kind = accelerator.distributed_type
    is_sharded = kind in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    return {
        "strategy": str(kind.value) if is_sharded else "whole weights (DDP)",
        "mixed_precision": str(accelerator.mixed_precision),
    }


def _read_state(path: Path) -> TrainState:
    content = json.loads((path / STATE).read_text())
    for name in _HOW_TO_LAUNCH:
        content.pop(name, None)
    try:
        return TrainState(**content)
    except TypeError as error:
        raise RunError(
            f"{path} was saved by another version of mae_hf ({_one_line(error)}): go on with that one, or choose "
            "another --output_dir"
        ) from None


def _write_digests(folder: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    digests = {file.relative_to(folder).as_posix(): _sha256(file) for file in files}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=2) + "\n")


def _damage(folder: Path) -> str | None:
    """Which file of a checkpoint is not what was written, and how one can tell; None where all are."""
    try:
        digests = json.loads((folder / DIGESTS).read_text())
        for name in (STATE, *digests):
            if _sha256(folder / name) != digests[name]:
                return f"the sha256 of {name} is not that in {DIGESTS}"
        step = json.loads((folder / STATE).read_text())["step"]
        if folder.name != f"step-{step:08}":  # it was renamed
            return f"{STATE} says step {step}"
    except (ValueError, KeyError, TypeError):
        return f"{DIGESTS} or {STATE} is not readable or not whole"
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EIO):
            raise  # a file server that does not answer has damaged nothing
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _remove(path: Path) -> None:
    """Takes a checkpoint's name away first, so that a kill leaves no half of one under it; the next save sweeps it."""
    if path.is_symlink():  # it was moved to another disk, where it stays
        return path.unlink()
    os.replace(path, beside := beside_of(path))
    shutil.rmtree(beside)


def _one_line(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # its own text is a traceback for each process
        error = next(iter(error.failures.values()))[0]
    return " ".join((str(error) or type(error).__name__).split())
