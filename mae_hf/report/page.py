"""The report as one HTML page. `report.html` holds its text and tables; everything here is its data."""

import base64
import math
import re
import shlex
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from mae_hf.evaluation.statistics import Interval, Spread
from mae_hf.report.comparison import Comparison, interval_text, spread_text
from mae_hf.report.pictures import Pictures
from mae_hf.report.results import f1_of_classes, recall_of_classes
from mae_hf.training.provenance import RunRecord

UNKNOWN = "unknown"
# Strategies that an Accelerate config asks for, as run.json names them.
_CONFIGS = {"FSDP": "configs/accelerate/fsdp2.yaml", "DEEPSPEED": "configs/accelerate/zero2.yaml"}


def page(comparison: Comparison, drawn: Pictures, notes: Sequence[str], output_dir: str) -> str:
    """Return the whole report, with pictures, style and script inside, so that it requests nothing.

    The template escapes every text that it inserts.

    Args:
        comparison: the runs and their results.
        drawn: its pictures.
        notes: what a reader must know to judge the numbers.
        output_dir: where the report goes, as the command names it.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= _FILTERS
    environment.tests["nan"] = math.isnan
    template = environment.from_string(files("mae_hf.report").joinpath("report.html").read_text(encoding="utf-8"))
    origins = [origin for origin in comparison.origins if origin.record != RunRecord()]
    records = {f"pre-training of {origin.init}": origin.record for origin in origins}
    records |= {str(run.path): run.record for run in comparison.runs}
    versions = {", ".join(f"{name} {version}" for name, version in it.versions.items()) for it in records.values()}
    return template.render(
        comparison=comparison,
        arms=list(comparison.arms),
        drawn=drawn,
        notes=notes,
        num_test_images=comparison.num_test_images,
        recall=[recall_of_classes(arm) for arm in comparison.chosen],
        f1=[f1_of_classes(arm) for arm in comparison.chosen],
        labelled_duplicates=_labelled_duplicates(comparison),
        records=records,
        versions=sorted(versions - {""}),
        commands=_commands(comparison, output_dir),
    )


def _labelled_duplicates(comparison: Comparison) -> tuple[int, int] | None:
    """How many labelled training images duplicate how many test images; None where no audit has found any."""
    sources = comparison.runs[0].config.data.sources
    for audit in (origin.audit for origin in comparison.origins if origin.audit):
        own = [
            pair
            for pair in audit.pairs
            if (pair.split, pair.against_split) == ("train", "test") and pair.source == pair.against in sources
        ]
        if own:
            return len({pair.row for pair in own}), len({pair.against_row for pair in own})
    return None


def _commands(comparison: Comparison, output_dir: str) -> list[str]:
    """The command lines that made all of it, in their order."""
    lines = [line for origin in comparison.origins if (line := _launch(origin.record))]
    lines += [_launch(run.record) or f"# {run.path}: its command is unknown" for run in comparison.runs]
    options = zip(("--pretrained", "--scratch"), comparison.arms.values(), strict=True)
    arms = [word for option, runs in options for word in (option, *(str(run.path) for run in runs))]
    return [*lines, shlex.join(["python", "scripts/compare.py", *arms, "--output_dir", output_dir])]


def _launch(record: RunRecord) -> str | None:
    """The command of a run, with the precision, processes and strategy that `accelerate launch` had."""
    if not record.command:
        return None
    words = ["accelerate", "launch"]
    if record.strategy in _CONFIGS:
        words += ["--config_file", _CONFIGS[record.strategy]]
    elif record.strategy != "NO":
        words = [*(["ACCELERATE_USE_CPU=true"] if record.strategy == "MULTI_CPU" else []), *words, "--multi_gpu"]
    words += ["--mixed_precision", record.mixed_precision] if record.mixed_precision else []
    words += ["--num_processes", str(record.num_processes)] if record.num_processes else []
    where = f" # on each of {record.num_machines} machines, with --num_machines, --machine_rank and --main_process_ip"
    return f"{shlex.join(words)} {record.command}{where if record.num_machines > 1 else ''}"


def _pieces(text: str) -> list[str]:
    """The text, cut where a long path or name may break into the next line."""
    return re.split(r"(?<=[/._])(?=[^\W\d])", text)


def _number(value: float | None, form: str = ",", factor: float = 1, unknown: str = "–") -> tuple[str, float]:
    """The text of a number, and the number to sort by."""
    if value is None or math.isnan(value):
        return unknown, math.nan
    return f"{factor * value:{form}}", value


def _interval(interval: Interval | None, form: str = ".1f") -> str:
    return interval_text(interval, form) if interval else "none: all images alike"


def _over_runs(value: Spread) -> str:
    if value.low is None or value.high is None:
        return "unknown: one number" if len(value.values) == 1 else "none: all alike"
    return interval_text(Interval(value.low, value.high), ".1f")


def _epoch(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else "not reached"


def _range_of_epochs(value: Spread) -> str:
    if value.low is None or value.high is None:
        return "unknown: one number"
    reached = sum(map(math.isfinite, value.values))
    missed = "" if reached == len(value.values) else f", reached by {reached} of {len(value.values)}"
    return f"{_epoch(value.low)} to {_epoch(value.high)}{missed}"


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _commit(commit: str | None) -> str:
    """The first 12 digits, and whether there were uncommitted changes."""
    digits, dash, changed = (commit or UNKNOWN).partition("-")
    return digits[:12] + dash + changed


def _minutes(record: RunRecord) -> str:
    """From the first start to the end; an interrupted run counts its pause."""
    try:
        seconds = (datetime.fromisoformat(str(record.end)) - datetime.fromisoformat(str(record.start))).total_seconds()
    except (TypeError, ValueError):
        return UNKNOWN
    return f"{seconds / 60:.1f}"


_FILTERS = {
    "base64": lambda path: base64.b64encode(Path(path).read_bytes()).decode(),
    "pieces": _pieces,
    "thousands": lambda number: UNKNOWN if number is None else f"{number:,}",
    "number": _number,
    "spread": spread_text,
    "interval": _interval,
    "over_runs": _over_runs,
    "epoch": _epoch,
    "range_of_epochs": _range_of_epochs,
    "setting": _setting,
    "precision": lambda name: "fp32" if name == "no" else name or UNKNOWN,
    "commit": _commit,
    "minutes": _minutes,
}
