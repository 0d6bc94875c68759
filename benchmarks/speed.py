"""Measure the throughput of mae_hf and of stock transformers in turns, on generated images.

python -m benchmarks.speed --preset configs/pretrain/digits.yaml
python -m benchmarks.speed --preset configs/benchmark/tiny8.yaml --mixed_precision bf16 \
    --measure pretrain,finetune,features,compile,size --output benchmark.json
python -m benchmarks.speed --preset configs/pretrain/stl10_base.yaml --mixed_precision bf16 --plan \
    --scaling.devices 64 --scaling.device_tflops 500
"""

import dataclasses
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.config import BenchmarkConfig
from mae_hf.commands import exits
from mae_hf.config import parse
from mae_hf.config.runs import PretrainConfig
from mae_hf.errors import require


def main() -> None:
    """Run the measures of the command line, print a table for each, and write the numbers to `--output`."""
    config = parse.read_command(BenchmarkConfig, sys.argv[1:], prog="benchmarks/speed.py")
    preset = parse.read_file(PretrainConfig, config.preset)
    if config.plan:
        print_plan(config, preset)
        return
    launched = os.environ.keys() & {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "WORLD_SIZE"}
    require(
        not launched,
        f"{', '.join(sorted(launched))}: these launcher settings affect stock and mae_hf differently. Start with "
        "python -m benchmarks.speed (--mixed_precision bf16)",
    )

    import torch
    from accelerate import Accelerator

    from benchmarks import drawn
    from benchmarks.measures import Setup, contenders_of
    from benchmarks.table import summarize, table
    from benchmarks.turns import take_turns
    from mae_hf.files import write_json
    from mae_hf.training.hardware import use_cpu_well
    from mae_hf.training.provenance import environment as describe_environment

    require(
        torch.cuda.device_count() < 2,
        f"{torch.cuda.device_count()} GPUs are visible but the benchmark measures one: set CUDA_VISIBLE_DEVICES=0",
    )
    accelerator, num_threads = Accelerator(mixed_precision=config.mixed_precision), torch.get_num_threads()
    use_cpu_well(accelerator)
    require(
        torch.get_num_threads() == num_threads,
        f"stock uses 1 thread but mae_hf {torch.get_num_threads()}: unset OMP_NUM_THREADS, or run on one core "
        "(taskset -c 0 python -m benchmarks.speed ...)",
    )
    if config.output:  # first, so that a folder that cannot be created fails at once
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    environment = describe_environment(accelerator)
    print(
        f"preset     {config.preset}, images of {preset.model.image_size}, batches of {preset.train.batch_size}\n"
        f"device     {environment['device']}, {num_threads} threads\n"
        f"precision  {config.mixed_precision} for mae_hf\n"
        f"turns      {config.rounds} of at least {config.seconds:g} s each; medians, and ratios of medians"
    )

    measures = {}
    with tempfile.TemporaryDirectory(prefix="mae_hf-benchmark-") as name:
        folder = Path(name)
        drawn.draw(folder, preset.model.image_size)
        setup = Setup(dataclasses.replace(preset, output_dir=name), folder, config.mixed_precision)
        for measure in config.measures:
            contenders = contenders_of(measure, setup)
            works = {name: contender.work for name, contender in contenders.items()}
            measures[measure] = summarize(contenders, take_turns(works, config.rounds, config.seconds))
            print(f"\n{measure}\n{table(measures[measure])}", flush=True)

    if config.output:
        record = {
            **dataclasses.asdict(config),
            "config": parse.flatten(preset),
            **environment,
            "threads": num_threads,
            "measures": measures,
        }
        write_json(Path(config.output), record)
        print(f"\nwritten to {config.output}")


def print_plan(config: BenchmarkConfig, preset: PretrainConfig) -> None:
    """Print what the preset needs on the machines of `--scaling`."""
    from benchmarks.plan import estimate, table

    tflops, origin = config.scaling.device_tflops, "as given"
    if tflops is None:
        from benchmarks.flops import peak_tflops
        from benchmarks.measures import DTYPES

        tflops, origin = peak_tflops(DTYPES["fp32" if config.mixed_precision == "no" else "bf16"]), "measured here"
    scaling = config.scaling
    rows = estimate(preset, config.mixed_precision, scaling, tflops)
    print(
        f"preset     {config.preset}, batches of {preset.train.batch_size}, {preset.train.epochs:g} epochs\n"
        f"a device   {tflops:.3g} TFLOP/s of matrix products ({origin}), {scaling.efficiency:.0%} of them in a step, "
        f"{scaling.link_gb_per_second:g} GB/s to the next\n\n{table(rows, scaling.memory_gib)}"
    )


if __name__ == "__main__":
    exits.run(main)
