"""What lies behind a comparison's numbers: data, leaks, recipe, environment and commands, as sections of the report."""

import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from mae_hf.report.comparison import PRETRAINED, SCRATCH, Comparison
from mae_hf.report.markup import Cell, commands, items, paragraphs, table
from mae_hf.training.finished_runs import Run
from mae_hf.training.provenance import Provenance

UNKNOWN = "unknown"
# Strategies that a machine file asks for, as run.json names them.
_FILES = {"FSDP": "configs/accelerate/fsdp2.yaml", "DEEPSPEED": "configs/accelerate/zero2.yaml"}
_UNSEEN = (
    "After the audit, the images of pre-training contain no test image and no near-duplicate that the audit finds. It "
    "does not find every crop, and of images without fine detail it finds only exact duplicates."
)


def data(comparison: Comparison, origins: Sequence[Provenance]) -> str:
    """The images that were trained, validated and tested on, and those of pre-training."""
    run = comparison.scratch[0]
    config, record = run.config.data, run.record
    per_class = [int((run.labels == i).sum()) for i in range(len(run.class_names))]
    rows = [
        ("source", ", ".join(config.sources)),
        ("training images, with labels", _count(record.get("num_train_images"))),
        ("validation images, for every decision", _count(record.get("num_validation_images"))),
        ("test images, looked at once", _count(len(run.labels))),
        ("classes", f"{len(run.class_names)}: {', '.join(run.class_names)}"),
        ("test images in the smallest and largest class", f"{min(per_class):,} and {max(per_class):,}"),
        ("size of an image", f"{run.config.model.image_size} x {run.config.model.image_size} pixels"),
        (
            "pixels are normalised with",
            f"mean {_numbers(config.image_mean)}, std {_numbers(config.image_std)} (R, G, B)",
        ),
        ("fingerprint of the training images", str(record.get("data_fingerprint", UNKNOWN))),
        ("images of pre-training, without labels", _each(_count(o.record.get("num_train_images")) for o in origins)),
        ("fingerprint of those images", _each(str(o.record.get("data_fingerprint", UNKNOWN)) for o in origins)),
    ]
    return table("The same for all runs; the fingerprint changes with any pixel or label.", ("what", "value"), rows)


def _count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else UNKNOWN


def _each(values: Iterable[str]) -> str:
    """The value of every encoder, once if they agree."""
    return " or ".join(dict.fromkeys(values))


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def leaks(comparison: Comparison, origins: Sequence[Provenance]) -> str:
    """What is known of test images that pre-training has seen, and of labelled images that duplicate test images."""
    html = paragraphs(
        *filter(None, [comparison.leak() or _UNSEEN, *map(_unknown, origins), *_labelled(comparison, origins)])
    )
    head = ("test images of", "images", "with duplicates in pre-training's data", "seen by pre-training")
    for origin in origins:
        if not origin.audit or not origin.audit.tests:
            continue
        rows = [
            (part.source, str(part.num_images), str(part.num_duplicated), str(part.num_seen))
            for part in origin.audit.tests
        ]
        of = f" of {origin.init}" if len(origins) > 1 else ""
        kinds = "exact duplicates among streamed images" if origin.audit.streamed else "exact and near-duplicates"
        done = "were left out of pre-training" if origin.audit.left_out else "were kept"
        html += table(f"The audit before pre-training{of} (audit.json): {kinds}, which {done}", head, rows)
    return html


def _unknown(origin: Provenance) -> str | None:
    """Why nothing is known of an encoder's pre-training."""
    if origin.audit and origin.audit.streamed:
        return f"The images of {origin.init} were streamed: near-duplicates of test images were not searched for."
    return origin.problem or (f"{origin.init} has no audit.json." if origin.audit is None else None)


def _labelled(comparison: Comparison, origins: Sequence[Provenance]) -> list[str]:
    """A sentence where labelled training images duplicate test images: both arms learn from them."""
    sources = comparison.scratch[0].config.data.sources
    for pairs in (origin.audit.pairs for origin in origins if origin.audit):
        own = [
            pair
            for pair in pairs
            if (pair.split, pair.against_split) == ("train", "test") and pair.source == pair.against in sources
        ]
        if own:
            images, tests = len({pair.row for pair in own}), len({pair.against_row for pair in own})
            return [
                f"{images:,} labelled training images are duplicates or near-duplicates of {tests:,} test images. Both "
                "arms learn from them, with their labels: the gain is fair, but both accuracies may be too high."
            ]
    return []


def recipe(comparison: Comparison) -> str:
    """The settings of both arms that may change a result, with those that differ marked."""
    ours, baseline = (dict(arm[0].settings) for arm in comparison.chosen)
    differing = [key for key in ours if ours[key] != baseline[key]]
    rows = [(key, _setting(ours[key]), Cell(_setting(baseline[key]), marked=key in differing)) for key in ours]
    note = f"The arms differ in {', '.join(differing)}, marked with ≠, and in nothing else that may change a result."
    html = paragraphs(note) + table(
        "Settings of the recipe that speaks for each arm", ("setting", PRETRAINED, SCRATCH), rows
    )
    pretraining = [(key, _setting(value)) for key, value in comparison.pretrained[0].pretraining]
    return html + (table("Settings of its pre-training", ("setting", PRETRAINED), pretraining) if pretraining else "")


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def environment(comparison: Comparison, origins: Sequence[Provenance]) -> str:
    """Device, versions, commit and time of every run."""
    records = {f"pre-training of {origin.init}": origin.record for origin in origins if origin.record}
    records |= {str(run.path): run.record for run in comparison.runs}
    head = ("run", "device", "processes", "precision", "parameters", "commit", "start (UTC)", "minutes")
    rows = [
        (
            name,
            str(record.get("device", UNKNOWN)),
            str(record.get("num_processes", UNKNOWN)),
            {"no": "fp32"}.get(precision := str(record.get("mixed_precision", UNKNOWN)), precision),
            _count(record.get("num_parameters")),
            _short(str(record.get("git_commit") or UNKNOWN)),
            str(record.get("start") or UNKNOWN).removesuffix("+00:00"),
            _minutes(record),
        )
        for name, record in records.items()
    ]
    versions = {", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items()) for record in records.values()}
    return table("Where and when each run was made", head, rows) + items(sorted(versions - {""}))


def _short(commit: str) -> str:
    """The first 12 digits, and whether there were changes that no commit has."""
    digits, dash, changed = commit.partition("-")
    return digits[:12] + dash + changed


def _minutes(record: dict[str, Any]) -> str:
    """From the first start to the end; a run that was interrupted counts its pause."""
    try:
        seconds = (datetime.fromisoformat(record["end"]) - datetime.fromisoformat(record["start"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return UNKNOWN
    return f"{seconds / 60:.1f}"


def reproduce(comparison: Comparison, origins: Sequence[Provenance], output_dir: str) -> str:
    """The commands that made all of it, in their order."""
    runs = [_launch(run.record) or f"# {run.path}: its command is not known" for run in comparison.runs]
    first = [command for origin in origins if (command := _launch(origin.record))]
    arms = [arg for name, arm in _by_option(comparison).items() for arg in (name, *(str(run.path) for run in arm))]
    last = shlex.join(["python", "scripts/compare.py", *arms, "--output_dir", output_dir])
    note = "Pre-training, then each run, then this report." if first else "Each run, then this report."
    return paragraphs(f"{note} The same command in the same environment gives the same numbers.") + commands(
        [*first, *runs, last]
    )


def _by_option(comparison: Comparison) -> dict[str, tuple[Run, ...]]:
    return {"--pretrained": comparison.pretrained, "--scratch": comparison.scratch}


def _launch(record: dict[str, Any]) -> str | None:
    """The command of a run, with the precision, processes and strategy that `accelerate launch` had."""
    command, strategy = record.get("command"), str(record.get("strategy", "NO"))
    if not command:
        return None
    words = ["accelerate", "launch"]
    if strategy in _FILES:
        words += ["--config_file", _FILES[strategy]]
    elif strategy != "NO":
        words = [*(["ACCELERATE_USE_CPU=true"] if strategy == "MULTI_CPU" else []), *words, "--multi_gpu"]
    for key, flag in (("mixed_precision", "--mixed_precision"), ("num_processes", "--num_processes")):
        words += [flag, str(record[key])] if record.get(key) else []
    machines = record.get("num_machines", 1)
    where = f" # on each of {machines} machines, with --num_machines, --machine_rank and --main_process_ip"
    return f"{shlex.join(words)} {command}{where if machines > 1 else ''}"
