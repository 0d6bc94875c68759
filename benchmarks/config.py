"""What a benchmark measures."""

from dataclasses import dataclass, field
from typing import Literal

from mae_hf.config.checks import check_above_zero, check_words
from mae_hf.errors import require


@dataclass(frozen=True)
class ScalingConfig:
    """The devices of `--plan`.

    Args:
        devices: most devices of the table, which has 1, 2, 4 and so on; they must be able to share the batch.
        device_tflops: dense matrix products that a device does in this precision, in TFLOP/s; null measures those of
            this machine.
        efficiency: the part of them that a step reaches (docs/benchmarks.md has measured ones).
        link_gb_per_second: what a device can send to another, in GB/s.
        memory_gib: memory of a device; what needs more is marked.
    """

    devices: int = 8
    device_tflops: float | None = None
    efficiency: float = 0.5
    link_gb_per_second: float = 25.0
    memory_gib: float = 80.0

    def __post_init__(self) -> None:
        for name in ("devices", "link_gb_per_second", "memory_gib"):
            check_above_zero(f"scaling.{name}", getattr(self, name))
        if self.device_tflops is not None:
            check_above_zero("scaling.device_tflops", self.device_tflops)
        require(
            0 < self.efficiency <= 1,
            f"efficiency {self.efficiency} is not a part of the peak: choose more than 0, at most 1 "
            "(--scaling.efficiency)",
        )


MEASURES = ("pretrain", "finetune", "features", "compile", "size")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure how many images per second mae_hf and stock transformers work through, in turns, on drawn images.

    Args:
        preset: YAML file of a pre-training run; its model, crops and batch are measured.
        measure: `pretrain`, `finetune` and `features` beside stock transformers; `compile`, compiled layers beside
            eager ones; `size`, 1,000 to 100,000 images. Several as `pretrain,finetune`.
        rounds: turns of each contender.
        seconds: least length of a turn, which has at least two steps.
        mixed_precision: of mae_hf; `no` is fp32. Stock is measured in fp32, pre-training also in bf16.
        output: a JSON file for the numbers; without it they are only printed.
        plan: instead of measuring, compute what the preset would take on other machines.
        scaling: those machines.
    """

    preset: str
    measure: str = "pretrain"
    rounds: int = 5
    seconds: float = 10.0
    mixed_precision: Literal["no", "bf16"] = "no"
    output: str | None = None
    plan: bool = False
    scaling: ScalingConfig = field(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        check_words("measure", self.measures, MEASURES)
        check_above_zero("rounds", self.rounds)
        check_above_zero("seconds", self.seconds)
        require(
            self.output is None or self.output.endswith(".json"),
            f"output {self.output} is not a JSON file: give it the ending .json (--output)",
        )

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures asked for."""
        return tuple(self.measure.split(","))
