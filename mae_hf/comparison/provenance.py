"""Where an encoder comes from: what its pre-training run wrote down about itself and about the test images it saw."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_hf import cli
from mae_hf.config import ConfigError, PretrainConfig


@dataclass(frozen=True)
class Provenance:
    """What is left of the pre-training run that an encoder comes from.

    Args:
        init: the encoder, as `model.init` names it.
        folder: the run; None where it is not there any more, as for a Hub id.
        config: its resolved config; None where it is not there.
        record: its run.json; empty where it is not there.
        audit: its audit.json, which says how many pre-training images are copies of test images; None where there is
            none.
        problem: why a file that is there could not be read; None where all could.
    """

    init: str
    folder: Path | None = None
    config: PretrainConfig | None = None
    record: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] | None = None
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
    content: dict[str, Any] = {}
    problem = None
    for name in ("run.json", "audit.json"):
        path = next((place / name for place in places if (place / name).is_file()), None)
        try:
            content[name] = json.loads(path.read_text()) if path else None
            if path and not isinstance(content[name], dict):
                raise ValueError("not a JSON object")
        except (OSError, ValueError) as error:
            content[name], problem = None, f"{path} cannot be read: {error}"
    try:
        config = cli.load(PretrainConfig, run / "config.yaml") if (run / "config.yaml").is_file() else None
    except ConfigError as error:
        config, problem = None, str(error)
    return Provenance(init, folder, config, content["run.json"] or {}, content["audit.json"], problem)


def find_provenances(inits: Sequence[str]) -> list[Provenance]:
    """The same of several encoders, each once, in their order."""
    return [find_provenance(init) for init in dict.fromkeys(inits)]
