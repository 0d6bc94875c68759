"""The background of a comparison: data, leakage, recipe, environment and commands."""

import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from mae_hf.report.comparison import PRETRAINED_ARM, SCRATCH_ARM, Comparison
from mae_hf.report.tables import Cell, Table
from mae_hf.training.provenance import Provenance, RunRecord

UNKNOWN = "unknown"
# Strategies that an Accelerate config asks for, as run.json names them.
_FILES = {"FSDP": "configs/accelerate/fsdp2.yaml", "DEEPSPEED": "configs/accelerate/zero2.yaml"}
_UNSEEN = (
    "After the audit, the images of pre-training contain no test image and no near-duplicate that the audit finds. It "
    "does not find every crop, and of images without fine detail it finds only exact duplicates."
)


def data_table(comparison: Comparison, origins: Sequence[Provenance]) -> Table:
    """Return what the runs were trained, validated and tested on, and the images of pre-training."""
    run = comparison.runs[0]
    config, record = run.config.data, run.record
    per_class = [int((run.test.labels == i).sum()) for i in range(len(run.class_names))]
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (config.image_mean, config.image_std))
    rows = [
        ("source", ", ".join(config.sources)),
        ("training images, with labels", _count(record.num_train_images)),
        ("validation images, for every decision", _count(len(run.validation))),
        ("test images, scored once", _count(len(run.test))),
        ("classes", f"{len(run.class_names)}: {', '.join(run.class_names)}"),
        ("test images in the smallest and largest class", f"{min(per_class):,} and {max(per_class):,}"),
        ("image size", f"{run.config.model.image_size} x {run.config.model.image_size} pixels"),
        ("normalisation of pixels", f"mean {mean}, std {std} (R, G, B)"),
        ("fingerprint of the training images", record.data_fingerprint or UNKNOWN),
        ("fingerprint of the test images", record.test_fingerprint or UNKNOWN),
        ("images of pre-training, without labels", _each(_count(o.record.num_train_images) for o in origins)),
        ("fingerprint of those images", _each(o.record.data_fingerprint or UNKNOWN for o in origins)),
    ]
    return Table("The same for all runs. A fingerprint changes with any pixel or label.", ("what", "value"), rows)


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _each(values: Iterable[str]) -> str:
    """The value of every encoder, once if they agree."""
    return " or ".join(dict.fromkeys(values))


def leakage_notes(comparison: Comparison, origins: Sequence[Provenance]) -> list[str]:
    """Return what is known about test images that pre-training or labelled training has seen, a paragraph each."""
    notes = [comparison.leak() or _UNSEEN]
    for origin in origins:
        if origin.audit and origin.audit.streamed:
            notes.append(
                f"The images of {origin.init} were streamed, and not searched for near-duplicates of test images."
            )
        elif origin.problem or origin.audit is None:
            notes.append(origin.problem or f"{origin.init} has no audit.json.")
    sources = comparison.runs[0].config.data.sources
    for pairs in (origin.audit.pairs for origin in origins if origin.audit):
        own = [
            pair
            for pair in pairs
            if (pair.split, pair.against_split) == ("train", "test") and pair.source == pair.against in sources
        ]
        if own:
            images, tests = len({pair.row for pair in own}), len({pair.against_row for pair in own})
            notes.append(
                f"{images:,} labelled training images are duplicates or near-duplicates of {tests:,} test images. Both "
                "arms learn from them, with their labels: the gain stays fair, but both accuracies may be too high."
            )
            break
    return notes


def leakage_tables(origins: Sequence[Provenance]) -> list[Table]:
    """Return what the audit before pre-training found, a table for each encoder."""
    tables = []
    head = ("test images of", "images", "with duplicates in the pre-training data", "seen by pre-training")
    for origin in origins:
        if (audit := origin.audit) is None:
            continue
        rows = [
            (part.source, _count(part.num_images), _count(part.num_duplicated), _count(part.num_seen))
            for part in audit.tests
        ]
        kinds = "exact duplicates in the stream" if audit.streamed else "exact and near-duplicates"
        of = f" of {origin.init}" if len(origins) > 1 else ""
        done = "left out of" if audit.left_out else "kept in"
        caption = f"The audit before pre-training{of} (audit.json): {kinds}, which were {done} pre-training"
        tables += [Table(caption, head, rows)] if rows else []
    return tables


def recipe_tables(comparison: Comparison) -> tuple[list[str], list[Table]]:
    """Return the settings in which the arms differ, and a table of all settings that may change a result."""
    ours, baseline = (dict(arm[0].settings) for arm in comparison.chosen)
    differing = [key for key in ours if ours[key] != baseline[key]]
    rows = [(key, _setting(ours[key]), Cell(_setting(baseline[key]), marked=key in differing)) for key in ours]
    tables = [Table("Settings of each arm's chosen recipe", ("setting", PRETRAINED_ARM, SCRATCH_ARM), rows)]
    pretraining = [(key, _setting(value)) for key, value in comparison.runs[0].pretraining]
    if pretraining:
        tables.append(Table("Settings of its pre-training", ("setting", PRETRAINED_ARM), pretraining))
    return differing, tables


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def environment_table(comparison: Comparison, origins: Sequence[Provenance]) -> tuple[Table, list[str]]:
    """Return device, precision, commit and time of every run, and the versions of the libraries."""
    records = {f"pre-training of {origin.init}": origin.record for origin in origins if origin.record != RunRecord()}
    records |= {str(run.path): run.record for run in comparison.runs}
    rows = [
        (
            name,
            record.device or UNKNOWN,
            _count(record.num_processes),
            {"no": "fp32", None: UNKNOWN}.get(record.mixed_precision, record.mixed_precision or UNKNOWN),
            _count(record.num_parameters),
            _short(record.git_commit or UNKNOWN),
            (record.start or UNKNOWN).removesuffix("+00:00"),
            _minutes(record),
        )
        for name, record in records.items()
    ]
    head = ("run", "device", "processes", "precision", "parameters", "commit", "start (UTC)", "minutes")
    versions = {
        ", ".join(f"{name} {version}" for name, version in record.versions.items()) for record in records.values()
    }
    return Table("Where and when each run was made", head, rows), sorted(versions - {""})


def _short(commit: str) -> str:
    """The first 12 digits, and whether there were uncommitted changes."""
    digits, dash, changed = commit.partition("-")
    return digits[:12] + dash + changed


def _minutes(record: RunRecord) -> str:
    """From the first start to the end; an interrupted run counts its pause."""
    try:
        seconds = (datetime.fromisoformat(str(record.end)) - datetime.fromisoformat(str(record.start))).total_seconds()
    except (TypeError, ValueError):
        return UNKNOWN
    return f"{seconds / 60:.1f}"


def commands(comparison: Comparison, origins: Sequence[Provenance], output_dir: str) -> list[str]:
    """Return the command lines that made all of it, in their order."""
    lines = [line for origin in origins if (line := _launch(origin.record))]
    lines += [_launch(run.record) or f"# {run.path}: its command is unknown" for run in comparison.runs]
    options = zip(("--pretrained", "--scratch"), comparison.arms.values(), strict=True)
    arms = [word for option, runs in options for word in (option, *(str(run.path) for run in runs))]
    return [*lines, shlex.join(["python", "scripts/compare.py", *arms, "--output_dir", output_dir])]


def _launch(record: RunRecord) -> str | None:
    """The command of a run, with the precision, processes and strategy that `accelerate launch` had."""
    if not record.command:
        return None
    words = ["accelerate", "launch"]
    if record.strategy in _FILES:
        words += ["--config_file", _FILES[record.strategy]]
    elif record.strategy != "NO":
        words = [*(["ACCELERATE_USE_CPU=true"] if record.strategy == "MULTI_CPU" else []), *words, "--multi_gpu"]
    words += ["--mixed_precision", record.mixed_precision] if record.mixed_precision else []
    words += ["--num_processes", str(record.num_processes)] if record.num_processes else []
    where = f" # on each of {record.num_machines} machines, with --num_machines, --machine_rank and --main_process_ip"
    return f"{shlex.join(words)} {record.command}{where if record.num_machines > 1 else ''}"
