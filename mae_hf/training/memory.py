"""The memory of a run: how much it needs (measured in docs/scaling.md), what is free, and which micro-batch fits."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from torch import nn
from transformers import ViTConfig, ViTModel

from mae_hf.config.model import EncoderConfig, MAEConfig
from mae_hf.config.runs import FinetuneConfig, RunConfig
from mae_hf.config.train import Plan
from mae_hf.data.cores import control_groups
from mae_hf.errors import RunError, lacks_memory, require, warn
from mae_hf.models.io import SHAPE_KEYS
from mae_hf.models.mae import MaskedAutoencoder, mae_config

_FP32 = 4  # bytes
_HALF = 2
_OVERHEAD = 2**28  # bytes that the libraries take while they work, such as for figures and probes
_FRAGMENTED = 1.5  # how much more the activations take than is kept: work space, and freed memory in pieces


@functools.cache
def num_parameters(model: EncoderConfig) -> tuple[int, int]:
    """Return the number of trained parameters of a network without its classifier, and of all its parameters."""
    with torch.device("meta"):  # parameters without memory
        if isinstance(model, MAEConfig):
            network: nn.Module = MaskedAutoencoder(mae_config(model))
        else:
            network = ViTModel(ViTConfig(**{key: getattr(model, key) for key in SHAPE_KEYS}), add_pooling_layer=False)
    parameters = list(network.parameters())
    return sum(each.numel() for each in parameters if each.requires_grad), sum(each.numel() for each in parameters)


def model_bytes(trained: int, stored: int, mixed_precision: str, is_bucketed: bool) -> int:
    """Return the memory of weights, gradients and AdamW's two moments in fp32, and of autocast's half-precision copies.

    Of the `stored` parameters, the `trained` ones have a gradient, which DDP copies if it `is_bucketed`.
    """
    copies = _HALF * stored if mixed_precision != "no" else 0
    return _FP32 * stored + (3 + is_bucketed) * _FP32 * trained + copies


def activation_bytes(model: EncoderConfig, mixed_precision: str, *, keeps_scores: bool = False) -> int:
    """Return the bytes that an image's forward pass keeps for the backward pass.

    With `keeps_scores`, as in bf16 on a CPU, attention keeps a score for each two tokens.
    """
    half = _FP32 if mixed_precision == "no" else _HALF
    values, width = 3 * model.patch_size**2, model.hidden_size
    visible = (model.num_visible if isinstance(model, MAEConfig) else model.num_patches) + 1
    kept = half * (visible - 1) * values  # patches
    kept += model.num_hidden_layers * _layer_bytes(model, "", visible, visible, half, keeps_scores)
    kept += visible * (_FP32 + half) * width  # the norm after the encoder, and what the decoder embeds
    if not isinstance(model, MAEConfig):
        return kept
    decoded = max(1, round(model.decode_ratio * (model.num_patches - model.num_visible)))
    tokens, width = visible + decoded, model.decoder_hidden_size
    kept += (model.decoder_num_hidden_layers - 1) * _layer_bytes(model, "decoder_", tokens, tokens, half, keeps_scores)
    kept += _layer_bytes(model, "decoder_", tokens, decoded, half, keeps_scores)
    return kept + decoded * ((_FP32 + half) * width + _FP32 * values)  # its norm, the predicted patches


def _layer_bytes(model: EncoderConfig, part: str, tokens: int, queries: int, half: int, keeps_scores: bool) -> int:
    """Bytes of a transformer layer: inputs of norms stay in fp32, inputs of products are in half precision."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads")
    width, mlp_width, heads = (getattr(model, part + name) for name in names)
    per_token = _FP32 * width + 3 * half * width + 2 * _FP32  # norm; its output, key, value; mean and deviation
    per_query = _FP32 * width + 3 * half * width + 2 * half * mlp_width + 2 * _FP32
    return int(tokens * per_token + queries * (per_query + heads * (half * tokens if keeps_scores else _FP32)))


def free_memory(device: torch.device, root: Path = Path("/")) -> float:
    """Return the bytes that this process may still take: of its GPU, or its share of the machine and control groups.

    Memory that files occupy counts as free, since the kernel drops them. `root` has the limits of control groups.
    """
    if device.type == "cuda":  # what this process has freed stays in its cache, which counts as used
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = [psutil.virtual_memory().available]
    for group, is_v1 in control_groups("memory", root):
        limit, usage, prefix = ("limit_in_bytes", "usage_in_bytes", "total_") if is_v1 else ("max", "current", "")
        with contextlib.suppress(OSError, ValueError):  # the file is missing, or says "max"
            rest = int((group / f"memory.{limit}").read_text()) - int((group / f"memory.{usage}").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            free.append(rest + sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active")))
    return max(0, min(free)) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def run_bytes(config: RunConfig, plan: Plan, accelerator: Accelerator) -> float:
    """Return an estimate, meant to be too high, of what a process of a run takes besides Python and the libraries."""
    model, precision = config.model, accelerator.mixed_precision
    keeps_scores = (accelerator.device.type, precision) == ("cpu", "bf16")
    trained, stored = num_parameters(model)
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    fixed = model_bytes(trained, stored, precision, plan.num_processes > 1) / (plan.num_processes if is_sharded else 1)
    fixed += _FP32 * stored * (getattr(config.train, "ema_decay", 0) > 0)
    image = 3 * model.image_size**2 * _FP32
    training = plan.micro_batch_size * (activation_bytes(model, precision, keeps_scores=keeps_scores) + 4 * image)
    half, tokens = _FP32 if precision == "no" else _HALF, model.num_patches + 1
    layer = _layer_bytes(model, "", tokens, tokens, half, keeps_scores)
    evaluating = plan.eval_batch_size * (layer + 2 * image)
    return _OVERHEAD + fixed + _FRAGMENTED * max(training, evaluating)


def choose_micro_batch(config: RunConfig, accelerator: Accelerator, recorded: int | None = None) -> tuple[int, str]:
    """Return the size of a run's micro-batches, the same on every process, and the memory that it takes, in words.

    With `auto`, this is the size that the run started with (`recorded`), or the largest that fits into free memory and
    that mixup and cutmix can pair. ConfigError if no size fits.
    """
    train = config.train
    sizes = train.micro_batch_sizes(accelerator.num_processes)
    free = free_memory(accelerator.device)
    if accelerator.device.type == "cuda" and config.data.on_device != "never" and not config.data.streaming:
        free *= 0.75  # the images may take the rest

    def needed(size: int) -> float:
        plan = dataclasses.replace(train, per_device_batch_size=size).plan(train.batch_size, accelerator.num_processes)
        return run_bytes(config, plan, accelerator)

    if train.per_device_batch_size != "auto":
        size = train.per_device_batch_size or sizes[-1]
    elif recorded in sizes:
        size = recorded
    else:
        is_paired = isinstance(config, FinetuneConfig) and (config.augment.mixup or config.augment.cutmix)
        allowed = [size for size in sizes if size % 2 == 0 or size == sizes[-1] or not is_paired]
        fitting = [size for size in allowed if needed(size) <= free]
        size = min(gather_object([max(fitting, default=0)]))
        small = "use a smaller model (--config stl10_tiny), mixed_precision bf16, or several GPUs with FSDP"
        problem = f"a batch of {allowed[0]} images needs about {_gib(needed(allowed[0]))}, and {_gib(free)} are free"
        require(size > 0, f"{problem}: end other programs, {small} (configs/accelerate/fsdp2.yaml)")
    words = f"about {_gib(needed(size))} of {_gib(free)} that are free"
    if needed(size) > free:
        smaller = [other for other in sizes if other < size and needed(other) <= free]
        fix = f"--train.per_device_batch_size {smaller[-1]} fits" if smaller else "use a smaller model"
        warn(f"{size} images at a time may need more memory than this process can take ({words}): {fix}")
    return size, words


@contextlib.contextmanager
def explained_lack(micro_batch_size: int) -> Iterator[None]:
    """Raise `RunError` with the flag that helps in place of the error of an allocator, of a GPU or of the host."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        smaller = max((size for size in range(1, micro_batch_size) if micro_batch_size % size == 0), default=0)
        fix = f"type --train.per_device_batch_size {smaller}" if smaller else "end other programs"
        cause = " ".join(str(error).split())[:200] or "MemoryError"
        raise RunError(f"{micro_batch_size} images at a time do not fit into memory ({cause}): {fix}") from None


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
