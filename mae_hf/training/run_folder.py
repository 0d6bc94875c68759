"""What a run writes about itself: config.yaml, run.json, metrics.jsonl, metrics.json, and the trackers asked for."""

import importlib.util
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mae_hf.config import parse
from mae_hf.config.commands import MACHINE_SETTINGS, FinetuneConfig, PretrainConfig
from mae_hf.errors import ConfigError, redact, require
from mae_hf.files import PARTIAL, moved_away, sync, write_text
from mae_hf.training.distributed import check_same, end_processes
from mae_hf.training.lock import LOCK, RunLock

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "scikit-learn", "numpy", "Pillow")


def inspect_run(config: PretrainConfig | FinetuneConfig) -> Literal["new", "unfinished", "finished"]:
    """Looks into the run folder of this config; writes nothing.

    Returns:
        `new` for an empty folder, `unfinished` where a run of the same config can go on, `finished` where it is done.

    Raises:
        ConfigError: the folder holds a run of another config (the differences are named), or other files; a tracker is
            not installed.
    """
    missing = [name for name in config.train.trackers if importlib.util.find_spec(name) is None]
    require(
        not missing,
        f"tracker {', '.join(missing)} is not installed: pip install {' '.join(missing)}, or leave it "
        "out (--train.trackers)",
    )
    folder = Path(config.output_dir)
    path = folder / "config.yaml"
    if not path.exists():
        entries = folder.iterdir() if folder.is_dir() else ()
        strangers = [entry.name for entry in entries if entry.name != LOCK and not entry.match(PARTIAL)]
        require(
            not strangers,
            f"{folder} is not a run folder but holds {', '.join(sorted(strangers)[:3])}: choose another --output_dir",
        )
        return "new"
    try:
        old = parse.read_file(type(config), path)
    except ConfigError as error:
        raise ConfigError(
            f"{folder} holds a run of another kind or a damaged config.yaml: {error}; choose another --output_dir"
        ) from None
    changed = [line for line in parse.differences(old, config) if line.partition(": ")[0] not in MACHINE_SETTINGS]
    require(
        not changed,
        f"{folder} holds a run of another config ({'; '.join(changed)}): choose another --output_dir, or remove the "
        "folder",
    )
    return "finished" if (folder / "metrics.json").exists() else "unfinished"


class RunLog:
    """The files of a run and its trackers. Every process makes one and calls it; the main one writes.

    Args:
        accelerator: its trackers are started here, with the config as hyper-parameters.
        config: the run's config; becomes config.yaml.
        step: lines of metrics.jsonl after this step are dropped, so that a resumed run neither repeats nor skips one.
        facts: what run.json says besides versions, command and device; a resumed run keeps its first start.
        lock: of the run folder; released when the run is finished.

    Raises:
        ConfigError: the training images are not those of the other processes, or that the run began with.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: PretrainConfig | FinetuneConfig,
        step: int,
        facts: dict[str, Any],
        lock: RunLock | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._lock = lock
        self._folder = Path(config.output_dir)
        self._path = self._folder / "metrics.jsonl"
        same = {"data_fingerprint": facts.get("data_fingerprint")}
        check_same(accelerator, same, "put the same training images on all machines")
        before = self._before()
        if step:
            self._check_images(before, facts)
        accelerator.wait_for_everyone()  # the others may still be looking into the folder
        if accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / "config.yaml", parse.to_yaml(config))
            self._run = {**environment(accelerator), **facts, "start": before.get("start", _now()), "end": None}
            self._write_json("run.json", self._run)
        self._hyperparameters = (
            {key: str(value) for key, value in parse.flatten(config)} if config.train.trackers else {}
        )
        self.rewind(step)

    def metrics(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Adds a line to metrics.jsonl and sends it to the trackers.

        Raises:
            RunError: the folder has been moved or removed; no other one is begun in its place.
        """
        self.check_folder()
        if self._accelerator.is_main_process:
            with self._path.open("a") as file:
                # fp16 finds its loss scale by gradients that are not finite; JSON has no word for them
                finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
                file.write(json.dumps({"step": step, "epoch": round(epoch, 4), **finite}) + "\n")
        self._track(lambda: self._accelerator.log(values, step=step))

    def check_folder(self) -> None:
        """Raises `RunError` where the folder has been moved or removed."""
        if self._accelerator.is_main_process and not (self._folder / "config.yaml").exists():
            raise moved_away(self._folder)

    def has_line(self, step: int) -> bool:
        """Whether metrics.jsonl has a line of this step; every process must ask, and gets the main one's answer."""
        is_main = self._accelerator.is_main_process
        found = [is_main and any(line["step"] == step for line in read_metrics(self._folder))]
        return bool(broadcast_object_list(found)[0])

    def rewind(self, step: int) -> None:
        """Drops the lines after this step, and starts the trackers again; every process must call it.

        TensorBoard takes back what came after the step. trackio cannot: it goes on with another run of the project.
        """
        if self._accelerator.is_main_process:
            text = self._path.read_text(errors="replace") if self._path.exists() else ""
            # a line without its end is what a run that was killed was writing
            lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
            whole = [line for line in lines if _is_line(line)]
            if len(whole) < len(lines):
                warnings.warn(f"{len(lines) - len(whole)} lines of {self._path} are damaged and left out", stacklevel=2)
            write_text(self._path, "".join(line for line in whole if json.loads(line)["step"] <= step))
        self._track(self._end_trackers)  # init_trackers adds to them
        if self._hyperparameters:
            self._accelerator.init_trackers(
                self._folder.name, self._hyperparameters, init_kwargs={"tensorboard": {"purge_step": step + 1}}
            )

    def sync(self) -> None:
        """Returns once what was written so far is on the disk."""
        if self._accelerator.is_main_process:
            sync(self._folder)

    def note(self, **facts: Any) -> None:
        """Adds to what run.json says."""
        if self._accelerator.is_main_process:
            self._run |= facts
            self._write_json("run.json", self._run)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Writes metrics.json, which marks the run as finished, and the end into run.json."""
        if self._accelerator.is_main_process:
            self._write_json("run.json", {**self._run, "end": _now()})
            self.sync()  # what a finished run promises is on the disk before it is finished
            self._write_json("metrics.json", metrics)
        self._track(self._end_trackers)
        end_processes(self._accelerator)
        if self._lock is not None:
            self._lock.release()

    def _track(self, action: Callable[[], None]) -> None:
        """Does something with the trackers; where they fail, on whatever, the run goes on without them."""
        try:
            action()
        except Exception as error:  # of a disk, a server, a database
            self._accelerator.trackers.clear()
            self._hyperparameters = {}  # without them none starts again
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(
                f"the trackers have failed ({cause}) and are told no more; {self._path} has all values", stacklevel=3
            )

    def _end_trackers(self) -> None:
        while self._accelerator.trackers:
            self._accelerator.trackers.pop().finish()

    def _before(self) -> dict[str, Any]:
        """What run.json says from an earlier start."""
        path = self._folder / "run.json"
        try:
            return dict(json.loads(path.read_text()))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):
            warnings.warn(
                f"{path} is damaged: the run's first start, and whether its images are the same, is unknown",
                stacklevel=2,
            )
            return {}

    def _check_images(self, before: dict[str, Any], facts: dict[str, Any]) -> None:
        """A run that goes on must see the images that it began with: crops and masks are drawn by their number."""
        began = before.get("data_fingerprint")
        require(
            began in (None, facts.get("data_fingerprint")),
            f"{self._folder} began with other training images (data_fingerprint {began}, now "
            f"{facts.get('data_fingerprint')}): bring them back, or start anew in another --output_dir",
        )

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        write_text(self._folder / name, json.dumps(content, indent=2) + "\n")


def _is_line(text: str) -> bool:
    try:
        return isinstance(json.loads(text)["step"], int)
    except (ValueError, KeyError, TypeError):
        return False


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Command, commit, versions, device, processes, their strategy, and precision of this run."""
    return {
        "command": redact(shlex.join(sys.argv)),
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "device": _device_name(accelerator),
        "num_processes": accelerator.num_processes,
        "num_machines": accelerator.num_processes // int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "strategy": accelerator.distributed_type.value,
        "mixed_precision": accelerator.mixed_precision,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_commit() -> str | None:
    """The commit of the code that runs, `-dirty` with uncommitted changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _device_name(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    return f"{accelerator.device.type}: {names[0].split(':')[1].strip() if names else platform.processor()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
