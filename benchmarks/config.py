"""What a benchmark measures."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mae_hf.config.fields import Count, Positive, Settings, Share, ending, words


@dataclass(frozen=True)
class ScalingConfig(Settings):
    """The devices of `--plan`.

    Args:
        devices: maximum number of devices in the table, which has 1, 2, 4 and so on; it must divide the batch.
        device_tflops: dense matrix multiplication of a device in this precision, in TFLOP/s; null measures this
            machine.
        efficiency: share of `device_tflops` that a step reaches (docs/benchmarks.md lists measured values).
        link_gb_per_second: bandwidth between two devices, in GB/s.
        memory_gib: memory of a device; rows that need more are marked.
    """

    section = "scaling"
    devices: Count = 8
    device_tflops: Positive | None = None
    efficiency: Share = 0.5
    link_gb_per_second: Positive = 25.0
    memory_gib: Positive = 80.0


MEASURES = ("pretrain", "finetune", "features", "compile", "size")


@dataclass(frozen=True)
class BenchmarkConfig(Settings):
    """Measure the throughput of mae_hf and of stock transformers in turns, on generated images.

    Args:
        preset: YAML file of a pre-training run; its model, crops and batch are measured.
        measure: what to measure, such as `pretrain,finetune`. `pretrain`, `finetune` and `features` are compared with
            stock transformers. `compile` compares compiled with eager layers. `size` measures pre-training on 1,000 to
            100,000 images.
        rounds: number of turns of each contender.
        seconds: minimum length of a turn; a turn has at least two steps.
        mixed_precision: mixed precision of mae_hf; `no` is fp32. Stock is measured in fp32, pre-training also in bf16.
        output: a JSON file for the results; by default they are only printed.
        plan: instead of measuring, compute what the preset would need on other machines.
        scaling: those machines.
    """

    preset: str
    measure: Annotated[str, words(*MEASURES)] = "pretrain"
    rounds: Count = 5
    seconds: Positive = 10.0
    mixed_precision: Literal["no", "bf16"] = "no"
    output: Annotated[str, ending(".json")] | None = None
    plan: bool = False
    scaling: ScalingConfig = field(default_factory=ScalingConfig)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures."""
        return tuple(self.measure.split(","))
