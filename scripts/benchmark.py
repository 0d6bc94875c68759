"""Measure how many images per second pre-training prepares, trains on, and does both with; needs no data.

python scripts/benchmark.py --preset configs/pretrain/digits.yaml
python scripts/benchmark.py --preset configs/pretrain/stl10_tiny.yaml --mixed_precision bf16 --output benchmark.json
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mae_hf import cli
from mae_hf.config import BenchmarkConfig, PretrainConfig, require


def main(argv: Sequence[str] | None = None) -> None:
    """Measures as the command line says, prints a table, and writes the numbers where they are wanted."""
    config = cli.parse(BenchmarkConfig, argv, prog="scripts/benchmark.py")
    preset = cli.load(PretrainConfig, config.preset)

    import torch
    from accelerate import Accelerator

    from mae_hf.benchmark import measure, pretraining_work
    from mae_hf.checkpoint import write_text
    from mae_hf.machine import attention_for, use_cpu_well
    from mae_hf.tracking import environment as describe_environment

    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    use_cpu_well(accelerator)
    require(
        accelerator.num_processes == 1,
        f"{accelerator.num_processes} processes: the benchmark measures one, start it with python scripts/benchmark.py",
    )
    if config.output:  # before the work, so that a folder that cannot be made is known at once
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory(prefix="mae_hf-benchmark-") as folder:
        works = pretraining_work(accelerator, preset, Path(folder))
        values = measure(works, preset.train.batch_size, config.rounds, accelerator.device)

    summary = {
        name: {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "rounds": rates}
        for name, rates in values.items()
    }
    environment = describe_environment(accelerator) | {
        "threads": torch.get_num_threads(),
        "attention": attention_for(accelerator),
    }
    print(
        f"preset     {config.preset}, images of {preset.model.image_size}, batches of {preset.train.batch_size}\n"
        f"device     {environment['device']}, {environment['threads']} threads\n"
        f"precision  {environment['mixed_precision']}, {environment['attention']} attention\n\n"
        f"{'images/s':14}{'median':>10}{'min':>10}{'max':>10}   of {config.rounds} rounds"
    )
    for name, row in summary.items():
        print(f"{name:14}{row['median']:10.1f}{row['min']:10.1f}{row['max']:10.1f}")
    if config.output:
        record = {
            "preset": config.preset,
            "config": dict(cli.flatten(preset)),
            **environment,
            "images_per_second": summary,
        }
        write_text(Path(config.output), json.dumps(record, indent=2) + "\n")
        print(f"\nwritten to {config.output}")


if __name__ == "__main__":
    cli.run(main)
