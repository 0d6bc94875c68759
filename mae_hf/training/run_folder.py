"""A run folder: its lock, and the files that a run writes about itself."""

import errno
import fcntl
import json
import math
import os
import platform
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list
from matplotlib.figure import Figure

from mae_hf import figures
from mae_hf.config import parse
from mae_hf.config.runs import MACHINE_SETTINGS, RunConfig
from mae_hf.errors import ConfigError, require, shorten, warn
from mae_hf.files import PARTIAL, moved_away, parse_json, read_json, sync, write_json, write_text
from mae_hf.models.locate import KEPT
from mae_hf.training.distributed import check_same, end_processes
from mae_hf.training.provenance import RunRecord, environment
from mae_hf.training.trackers import send_picture, start_trackers, tell_trackers

LOCK = ".lock"


def inspect_run(config: RunConfig) -> Literal["new", "unfinished", "finished"]:
    """Return the state of a config's run folder: `new` if it is empty, `unfinished` if the run can resume.

    ConfigError if it holds other files or a run with a different config, or if a tracker is not installed.
    """
    for name in config.train.trackers:
        fix = f"pip install {name}, or leave it out (--train.trackers)"
        require(name in map(str, get_available_trackers()), f"tracker {name} is not installed: {fix}")
    folder = Path(config.output_dir)
    path = folder / "config.yaml"
    if not path.exists():
        others = sorted(each.name for each in folder.glob("*") if each.name != LOCK and not each.match(PARTIAL))
        problem = f"is not a run folder but contains {shorten(others)}"
        require(not others, f"{folder} {problem}: choose another --output_dir")
        return "new"
    try:
        before, after = parse.flatten(parse.read_file(type(config), path)), parse.flatten(config)
    except ConfigError as error:
        problem = f"holds a different kind of run, or its config.yaml is damaged ({error})"
        raise ConfigError(f"{folder} {problem}: choose another --output_dir") from None
    keys = [key for key in after if before[key] != after[key] and key not in MACHINE_SETTINGS]
    changed = [f"{key}: {before[key]} -> {after[key]}" for key in keys]
    fix = "choose another --output_dir, or remove the folder"
    require(not changed, f"{folder} holds a run with a different config ({'; '.join(changed)}): {fix}")
    return "finished" if (folder / "metrics.json").exists() else "unfinished"


def lock_folder(accelerator: Accelerator, folder: Path) -> IO[str] | None:
    """Keep other runs out of a run folder until the returned file is closed, or the process ends, even by a kill.

    Every process calls it. The main process creates the folder, and locks its file `.lock` with `flock`, which also
    works between the hosts of an NFS share. ConfigError if another process holds the lock, or nothing can be written.
    """
    file, problem = None, ""
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK).open("a+")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            print(f"process {os.getpid()} on {platform.node()}, since {_now()}", file=file, flush=True)
        except BlockingIOError:
            assert file is not None  # only the lock blocks
            file.close()
            holder = (folder / LOCK).read_text().strip() or "another process"
            problem = f"{folder} is in use by {holder}: wait until it ends, or choose another --output_dir"
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                warn(f"cannot lock {folder} ({error.strerror}): make sure that no other run uses it")
            else:
                problem = f"cannot write to {folder} ({error.strerror}): choose another --output_dir"
    problem = broadcast_object_list([problem])[0]
    require(not problem, problem)
    return file


class RunLog:
    """The files and trackers of a run. Every process creates one and calls it; the main process writes.

    It writes the config, and `facts` into run.json beside versions, command and device. A resumed run keeps its first
    start, and loses the lines of metrics.jsonl after the `step` that it resumes from. ConfigError if the training
    images differ between the processes, or have changed since the run started.
    """

    def __init__(self, accelerator: Accelerator, config: RunConfig, step: int, facts: dict[str, Any]) -> None:
        self._accelerator = accelerator
        self._folder = Path(config.output_dir)
        self._path = self._folder / "metrics.jsonl"
        images = facts.get("data_fingerprint")
        check_same(accelerator, {"data_fingerprint": images}, "put the same training images on all machines")
        before = read_record(self._folder)
        if step and before.data_fingerprint:  # crops and masks are drawn by the number of the image
            problem = f"different training images (data_fingerprint {before.data_fingerprint}, now {images})"
            fix = "restore them, or choose another --output_dir"
            require(before.data_fingerprint == images, f"{self._folder} started with {problem}: {fix}")
        accelerator.wait_for_everyone()  # the others may still be reading the folder
        if accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / "config.yaml", parse.to_yaml(config))
            self._run = {**environment(accelerator), **facts, "start": before.start or _now(), "end": None}
            write_json(self._folder / "run.json", self._run)
            self._remove_lines_after(step)
        start_trackers(accelerator, config, step)

    def metrics(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl and send it to the trackers; RunError if the folder was moved or removed."""
        self.check_folder()
        if self._accelerator.is_main_process:
            # fp16 finds its loss scale by gradients that are not finite, which JSON cannot express
            finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, "epoch": round(epoch, 4), **finite}) + "\n")
        tell_trackers(self._accelerator, lambda tracker: tracker.log(values, step=step))

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Send the picture of a step to the trackers that accept pictures."""
        if self._accelerator.trackers:
            pixels = figures.pixels(figure)
            tell_trackers(self._accelerator, lambda tracker: send_picture(tracker, name, pixels, step))

    def check_folder(self) -> None:
        """Raise `RunError` if the folder was moved or removed."""
        if self._accelerator.is_main_process and not (self._folder / "config.yaml").exists():
            raise moved_away(self._folder)

    def has_line(self, step: int) -> bool:
        """Return whether metrics.jsonl has a line of this step. Every process must call it."""
        is_main = self._accelerator.is_main_process
        found = [is_main and any(line["step"] == step for line in read_metrics(self._folder))]
        return bool(broadcast_object_list(found)[0])

    def record(self) -> RunRecord:
        """Return the run.json of a run that ends now. Only the main process calls it."""
        return replace(read_record(self._folder), end=_now())

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write the end into run.json, then metrics.json, which marks the run as finished."""
        if self._accelerator.is_main_process:
            write_json(self._folder / "run.json", {**self._run, "end": _now()})
            sync(self._folder)  # the run is finished once all its files are on the disk
            write_json(self._folder / "metrics.json", metrics)
            shutil.rmtree(self._folder / KEPT, ignore_errors=True)  # no longer needed
        tell_trackers(self._accelerator, lambda tracker: tracker.finish())
        self._accelerator.trackers.clear()  # otherwise Accelerate closes them once more
        end_processes(self._accelerator)

    def _remove_lines_after(self, step: int) -> None:
        text = self._path.read_text(errors="replace") if self._path.exists() else ""
        kept, num_damaged = [], 0
        for line in re.findall(".*\n", text):  # a last line without its end was cut off by a kill
            try:
                kept += [line] if json.loads(line)["step"] <= step else []
            except (ValueError, KeyError, TypeError):
                num_damaged += 1
        if num_damaged:
            warn(f"removed {num_damaged} damaged lines from {self._path}")
        write_text(self._path, "".join(kept))


def read_record(folder: Path) -> RunRecord:
    """Return the run.json of an earlier start; an empty record if it is missing or damaged."""
    path = folder / "run.json"
    try:
        return read_json(path, RunRecord) if path.exists() else RunRecord()
    except ConfigError:
        warn(f"{path} is damaged: the first start and the training images of this run are unknown")
        return RunRecord()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics.jsonl, without values that were not finite; ConfigError if it is damaged."""
    lines: list[dict[str, float]] = []
    for number, text in enumerate((folder / "metrics.jsonl").read_bytes().splitlines(), start=1):
        where = f"{folder / 'metrics.jsonl'}, line {number}"
        values = parse_json(text, dict[str, object], where).items()
        line = {key: value for key, value in values if isinstance(value, int | float) and abs(value) < 1e300}
        is_next = line.get("epoch", -math.inf) >= (lines[-1]["epoch"] if lines else 0)
        require(is_next, f"{where} has no epoch, or a smaller one than the line above: run its command again")
        lines.append(line)
    return lines


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
