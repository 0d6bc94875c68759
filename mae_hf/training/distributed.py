"""The processes of a run: as many as were asked for, in the way asked for, with a model whole or in shards on them.

`accelerate launch` quietly runs fewer processes, or another strategy, where it cannot run what it was asked for. That
is found out here, before data is loaded. What was tried where: docs/devices.md.
"""

import copy
import importlib.util
import os
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from mae_hf.config.train import FinetuneTrainConfig, Plan, TrainConfig
from mae_hf.errors import require

ON_CPUS = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2"
Model = TypeVar("Model", bound=PreTrainedModel)
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)
_SECONDS_FOR_GLOO = 1.0
_SHARDED = {DistributedType.FSDP: "FSDP", DistributedType.DEEPSPEED: "DEEPSPEED"}


def start_accelerator(
    *, shards: bool = True, timeout_minutes: float = TrainConfig.timeout_minutes, **options: Any
) -> Accelerator:
    """The Accelerator of a script, once it is clear that what was asked for is what runs.

    Args:
        shards: whether the script can work with a model in shards; one that only evaluates cannot.
        timeout_minutes: how long a process waits for the others before it gives them up.
        options: as for `Accelerator`.

    Raises:
        ConfigError: fewer processes run, or another strategy, than was asked for, or one that is not supported.
    """
    check_launch(os.environ)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        cpu=several and not torch.accelerator.is_available(),  # without it, each process would run a run of its own
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
        **options,
    )
    for kind, name in _SHARDED.items():
        require(
            not _is_on(os.environ, f"ACCELERATE_USE_{name}") or accelerator.distributed_type == kind,
            f"{name} was asked for and {accelerator.distributed_type.value} runs, on {accelerator.device.type}: {name} "
            "needs a GPU for each process; without one, leave it out (--multi_gpu)",
        )
    require(
        shards or accelerator.distributed_type not in _SHARDED,
        f"{accelerator.distributed_type.value} shards a model in training, and this script trains none: start it with "
        "--multi_gpu, or on one process",
    )
    return accelerator


def end_processes(accelerator: Accelerator) -> None:
    """Ends the trackers and the group of processes; every process calls it last.

    gloo's threads let go of the tensors of the last collective operations with Python's lock, and the end of the group
    waits for these threads with that same lock in hand (torch 2.13): it would wait for ever. So they come first.
    """
    if accelerator.num_processes > 1:
        time.sleep(_SECONDS_FOR_GLOO)
    accelerator.end_training()


def check_launch(environment: Mapping[str, str]) -> None:
    """Looks for what `accelerate launch` was asked for and does not do.

    Where it starts one process instead of several, it still says where they would meet (MASTER_ADDR), and gives the
    process no number (RANK): that is what `--cpu --num_processes 2` and MULTI_CPU leave behind.

    Args:
        environment: the environment variables of this process.

    Raises:
        ConfigError: one process was started instead of several; Megatron-LM, a `parallelism_config`, FSDP 1, FSDP with
            parameters on the CPU, or DeepSpeed that is not installed.
    """
    ranks = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
    is_launched = "ACCELERATE_MIXED_PRECISION" in environment
    require(
        not (is_launched and "MASTER_ADDR" in environment and not any(rank in environment for rank in ranks)),
        "accelerate launch was asked for several processes and has started one (with --cpu, use_cpu and MULTI_CPU it "
        f"does): for several on CPUs, type {ON_CPUS} ...; for one, --num_processes 1, and unset MASTER_ADDR if you "
        "have set it",
    )
    for variable, name in (("MEGATRON_LM", "Megatron-LM"), ("PARALLELISM_CONFIG", "parallelism_config")):
        require(
            not _is_on(environment, f"ACCELERATE_USE_{variable}"),
            f"{name} is not supported: choose a file of configs/accelerate, such as fsdp2.yaml",
        )
    if _is_on(environment, "ACCELERATE_USE_FSDP"):
        version = environment.get("FSDP_VERSION", "1")
        require(version == "2", f"fsdp_version {version} is not supported: choose 2 (configs/accelerate/fsdp2.yaml)")
        require(
            not _is_on(environment, "FSDP_OFFLOAD_PARAMS"),
            "fsdp_offload_params is not supported: choose false (configs/accelerate/fsdp2.yaml)",
        )
    if _is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        require(
            importlib.util.find_spec("deepspeed") is not None,
            "DeepSpeed is not installed: pip install deepspeed, or choose configs/accelerate/fsdp2.yaml",
        )


def check_shared(accelerator: Accelerator, folder: Path) -> None:
    """Makes sure that the machines of a run see one and the same output folder: checkpoints are written by all of them.

    Raises:
        ConfigError: the main process cannot write there, or what it writes does not reach every machine.
    """
    if accelerator.num_processes == int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return
    parent = folder.absolute().parent
    mark = parent / broadcast_object_list([f".{folder.name}.{uuid.uuid4().hex}"])[0]
    problem = ""
    if accelerator.is_main_process:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            problem = f"{parent} cannot be written to ({error.strerror}): choose another --output_dir"
    problem = broadcast_object_list([problem])[0]
    require(not problem, problem)
    seen = gather_object([mark.exists()])
    if accelerator.is_main_process:
        mark.unlink()
    require(
        all(seen),
        f"{parent} is not one folder on all machines, {seen.count(False)} of {len(seen)} processes do not see what the "
        "main one writes there: choose a place on a shared file system (--output_dir)",
    )


def check_same(accelerator: Accelerator, values: Mapping[str, object], fix: str) -> None:
    """Makes sure that every process has what the main one has: each would train another model, and none would say so.

    Args:
        values: by name; the same names on every process. `data.cache_dir` may be another one on each machine.
        fix: what to do where they differ.

    Raises:
        ConfigError: a process, which is named, has another value.
    """
    main = broadcast_object_list([dict(values)])[0]
    differing = [name for name in values if values[name] != main[name] and name != "data.cache_dir"]
    here = f"on process {accelerator.process_index}"
    found = gather_object([f"{name} ({main[name]}, {here} {values[name]})" for name in differing])
    require(not found, f"the processes of this run do not have the same {', '.join(found[:3])}: {fix}")


def prepare(
    accelerator: Accelerator, model: Model, optimizer: Optimizer, plan: Plan, train: TrainConfig
) -> tuple[nn.Module, Optimizer, Callable[[], Model]]:
    """`accelerator.prepare`, for every strategy that a run may be on.

    Args:
        model: in float32, with its weights.
        optimizer: over the parameters of `model`; it has made no step.

    Returns:
        What trains: the wrapped model and optimizer. And a function that gives the model with all its weights on this
        process, not wrapped, in eval mode: every process must call it, at the same time.

    Raises:
        ConfigError: accumulation or ZeRO-3 with DeepSpeed; an average of weights that are in shards.
    """
    require(
        not (isinstance(train, FinetuneTrainConfig) and train.ema_decay and accelerator.distributed_type in _SHARDED),
        f"ema_decay averages whole weights, and {accelerator.distributed_type.value} shards them: choose --multi_gpu, "
        "or leave the average out (--train.ema_decay 0)",
    )
    if accelerator.distributed_type == DistributedType.FSDP:
        whole = copy.deepcopy(model)
        plugin = accelerator.state.fsdp_plugin
        layers = {type(layer).__name__ for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)}
        plugin.transformer_cls_names_to_wrap = sorted(layers)
        # computing is left to autocast, as without FSDP: its own bf16 would round images, masks' noise and loss, too
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
        prepared, optimizer = accelerator.prepare(model, optimizer)

        def gather() -> Model:
            whole.load_state_dict(get_model_state_dict(prepared, options=StateDictOptions(full_state_dict=True)))
            whole.to(accelerator.device)
            return whole.eval()

        return prepared, optimizer, gather
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _fit_deepspeed(accelerator, plan, train)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    return prepared, optimizer, model.eval


def _fit_deepspeed(accelerator: Accelerator, plan: Plan, train: TrainConfig) -> None:
    """Tells DeepSpeed what it does itself: how many images come at a time, and where gradients are clipped."""
    plugin = accelerator.state.deepspeed_plugin
    require(
        plugin.zero_stage < 3,
        f"zero_stage {plugin.zero_stage} shards the weights, which is not supported with DeepSpeed: choose 2, or "
        "configs/accelerate/fsdp2.yaml",
    )
    require(
        plan.accumulation_steps == 1,
        f"{plan.accumulation_steps} accumulation steps are not supported with DeepSpeed, which makes a step after each "
        "backward pass: leave out --train.per_device_batch_size, or choose configs/accelerate/fsdp2.yaml",
    )
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_clipping": train.max_grad_norm,
    }
    warnings.warn("mae_hf has never been run with DeepSpeed: see docs/devices.md, or choose FSDP2", stacklevel=3)


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1")
