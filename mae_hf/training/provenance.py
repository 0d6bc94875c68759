"""Where results come from: what a run records about itself, and the pre-training run that an encoder comes from."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mae_hf.config import parse
from mae_hf.config.runs import PretrainConfig
from mae_hf.errors import redact
from mae_hf.files import read_json
from mae_hf.leakage.audit import AUDIT, Audit

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "scikit-learn", "numpy", "Pillow")


@dataclass(frozen=True)
class RunRecord:
    """What run.json says about a run, as `mae_hf.training.run_folder` writes it. Missing values are None or empty."""

    command: str | None = None
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    num_processes: int | None = None
    num_machines: int = 1
    strategy: str = "NO"  # how several processes share the work, as Accelerate names it
    mixed_precision: str | None = None
    num_train_images: int | None = None
    num_validation_images: int | None = None
    num_test_images: int | None = None
    num_parameters: int | None = None
    micro_batch_size: int | None = None  # images on a device at once
    total_steps: int | None = None
    data_fingerprint: str | None = None  # of the training images and labels
    validation_fingerprint: str | None = None  # of the validation images and labels
    test_fingerprint: str | None = None  # of the test images and labels
    init_digest: str | None = None  # of the encoder's weights that fine-tuning started from, or that were probed
    start_probe: dict[str, float] = field(default_factory=dict)  # of the encoder, before fine-tuning
    class_names: tuple[str, ...] | None = None  # of a probe's images
    encoder_shape: dict[str, int] | None = None  # of a probed encoder, by the fields of `EncoderConfig`
    start: str | None = None  # of the first process of the run, ISO 8601
    end: str | None = None  # of the run, ISO 8601


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return command, commit, versions, device, processes, strategy and precision of this run."""
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


def _git_commit() -> str | None:
    """The commit of this code, with `-dirty` if files have changed; None outside a checkout, or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None
    return done.stdout.strip() or None if done else None


def _device_name(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    cpu = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", cpu.read_text()) if cpu.exists() else None
    return f"{accelerator.device.type}: {name[1] if name else platform.processor()}"


@dataclass(frozen=True)
class Provenance:
    """The files of the pre-training run that an encoder comes from, as far as they exist."""

    init: str  # the encoder, as `model.init` names it
    folder: Path | None = None  # the run; None for a Hub id
    config: PretrainConfig | None = None  # its resolved config
    record: RunRecord = field(default_factory=RunRecord)  # its run.json
    audit: Audit | None = None  # its audit.json, which says which test images pre-training has seen
    problem: str | None = None  # why an existing file could not be read


def find_provenance(init: str) -> Provenance:
    """Find the files of the run that `init` names by its folder, `model/` or a part of it; none for a Hub id."""
    start = Path(init).expanduser()
    if not start.is_dir():
        return Provenance(init)
    above = [start, *list(start.resolve().parents)[:2]]
    folder = next((path for path in above if (path / "run.json").is_file()), None)
    folders = [start, folder or start, (folder or start) / "model"]
    found: dict[str, Any] = {}
    kinds = {"config": ("config.yaml", PretrainConfig), "record": ("run.json", RunRecord), "audit": (AUDIT, Audit)}
    for key, (name, kind) in kinds.items():
        path = next((path / name for path in folders if (path / name).is_file()), None)
        try:
            if path:
                found[key] = parse.read_file(kind, path) if kind is PretrainConfig else read_json(path, kind)
        except ValueError as error:
            found["problem"] = str(error)
    return Provenance(init, folder, **found)
