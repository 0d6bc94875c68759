"""Where an encoder comes from: what its pre-training run wrote down about itself and about the test images it saw."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_hf.config import parse
from mae_hf.config.commands import PretrainConfig
from mae_hf.errors import ConfigError
from mae_hf.leakage.record import AUDIT, Audit, read_audit


@dataclass(frozen=True)
class Provenance:
    """What is left of the pre-training run that an encoder comes from.

    Args:
        init: the encoder, as `model.init` names it.
        folder: the run; None where it is not there any more, as for a Hub id.
        config: its resolved config; None where it is not there.
        record: its run.json; empty where it is not there.
        audit: its audit.json, which says which test images pre-training has seen; None if it has none.
        problem: why a file that is there could not be read; None where all could.
    """

    init: str
    folder: Path | None = None
    config: PretrainConfig | None = None
    record: dict[str, Any] = field(default_factory=dict)
    audit: Audit | None = None
    problem: str | None = None


def find_provenance(init: str) -> Provenance:
    """Looks beside the encoder that `model.init` names for the files of its pre-training run.

    Args:
        init: a run folder, its `model/` or its `model/encoder/`; for a Hub id nothing is found.
    """
    start = Path(init).expanduser()
    if not start.is_dir():
        return Provenance(init)
    above = [start, *list(start.resolve().parents)[:2]]
    folder = next((place for place in above if (place / "run.json").is_file()), None)
    run = folder or start
    places = [start, run, run / "model", run / "model" / "encoder", start / "encoder"]
    record_file, audit_file = (
        next((place / name for place in places if (place / name).is_file()), None) for name in ("run.json", AUDIT)
    )
    record: dict[str, Any] = {}
    audit, problem = None, None
    try:
        record = json.loads(record_file.read_text()) if record_file else {}
        check_record(record)
    except (OSError, ValueError, RecursionError) as error:
        record, problem = {}, f"{record_file} cannot be read: {error}"
    try:
        audit = read_audit(audit_file) if audit_file else None
    except ValueError as error:
        problem = str(error)
    try:
        config = parse.read_file(PretrainConfig, run / "config.yaml") if (run / "config.yaml").is_file() else None
    except ConfigError as error:
        config, problem = None, str(error)
    return Provenance(init, folder, config, record, audit, problem)


def check_record(content: Any) -> None:
    """Raises ValueError unless a run.json is what a run writes: a stranger's may hold anything."""
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    for key, value in content.items():
        if key.startswith("num_") and value is not None and not _is_count(value):
            raise ValueError(f"{key} is no count")
        inner = value.values() if key == "versions" and isinstance(value, dict) else (value,)
        if not all(item is None or isinstance(item, (str, bool, float)) or _is_count(item) for item in inner):
            raise ValueError(f"{key} is not a text, a number or null")
    if not isinstance(content.get("versions", {}), dict):
        raise ValueError("versions are not by name")
    if not isinstance(content.get("command") or "", str):
        raise ValueError("command is not a text")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def find_provenances(inits: Sequence[str]) -> list[Provenance]:
    """The same of several encoders, each once, in their order."""
    return [find_provenance(init) for init in dict.fromkeys(inits)]
