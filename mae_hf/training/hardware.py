"""Fit a run to its machine: attention kind, CPU threads, memory allocator, compiled layers.

The results stay the same, except for the order in which floating-point numbers are rounded.
"""

import ctypes
import importlib.util
import os
import platform

import torch
from accelerate import Accelerator
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mae_hf.config.fields import Switch
from mae_hf.data.cores import num_cores
from mae_hf.errors import require, warn
from mae_hf.models.layers import CPU_ATTENTION


def attention_for(accelerator: Accelerator) -> str:
    """Return the fastest `attn_implementation` for this run: our own for bf16 on a CPU, otherwise sdpa.

    ConfigError for fp16 without a GPU, which Accelerate would silently run as fp32. Warns of bf16 on a CPU without
    instructions for it, where a step takes three times as long as in fp32 (docs/troubleshooting.md).
    """
    device, precision = accelerator.device.type, accelerator.mixed_precision
    problem = f"mixed_precision fp16 needs a GPU, but this run is on {device}: choose bf16 or no"
    require(precision != "fp16" or device == "cuda", f"{problem} (accelerate launch --mixed_precision)")
    is_slow = (device, precision) == ("cpu", "bf16") and torch.cpu.get_capabilities().get("avx512_bf16") is False
    if is_slow and accelerator.is_main_process:  # other CPUs than x86 do not have the key
        warn("this CPU has no bf16 instructions (avx512_bf16), fp32 is faster: leave out --mixed_precision bf16")
    return CPU_ATTENTION if (device, precision) == ("cpu", "bf16") else "sdpa"


def use_cpu_well(accelerator: Accelerator) -> None:
    """Let a CPU run use all its cores and keep the memory that it frees. Does nothing on a GPU.

    Accelerate sets OMP_NUM_THREADS=1 without `--num_cpu_threads_per_process`. glibc gets every large tensor anew from
    the kernel, filled with zeros, which costs 2 to 8 % of a step of a small model (docs/experiments.md).
    """
    if accelerator.device.type != "cpu":
        return
    if torch.get_num_threads() == 1:
        torch.set_num_threads(max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: take large blocks from the heap, too
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
        libc.mallopt(-2, 2**26)  # M_TOP_PAD: grow it by 64 MiB at a time


def free_unused() -> None:
    """Give unused pages of the heap back to the kernel. `use_cpu_well` keeps them, and unequal ones add up."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def compile_layers(accelerator: Accelerator, model: nn.Module, mode: Switch) -> bool:
    """Compile the transformer layers of `model` in place, and return whether it did.

    All layers share the code of one: that takes 18 s instead of 70 for the whole model. Mode `auto` compiles on a GPU
    with Triton, where layers that cannot be compiled run as they are; on a CPU, the gain is 2 %.
    """
    can_gain = accelerator.device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if mode == "never" or (mode == "auto" and not can_gain):
        return False
    torch._dynamo.config.suppress_errors = mode == "auto"
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()
    return True
