"""Where an encoder comes from: what its pre-training run recorded about itself and about the test images it saw."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_hf.config import parse
from mae_hf.config.commands import PretrainConfig
from mae_hf.files import read_json
from mae_hf.leakage.record import AUDIT, Audit


@dataclass(frozen=True)
class RunRecord:
    """What run.json says about a run, as `mae_hf.training.run_folder` writes it; None or empty where it is silent."""

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
    num_parameters: int | None = None
    data_fingerprint: str | None = None  # of the training images and labels
    validation_fingerprint: str | None = None  # of the validation images and labels
    test_fingerprint: str | None = None  # of the test images and labels
    init_digest: str | None = None  # of the encoder's weights that fine-tuning started from
    start: str | None = None  # of the first process of the run, ISO 8601
    end: str | None = None  # of the run, ISO 8601


@dataclass(frozen=True)
class Provenance:
    """What is left of the pre-training run that an encoder comes from."""

    init: str  # the encoder, as `model.init` names it
    folder: Path | None = None  # the run; None where it is missing, as for a Hub id
    config: PretrainConfig | None = None  # its resolved config; None where it is missing
    record: RunRecord = field(default_factory=RunRecord)  # its run.json; empty where it is missing
    # its audit.json, which says which test images pre-training has seen; None where it is missing
    audit: Audit | None = None
    problem: str | None = None  # why an existing file could not be read


def find_provenance(init: str) -> Provenance:
    """Find the files of the pre-training run beside the encoder that `model.init` names.

    Args:
        init: a run folder, its `model/` or its `model/encoder/`; for a Hub id nothing is found.
    """
    start = Path(init).expanduser()
    if not start.is_dir():
        return Provenance(init)
    above = [start, *list(start.resolve().parents)[:2]]
    folder = next((path for path in above if (path / "run.json").is_file()), None)
    run = folder or start
    folders = [start, run, run / "model", run / "model" / "encoder", start / "encoder"]
    found: dict[str, Any] = {}
    for key, name, read in (
        ("config", "config.yaml", lambda path: parse.read_file(PretrainConfig, path)),
        ("record", "run.json", lambda path: read_json(path, RunRecord)),
        ("audit", AUDIT, lambda path: read_json(path, Audit)),
    ):
        path = next((path / name for path in folders if (path / name).is_file()), None)
        try:
            if path:
                found[key] = read(path)
        except ValueError as error:
            found["problem"] = str(error)
    return Provenance(init, folder, **found)
