"""What a run will take on other machines, on paper: images per second, memory, gradient traffic and hours.

The batch is the preset's, whatever the number of devices: more devices take smaller shares of it, and each sends as
much as before. docs/scaling.md compares these numbers with measured ones and says how far off they are.

P parameters, n devices, B images of the batch on a device, T tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.config import ScalingConfig
from benchmarks.flops import pretraining_gflop
from mae_hf.config.commands import PretrainConfig
from mae_hf.config.model import MAEConfig
from mae_hf.config.train import TrainConfig
from mae_hf.errors import ConfigError, require

NUM_IMAGES = (100_000, 10_000_000, 1_000_000_000)
_FP32 = 4  # bytes
_HALF = 2


@dataclass(frozen=True)
class Estimate:
    """A run on n devices, each with the whole model (DDP) or with an n-th of it (FSDP2).

    Args:
        num_devices: n.
        images_per_second: of all devices together.
        efficiency: that, over n times the images per second of one device.
        step_seconds: of an optimizer step.
        traffic_bytes: what a device sends in a step, of gradients (DDP).
        replicated_bytes: memory of a device, the whole model on each.
        sharded_bytes: memory of a device, weights, gradients and optimizer state split.
        hours: of all epochs of the preset, by the number of images.
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
    """Estimates for 1, 2, 4 and so on devices, those that can share the batch, the last with as many as asked for.

    Args:
        config: the run; its batch is split over the devices, and over accumulation steps as it says.
        mixed_precision: `no` or `bf16`.
        tflops: matrix products that a device does in this precision, in TFLOP/s.

    Raises:
        ConfigError: the devices cannot share the batch.
    """
    config.train.plan(max(NUM_IMAGES), 1)  # what is wrong on one device is wrong in the preset
    shared_by = [num for num in range(1, config.train.batch_size + 1) if _can_share(config.train, num)]
    require(
        scaling.devices in shared_by,
        f"{scaling.devices} devices cannot share the preset's batch_size {config.train.batch_size}"
        f"{f' by {size} at a time' if (size := config.train.per_device_batch_size) else ''}: choose one of "
        f"{', '.join(map(str, shared_by))} (--scaling.devices)",
    )
    gflop = pretraining_gflop(config.model)
    trained, stored = num_parameters(config.model)
    rows: list[Estimate] = []
    powers = {2**power for power in range(scaling.devices.bit_length())}
    for num in sorted(powers.intersection(shared_by) | {scaling.devices}):
        plan = config.train.plan(max(NUM_IMAGES), num)
        computing = config.train.batch_size / num * gflop / (1000 * tflops * scaling.efficiency)
        # a ring: what is summed goes round once, the sum once more, n - 1 of n parts each time
        traffic = 2 * (num - 1) / num * _FP32 * trained
        # gradients are sent while the last micro-batch's backward pass, two thirds of its time, computes others
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


def num_parameters(model: MAEConfig) -> tuple[int, int]:
    """The parameters of a masked autoencoder: those that are trained, and all with the two tables of positions."""
    values, width, decoder = 3 * model.patch_size**2, model.hidden_size, model.decoder_hidden_size
    encoder_layers = model.num_hidden_layers * _layer_parameters(width, model.intermediate_size)
    decoder_layers = model.decoder_num_hidden_layers * _layer_parameters(decoder, model.decoder_intermediate_size)
    encoder = (values + 1) * width + width + encoder_layers + 2 * width
    trained = encoder + (width + 1) * decoder + decoder + decoder_layers + 2 * decoder + (decoder + 1) * values
    return trained, trained + (model.num_patches + 1) * (width + decoder)


def _layer_parameters(width: int, mlp_width: int) -> int:
    """Four projections, two of the MLP, two norms; each with its bias."""
    return 4 * (width + 1) * width + (width + 1) * mlp_width + (mlp_width + 1) * width + 4 * width


def model_bytes(trained: int, stored: int, mixed_precision: str, is_bucketed: bool) -> int:
    """Memory of weights, gradients and AdamW's two moments in fp32, and of autocast's copies in half precision.

    Args:
        trained: parameters with a gradient.
        stored: all parameters.
        is_bucketed: whether gradients are copied into buckets to be sent (DDP).
    """
    copies = _HALF * stored if mixed_precision != "no" else 0
    return _FP32 * stored + (3 + is_bucketed) * _FP32 * trained + copies


def activation_bytes(model: MAEConfig, mixed_precision: str) -> int:
    """What an image's forward pass keeps for the backward pass, in bytes, attention without its scores (sdpa)."""
    visible, hidden = model.num_visible + 1, model.num_patches - model.num_visible
    decoded = max(1, round(model.decode_ratio * hidden))
    values, tokens = 3 * model.patch_size**2, visible + decoded
    half = _FP32 if mixed_precision == "no" else _HALF
    encoder = (visible, model.hidden_size, model.intermediate_size, model.num_attention_heads)
    decoder = (
        tokens,
        model.decoder_hidden_size,
        model.decoder_intermediate_size,
        model.decoder_num_attention_heads,
    )
    kept = half * (visible - 1) * values  # patches
    kept += model.num_hidden_layers * _layer_bytes(*encoder, half=half)
    kept += visible * (_FP32 + half) * model.hidden_size  # the norm after the encoder, and what the decoder embeds
    kept += (model.decoder_num_hidden_layers - 1) * _layer_bytes(*decoder, half=half)
    kept += _layer_bytes(*decoder, half=half, num_queries=decoded)
    kept += decoded * ((_FP32 + half) * model.decoder_hidden_size + _FP32 * values)  # its norm, the predicted patches
    return kept


def _layer_bytes(
    tokens: int, width: int, mlp_width: int, heads: int, *, half: int, num_queries: int | None = None
) -> int:
    """Of a transformer layer: what the norms read stays fp32, what the products read is in half precision."""
    queries = tokens if num_queries is None else num_queries
    of_token = _FP32 * width + 3 * half * width + 2 * _FP32  # norm; its output, key, value; mean and deviation
    of_query = _FP32 * width + 3 * half * width + 2 * half * mlp_width + 2 * _FP32 + heads * _FP32
    return tokens * of_token + queries * of_query


def table(rows: Sequence[Estimate], memory_gib: float) -> str:
    """The estimates for the console; what does not fit into a device's memory has a `!`."""
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
