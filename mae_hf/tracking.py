"""What a run writes about itself: config.yaml, run.json, metrics.jsonl, metrics.json, and the trackers asked for."""

import dataclasses
import importlib.util
import json
import math
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from mae_hf import cli
from mae_hf.checkpoint import write_text
from mae_hf.config import ConfigError, FinetuneConfig, PretrainConfig, require

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
        strangers = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        require(
            not strangers,
            f"{folder} is not a run folder but holds {', '.join(sorted(strangers)[:3])}: choose another --output_dir",
        )
        return "new"
    try:
        old = cli.load(type(config), path)
    except ConfigError as error:
        raise ConfigError(f"{folder} holds a run of another kind: {error}; choose another --output_dir") from None
    # where the run lies and is uploaded, where images are and whether layers are compiled has no part in its result;
    # nor has what happens to bad images: a run that went on has met none, and stored images are known by fingerprint
    same_result = {key: getattr(config.data, key) for key in ("cache_dir", "on_device", "on_bad_image")}
    data = dataclasses.replace(old.data, **same_result)
    train: Any = dataclasses.replace(old.train, compile=config.train.compile)
    same = dataclasses.replace(old, data=data, train=train, hub=config.hub, output_dir=config.output_dir)
    changed = cli.differences(same, config)
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
    """

    def __init__(
        self, accelerator: Accelerator, config: PretrainConfig | FinetuneConfig, step: int, facts: dict[str, Any]
    ) -> None:
        self._accelerator = accelerator
        self._folder = Path(config.output_dir)
        self._path = self._folder / "metrics.jsonl"
        self._check_images(step, facts)
        accelerator.wait_for_everyone()  # the others may still be looking into the folder
        if accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / "config.yaml", cli.dump(config))
            lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
            # a line without its end is what a run that was killed was writing
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(self._path, "".join(kept))
            self._run = {**environment(accelerator), **facts, "start": self._first_start(), "end": None}
            self._write_json("run.json", self._run)
        if config.train.trackers:
            hyperparameters = {key: str(value) for key, value in cli.flatten(config)}
            accelerator.init_trackers(self._folder.name, config=hyperparameters)

    def metrics(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Adds a line to metrics.jsonl and sends it to the trackers."""
        if self._accelerator.is_main_process:
            with self._path.open("a") as file:
                # fp16 finds its loss scale by gradients that are not finite; JSON has no word for them
                finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
                file.write(json.dumps({"step": step, "epoch": round(epoch, 4), **finite}) + "\n")
        self._accelerator.log(values, step=step)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Writes metrics.json, which marks the run as finished, and the end into run.json."""
        if self._accelerator.is_main_process:
            self._write_json("run.json", {**self._run, "end": _now()})
            self._write_json("metrics.json", metrics)
        self._accelerator.end_training()

    def _first_start(self) -> str:
        path = self._folder / "run.json"
        return str(json.loads(path.read_text())["start"]) if path.exists() else _now()

    def _check_images(self, step: int, facts: dict[str, Any]) -> None:
        """A run that goes on must see the images that it began with: crops and masks are drawn by their number."""
        path = self._folder / "run.json"
        began = json.loads(path.read_text()).get("data_fingerprint") if step and path.exists() else None
        require(
            began in (None, facts.get("data_fingerprint")),
            f"{self._folder} began with other training images (data_fingerprint {began}, now "
            f"{facts.get('data_fingerprint')}): bring them back, or start anew in another --output_dir",
        )

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        write_text(self._folder / name, json.dumps(content, indent=2) + "\n")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Command, commit, versions, device, processes and precision of this run."""
    return {
        "command": shlex.join(sys.argv),
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "device": _device_name(accelerator),
        "num_processes": accelerator.num_processes,
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
