"""The background of a comparison: what is known about leakage, and the commands that made it."""

import shlex

from mae_hf.report.comparison import Comparison
from mae_hf.training.provenance import RunRecord

# Strategies that an Accelerate config asks for, as run.json names them.
_FILES = {"FSDP": "configs/accelerate/fsdp2.yaml", "DEEPSPEED": "configs/accelerate/zero2.yaml"}
_UNSEEN = (
    "After the audit, the images of pre-training contain no test image and no near-duplicate that the audit finds. It "
    "does not find every crop, and of images without fine detail it finds only exact duplicates."
)


def leakage_notes(comparison: Comparison) -> list[str]:
    """Return what is known about test images that pre-training or labelled training has seen, a paragraph each."""
    notes = [comparison.leak() or _UNSEEN]
    for origin in comparison.origins:
        if origin.audit and origin.audit.streamed:
            notes.append(
                f"The images of {origin.init} were streamed, and not searched for near-duplicates of test images."
            )
        elif origin.problem or origin.audit is None:
            notes.append(origin.problem or f"{origin.init} has no audit.json.")
    sources = comparison.runs[0].config.data.sources
    for pairs in (origin.audit.pairs for origin in comparison.origins if origin.audit):
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


def commands(comparison: Comparison, output_dir: str) -> list[str]:
    """Return the command lines that made all of it, in their order."""
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
    if record.strategy in _FILES:
        words += ["--config_file", _FILES[record.strategy]]
    elif record.strategy != "NO":
        words = [*(["ACCELERATE_USE_CPU=true"] if record.strategy == "MULTI_CPU" else []), *words, "--multi_gpu"]
    words += ["--mixed_precision", record.mixed_precision] if record.mixed_precision else []
    words += ["--num_processes", str(record.num_processes)] if record.num_processes else []
    where = f" # on each of {record.num_machines} machines, with --num_machines, --machine_rank and --main_process_ip"
    return f"{shlex.join(words)} {record.command}{where if record.num_machines > 1 else ''}"
