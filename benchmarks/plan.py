"""Estimate a run on other machines: images per second, memory, gradient traffic and hours.

The global batch stays the same. With more devices, each gets a smaller share of the batch, but sends as many gradients
as before. docs/scaling.md compares these estimates with measurements.

P parameters, n devices, B images of the batch on a device, T tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.config import ScalingConfig
from benchmarks.flops import pretraining_gflop
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import TrainConfig
from mae_hf.errors import ConfigError, require
from mae_hf.training.memory import activation_bytes, model_bytes, num_parameters

NUM_IMAGES = (100_000, 10_000_000, 1_000_000_000)
_FP32 = 4  # bytes


@dataclass(frozen=True)
class Estimate:
    """A run on n devices, each with the whole model (DDP) or 1/n of it (FSDP2).

    Args:
        num_devices: n.
        images_per_second: throughput of all devices together.
        efficiency: this throughput divided by n times the throughput of one device.
        step_seconds: duration of an optimizer step.
        traffic_bytes: gradients that a device sends in a step (DDP).
        replicated_bytes: memory of a device with the whole model.
        sharded_bytes: memory of a device with sharded weights, gradients and optimizer state.
        hours: duration of all epochs of the preset, by the number of images.
    """

    num_devices: int
    images_per_second: float
    efficiency: float
    step_seconds: float
    traffic_bytes: float
    replicated_bytes: float
    sharded_bytes: float
    hours: dict[int, float]


def estimate(config: PretrainConfig, mixed_precision: str, scaling: ScalingConfig, tflops: float) -> list[Estimate]:
    """Return estimates for 1, 2, 4, ... devices that can share the batch, up to the number of `scaling`.

    Args:
        config: the run; its batch is split over devices and accumulation steps.
        mixed_precision: `no` or `bf16`.
        scaling: the devices.
        tflops: speed of a device at matrix products in this precision, in TFLOP/s.

    Raises:
        ConfigError: the devices cannot share the batch.
    """
    config.train.plan(max(NUM_IMAGES), 1)  # an error here is an error of the preset
    shared_by = [num for num in range(1, config.train.batch_size + 1) if _can_share(config.train, num)]
    size = config.train.per_device_batch_size
    require(
        scaling.devices in shared_by,
        f"{scaling.devices} devices cannot share the preset's batch_size {config.train.batch_size}"
        f"{f' by {size} at a time' if isinstance(size, int) else ''}: choose one of "
        f"{', '.join(map(str, shared_by))} (--scaling.devices)",
    )
    gflop = pretraining_gflop(config.model)
    trained, stored = num_parameters(config.model)
    rows: list[Estimate] = []
    powers = {2**power for power in range(scaling.devices.bit_length())}
    for num in sorted(powers.intersection(shared_by) | {scaling.devices}):
        plan = config.train.plan(max(NUM_IMAGES), num)
        computing = config.train.batch_size / num * gflop / (1000 * tflops * scaling.efficiency)
        # ring all-reduce: the parts go round once to be summed and once as sums, n - 1 of n parts each time
        traffic = 2 * (num - 1) / num * _FP32 * trained
        # gradients are sent during the backward pass of the last micro-batch, two thirds of its time
        sending = traffic / (1e9 * scaling.link_gb_per_second)
        step = computing + max(0.0, sending - 2 / 3 * computing / plan.accumulation_steps)
        images_per_second = config.train.batch_size / step
        activations = plan.micro_batch_size * activation_bytes(config.model, mixed_precision)
        rows.append(
            Estimate(
                num_devices=num,
                images_per_second=images_per_second,
                efficiency=images_per_second / (num * rows[0].images_per_second) if rows else 1.0,
                step_seconds=step,
                traffic_bytes=traffic,
                replicated_bytes=model_bytes(trained, stored, mixed_precision, num > 1) + activations,
                sharded_bytes=model_bytes(trained, stored, mixed_precision, False) / num + activations,
                hours={n: config.train.epochs * n / images_per_second / 3600 for n in NUM_IMAGES},
            )
        )
    return rows


def _can_share(train: TrainConfig, num_devices: int) -> bool:
    try:
        train.plan(max(NUM_IMAGES), num_devices)
    except ConfigError:
        return False
    return True


def table(rows: Sequence[Estimate], memory_gib: float) -> str:
    """Return the estimates as a table. A `!` marks what does not fit into a device's memory."""
    hours = "".join(f"{'hours, ' + _short(num):>14}" for num in NUM_IMAGES)
    lines = [f"{'devices':>7}{'images/s':>11}{'of linear':>11}{'step':>10}{'sent':>10}{'DDP':>12}{'FSDP2':>12}{hours}"]
    for row in rows:
        memory = "".join(
            f"{f'{size / 2**30:.1f} GiB' + ('!' if size > memory_gib * 2**30 else ''):>12}"
            for size in (row.replicated_bytes, row.sharded_bytes)
        )
        spent = "".join(f"{row.hours[num]:>14,.1f}" for num in NUM_IMAGES)
        lines.append(
            f"{row.num_devices:>7}{row.images_per_second:>11,.0f}{row.efficiency:>11.0%}"
            f"{f'{1000 * row.step_seconds:,.0f} ms':>10}{f'{row.traffic_bytes / 1e6:,.0f} MB':>10}{memory}{spent}"
        )
    return "\n".join(lines)


def _short(number: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number // size} {letter}"
    return str(number)
