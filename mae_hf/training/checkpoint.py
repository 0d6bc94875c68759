"""Training state on disk: saved whole, named by step, rotated, and read back to resume.

A checkpoint is a folder `step-00001234` with Accelerate's files (weights and their average, optimizer, gradient
scaler), `train_state.json` with everything else that the loop changes, and `digests.json` with the sha256 of each file.
Schedule, data order, crops and masks are functions of the step and need no state. Files and log are on the disk before
the folder gets its name. If a disk loses data all the same, the run resumes from the checkpoint before.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import pickle
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import RNG_STATE_NAME, broadcast_object_list, gather_object, patch_environment
from safetensors import SafetensorError
from torch.distributed.checkpoint import CheckpointException, filesystem, metadata

from mae_hf.errors import ConfigError, RunError, require, warn
from mae_hf.files import beside_of, read_json, rename, sync

STATE = "train_state.json"
DIGESTS = "digests.json"
# What torch.distributed.checkpoint writes into the description of its shards, besides dtypes.
_DESCRIPTION = {
    metadata.__name__: [*metadata.__all__, "_MEM_FORMAT_ENCODING"],
    filesystem.__name__: ["_StorageInfo"],
    "torch": ["Size"],
    "torch.serialization": ["_get_layout"],
    "pathlib": pathlib.__all__,
}


@dataclass
class TrainState:
    """What the training loop changes besides tensors."""

    step: int = 0  # number of optimizer steps done
    best_step: int | None = None  # the step of the best validation value; None before the first evaluation
    best_value: float | None = None
    loss_sum: float = 0.0  # of the losses since the last line of the log
    loss_steps: int = 0  # number of steps in that sum
    launch: str = field(default="", compare=False)  # strategy and precision, filled in by `Checkpoints.save`


@dataclass
class Checkpoints:
    """The checkpoints of a run. Every process saves and reads them at the same time."""

    accelerator: Accelerator  # has prepared the model and the optimizer
    folder: Path  # `checkpoints` in the run folder
    keep: int  # number of newest checkpoints to keep, each with its best one

    def save(self, state: TrainState) -> None:
        """Write `step-N` and remove the checkpoints that are no longer kept; RunError if it cannot be written."""
        path = self.path(state.step)
        beside = beside_of(path)
        with self._together(path) as is_main:
            if is_main:
                self.folder.mkdir(exist_ok=True)  # without parents: a run folder that was moved stays away
                for stale in self.folder.glob(".step-*.partial"):
                    shutil.rmtree(stale)
                beside.mkdir()
        with self._together(path):
            self.accelerator.save_state(str(beside))
            # no run needs the random states, and they are pickles
            (beside / f"{RNG_STATE_NAME}_{self.accelerator.process_index}.pkl").unlink()
        with self._together(path) as is_main:
            if is_main:
                (beside / STATE).write_text(json.dumps(dataclasses.asdict(state) | {"launch": self._launch}))
                files = sorted(file for file in beside.rglob("*") if file.is_file())
                digests = {file.relative_to(beside).as_posix(): _sha256(file) for file in files}
                (beside / DIGESTS).write_text(json.dumps(digests, indent=2) + "\n")
                sync(beside)  # `checkpoints` may be a link to another disk
                sync(self.folder.parent)  # otherwise a power cut could leave a checkpoint whose log lines are lost
                shutil.rmtree(path, ignore_errors=True)
                rename(beside, path)
                self._rotate()

    def load(self, path: Path) -> TrainState:
        """Read a checkpoint into the prepared model and optimizer, and return its state; RunError if it is damaged."""
        damage = broadcast_object_list([_damage(path) if self.accelerator.is_main_process else None])[0]
        if damage:
            raise RunError(f"{path} is damaged ({damage}): the same command resumes from an earlier checkpoint")
        return self._read(path)

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint, or None. Damaged ones are renamed, with a warning."""
        found = None
        for path in reversed(self._all() if self.accelerator.is_main_process else []):
            damage = _damage(path)
            # the end of the run needs the best one
            if damage is None and (best := self._best(path)) != path and (damage := _damage(best)):
                damage = f"its best checkpoint, {best.name}: {damage}"
            if damage is None:
                found = path
                break
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            rename(path, aside)
            warn(f"{path} is damaged ({damage}): renamed it to {aside.name}; the run resumes from an earlier one")
        return broadcast_object_list([found])[0]

    def resume(self) -> TrainState:
        """Read the newest whole checkpoint, if there is one, like `load`."""
        path = self.newest()
        return self._read(path) if path else TrainState()

    def latest(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        return max(self._all(), default=None)

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-" + 8 * "[0-9]"))

    @property
    def _launch(self) -> str:
        """What a resumed run must not change: shards only fit shards, and a different precision changes the results."""
        is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        return f"{'sharded' if is_sharded else 'whole'} weights and mixed_precision {self.accelerator.mixed_precision}"

    def _read(self, path: Path) -> TrainState:
        state: TrainState = read_json(path / STATE, TrainState)
        fix = "give accelerate launch the same options as before, or choose another --output_dir"
        problem = f"was saved with {state.launch}, this run has {self._launch}"
        require(state.launch == self._launch, f"{path} {problem}: {fix}")
        try:
            check_shards(path)
            with patch_environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):  # no pickle may run code
                self.accelerator.load_state(str(path))
        except (pickle.UnpicklingError, CheckpointException) as error:  # the latter, of shards, is no Exception
            fix = "once that is fixed, or the folder is removed, the same command resumes"
            raise RunError(f"{path} cannot be read ({_one_line(error)}): {fix}") from None
        except (RuntimeError, ValueError) as error:
            if not re.search("state.dict|custom checkpoints", str(error)):
                raise
            fix = "restore its images and its encoder (--model.init), or choose another --output_dir"
            raise RunError(f"{path} belongs to a different network ({_one_line(error)}): {fix}") from None
        return state

    def _best(self, path: Path) -> Path:
        state: TrainState = read_json(path / STATE, TrainState)
        return self.path(state.step if state.best_step is None else state.best_step)

    def _rotate(self) -> None:
        kept = set(self._all()[-self.keep :])
        for path in tuple(kept):  # each with its best, so that a fallback still finds one
            with contextlib.suppress(ConfigError):  # a damaged one
                kept.add(self._best(path))
        for path in sorted(set(self._all()) - kept):
            if path.is_symlink():  # its owner moved it to another disk, where it stays
                path.unlink()
            else:  # it loses its name first, so that a kill leaves no half of one; the next save removes it
                os.replace(path, beside_of(path))
                shutil.rmtree(beside_of(path))

    @contextlib.contextmanager
    def _together(self, path: Path) -> Iterator[bool]:
        """Do a part of saving. If it fails on one process, all of them stop with its cause."""
        causes: list[str] = []
        try:
            yield self.accelerator.is_main_process
        # torch.save reports a full disk as RuntimeError, and the writer of shards as no Exception at all
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            causes.append(_one_line(error))
        causes = gather_object(causes)
        if not causes:
            return
        # torch does not say that a disk is full
        free = f"; {shutil.disk_usage(self.folder).free / 2**20:.1f} MiB free" if self.folder.exists() else ""
        if self.accelerator.is_main_process:
            shutil.rmtree(beside_of(path), ignore_errors=True)  # make room
        fix = f"make room, then the same command resumes from {self.latest() or 'the start'}"
        raise RunError(f"cannot write {path} ({causes[0]}{free}): {fix}") from None


class _DescriptionUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.removesuffix("._local")  # of pathlib in Python 3.13
        is_dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        if not is_dtype and name not in _DESCRIPTION.get(module, []):
            raise pickle.UnpicklingError(f"{module}.{name} has no part in a description of shards")
        return super().find_class(module, name)


def check_shards(folder: Path) -> None:
    """Raise `UnpicklingError` if Python would run code when torch opens the description of a checkpoint's shards."""
    for file in folder.rglob("*.metadata"):
        with file.open("rb") as opened:
            _DescriptionUnpickler(opened).load()


def _damage(folder: Path) -> str | None:
    """Return which file of a checkpoint is not what was saved, and why; None if all are whole."""
    try:
        digests = json.loads((folder / DIGESTS).read_text())
        for name in (STATE, *digests):
            if _sha256(folder / name) != digests[name]:
                return f"the sha256 of {name} differs from {DIGESTS}"
    except (ValueError, KeyError, TypeError):
        return f"{DIGESTS} is damaged"
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EIO):
            raise  # for example a file server that does not answer: nothing is damaged
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _one_line(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # its text is a traceback for each process
        error = next(iter(error.failures.values()))[0]
    return " ".join((str(error) or type(error).__name__).split())[:200]
