"""Fitting a run to the machine it is on: attention kind, cores, memory allocator, compiled layers.

What is computed stays the same, but for the order in which floating-point numbers are rounded.
"""

import ctypes
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mae_hf.config.fields import Choice
from mae_hf.data.cores import num_cores
from mae_hf.errors import require
from mae_hf.models.attention import register_cpu_attention

# The names of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def attention_for(accelerator: Accelerator) -> str:
    """The `attn_implementation` that is fastest where this run runs: ours in bf16 on a CPU, sdpa elsewhere.

    Raises:
        ConfigError: fp16 without a GPU, which Accelerate would quietly run as fp32.
    """
    require(
        accelerator.mixed_precision != "fp16" or accelerator.device.type == "cuda",
        f"mixed_precision fp16 needs a GPU and this run is on {accelerator.device.type}: choose bf16 or no (accelerate "
        "launch --mixed_precision)",
    )
    is_bf16_on_cpu = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    return register_cpu_attention() if is_bf16_on_cpu else "sdpa"


def use_cpu_well(accelerator: Accelerator) -> None:
    """Gives a CPU run the cores it may use, and lets its memory be used again instead of given back.

    Accelerate sets OMP_NUM_THREADS=1 unless `--num_cpu_threads_per_process` says more, and the other cores stay idle.
    glibc takes every large tensor from the kernel and gives it back when it is freed, and the kernel zeroes each page
    anew: 2 to 8 % of a step of a small model (docs/experiments.md).
    """
    if accelerator.device.type != "cpu":
        return
    if torch.get_num_threads() == 1:
        torch.set_num_threads(max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap, too
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # which does not shrink
        libc.mallopt(M_TOP_PAD, 2**26)  # and grows by 64 MiB


def compile_layers(accelerator: Accelerator, model: nn.Module, mode: Choice, loss: Callable[[], Tensor]) -> bool:
    """Compiles the transformer layers of `model` in place, where that is asked for or pays.

    One layer is compiled and its code serves all: 18 s where the whole model takes 70. Weights and their names stay.

    Args:
        accelerator: has prepared the model.
        model: a `MaskedAutoencoder` or a `ViTForImageClassification`, or what wraps it.
        mode: `auto` times a forward and backward pass with and without, and keeps the faster. On a CPU it does not try:
            what compiled layers gain there, 2 %, takes a quarter of an hour to make up for the compilation.
        loss: the loss of a batch.

    Returns:
        Whether the layers are compiled now.
    """
    if mode == "never" or (mode == "auto" and accelerator.device.type == "cpu"):
        return False
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    eager = _median_seconds(accelerator, model, loss) if mode == "auto" else math.inf
    for layer in layers:
        layer.compile()
    if mode == "always":
        return True
    try:
        compiled = _median_seconds(accelerator, model, loss)
    except Exception as error:  # whatever a missing compiler or an old GPU makes of it
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        warnings.warn(f"layers cannot be compiled here ({reason}): switch it off (--train.compile never)", stacklevel=2)
        compiled = math.inf
    if compiled >= eager:
        for layer in layers:
            layer._compiled_call_impl = None  # what `compile` has set: the layer is eager again
    return compiled < eager


def _median_seconds(accelerator: Accelerator, model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Median time of a forward and backward pass after a warm-up, as a mean over the processes: they decide alike."""
    model.train()
    seconds = []
    try:
        for _ in range(8):
            started = time.perf_counter()
            accelerator.backward(loss())
            if accelerator.device.type != "cpu":
                torch.accelerator.synchronize(accelerator.device)
            seconds.append(time.perf_counter() - started)
    finally:
        model.zero_grad()  # also where it failed half-way: the first step must not add to these
    median = torch.tensor(statistics.median(seconds[3:]), device=accelerator.device)
    return float(accelerator.reduce(median, reduction="mean"))
