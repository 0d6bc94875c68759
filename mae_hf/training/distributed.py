"""The processes of a run and the model on them: whole (one process, DDP) or in shards (FSDP2).

If a machine cannot run the requested strategy, `accelerate launch` silently starts fewer processes or a different one.
The checks of this module report that as ConfigError before any data is loaded. docs/devices.md lists what was tested.
"""

import contextlib
import copy
import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from mae_hf.config.train import TrainConfig
from mae_hf.errors import require
from mae_hf.training.hardware import use_cpu_well
from mae_hf.training.optim import WeightAverage

Model = TypeVar("Model", bound=PreTrainedModel)
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


def start_accelerator(
    *, shards: bool = True, alone: str = "", timeout_minutes: float = TrainConfig.timeout_minutes, **options: Any
) -> Accelerator:
    """Return `Accelerator(**options)`, after checking that it runs what the launch command asked for.

    A rank waits `timeout_minutes` for its peers before it fails. Commands that only evaluate cannot use `shards`.
    `alone` is the name of a script that runs as one process.
    """
    check_launch()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = several and not torch.accelerator.is_available()  # otherwise each process would run a separate run
    group = InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[group], **options)
    kind = accelerator.distributed_type
    is_sharded, asked = kind == DistributedType.FSDP, parse_flag_from_env("ACCELERATE_USE_FSDP")
    problem = f"FSDP was asked for, but {kind.value} runs on {accelerator.device.type}"
    require(is_sharded or not asked, f"{problem}: without a GPU for each process, use --multi_gpu")
    problem = "this command does not train, and only training uses FSDP"
    require(shards or not is_sharded, f"{problem}: start it with --multi_gpu, or on one process")
    problem = f"{alone} runs as one process: start it with --num_processes 1"
    require(accelerator.num_processes == 1 or not alone, problem)
    use_cpu_well(accelerator)
    return accelerator


def end_processes(accelerator: Accelerator) -> None:
    """Close the trackers and the process group. Every process calls it last."""
    if accelerator.num_processes > 1:  # torch 2.13 may wait for gloo's threads while it holds the lock that they need
        time.sleep(1.0)
    accelerator.end_training()


def check_launch() -> None:
    """Check that `accelerate launch` started the requested processes, and that mae_hf supports their strategy."""
    # `--cpu --num_processes 2` and MULTI_CPU start one process, with the address of several, but without a rank
    is_launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    has_rank = any(name.endswith("RANK") for name in os.environ)
    problem = "accelerate launch was asked for several processes but started one (--cpu, use_cpu and MULTI_CPU do that)"
    several = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 ..."
    one = "For one process, type --num_processes 1, and unset MASTER_ADDR if you have set it"
    require(has_rank or not is_launched, f"{problem}. For several processes on CPUs, type {several} {one}")
    fsdp, version = parse_flag_from_env("ACCELERATE_USE_FSDP"), os.environ.get("FSDP_VERSION", "1")
    unsupported = {
        "DeepSpeed": parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"),
        "Megatron-LM": parse_flag_from_env("ACCELERATE_USE_MEGATRON_LM"),
        "parallelism_config": parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"),
        f"fsdp_version {version}": fsdp and version != "2",
        "fsdp_offload_params": fsdp and parse_flag_from_env("FSDP_OFFLOAD_PARAMS"),
    }
    for name, is_asked in unsupported.items():
        require(not is_asked, f"{name} is not supported: choose a file of configs/accelerate, such as fsdp2.yaml")


def check_shared(accelerator: Accelerator, folder: Path) -> None:
    """Check that all machines of a run share the output folder, since every rank writes checkpoints into it."""
    if accelerator.num_processes == int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return
    parent, name = folder.absolute().parent, ""
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            with contextlib.suppress(OSError):  # `lock_folder` reports a folder that cannot be written
                parent.mkdir(parents=True, exist_ok=True)
                name = Path(stack.enter_context(NamedTemporaryFile(prefix=f".{folder.name}.", dir=parent)).name).name
        name = broadcast_object_list([name])[0]
        seen = gather_object([not name or (parent / name).exists()])  # where this process would write
    problem = f"{seen.count(False)} of {len(seen)} processes do not see what the main process writes there"
    fix = "choose a folder on a shared file system (--output_dir)"
    require(all(seen), f"the machines do not share {parent}: {problem}; {fix}")


def check_same(accelerator: Accelerator, values: Mapping[str, object], fix: str) -> None:
    """Check that every process has the values of the main one, by the same names; `data.cache_dir` may differ.

    ConfigError, which ends in `fix`, names up to three that differ.
    """
    main = broadcast_object_list([dict(values)])[0]
    differing = [name for name in values if values[name] != main[name] and name != "data.cache_dir"]
    here = f"on process {accelerator.process_index}"
    found = gather_object([f"{name} ({main[name]}, {here} {values[name]})" for name in differing])
    require(not found, f"the processes of this run do not have the same {', '.join(found[:3])}: {fix}")


def prepare(
    accelerator: Accelerator, model: Model, optimizer: Optimizer, average: WeightAverage | None = None
) -> tuple[nn.Module, Optimizer, Callable[[], Model | None]]:
    """Return model and optimizer, wrapped for the strategy of this run, and `whole()`, which every process must call.

    `whole` returns the unwrapped model with all its weights, in eval mode. A sharded model is gathered on the main
    process, until the caller drops it; the others get None. Checkpoints also hold the `average` of the weights, where a
    run keeps one; such a model cannot be sharded.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        if average is not None:
            accelerator.register_for_checkpointing(average.module)
        prepared, optimizer = accelerator.prepare(model, optimizer)
        return prepared, optimizer, model.eval

    fix = "choose --multi_gpu, or turn the average off (--train.ema_decay 0)"
    require(average is None, f"ema_decay averages whole weights, but FSDP shards them: {fix}")
    # a copy without weights, for the main process to fill: sharding changes the modules of `model` itself
    empty = {id(tensor): nn.Parameter(tensor.to("meta"), tensor.requires_grad) for tensor in model.parameters()}
    hollow = copy.deepcopy(model, empty)
    plugin = accelerator.state.fsdp_plugin
    layers = {type(layer).__name__ for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)}
    plugin.transformer_cls_names_to_wrap = sorted(layers)
    # autocast decides the precision, as without FSDP; FSDP's own bf16 would also round images, mask noise and loss
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    prepared, optimizer = accelerator.prepare(model, optimizer)

    def gather() -> Model | None:
        weights = accelerator.get_state_dict(prepared)
        if not accelerator.is_main_process:
            return None
        whole = copy.deepcopy(hollow)
        whole.load_state_dict(weights, assign=True)
        return whole.to(accelerator.device).eval()

    return prepared, optimizer, gather
