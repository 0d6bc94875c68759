"""Experiment: the gain of each optimisation of a training step on a CPU. All variants take turns in one process.

python docs/experiments/levers.py PRESET.yaml no|bf16 [ROUNDS]

The allocator cannot be reset, so it comes last: everything is measured again after `use_cpu_well`.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining

from mae_hf.config import parse
from mae_hf.config.runs import PretrainConfig
from mae_hf.models.mae import build_mae, mae_config
from mae_hf.training.hardware import attention_for, use_cpu_well


def main() -> None:
    """Print images per second (median, minimum, maximum) for the losses, and milliseconds for the optimizers."""
    preset, precision, *rest = sys.argv[1:]
    config, rounds = parse.read_file(PretrainConfig, preset), int(rest[0]) if rest else 7
    accelerator = Accelerator(mixed_precision=precision)
    batch = config.train.batch_size
    pixel_values = torch.randn(batch, 3, config.model.image_size, config.model.image_size)
    noise = torch.rand(batch, config.model.num_patches)

    def stock(attention: str) -> nn.Module:
        return ViTMAEForPreTraining._from_config(mae_config(config.model), attn_implementation=attention)

    ours = attention_for(accelerator)
    models = {
        "stock, sdpa": stock("sdpa"),
        "stock, eager": stock("eager"),
        f"stock, {ours}": stock(ours),
        "mae_hf, sdpa": build_mae(config.model, "sdpa"),
        f"mae_hf, {ours}": build_mae(config.model, ours),
    }

    def step(model: nn.Module) -> None:
        options = {} if type(model) is ViTMAEForPreTraining else {"loss_only": True}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss: Tensor = model(pixel_values, noise=noise, **options).loss
        loss.backward()
        model.zero_grad()

    works: dict[str, Callable[[], None]] = {name: lambda model=model: step(model) for name, model in models.items()}
    for allocator in ("glibc's defaults", "kept memory (use_cpu_well)"):
        seconds = take_turns(works, rounds)
        print(f"{precision}, forward and backward, images/s with {allocator}", flush=True)
        for name, values in seconds.items():
            rates = [batch / value for value in values]
            print(f"  {name:20} {statistics.median(rates):7.1f}  ({min(rates):.1f} to {max(rates):.1f})")
        use_cpu_well(accelerator)

    optimizers = {}
    for name, options in {
        "foreach": {"foreach": True},
        "fused": {"fused": True},
        "one by one": {"foreach": False},
    }.items():
        model = build_mae(config.model, ours)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizers[f"AdamW {name}"] = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], **options
        ).step
    print("milliseconds of an update")
    for name, values in take_turns(optimizers, rounds).items():
        print(f"  {name:20} {1000 * statistics.median(values):7.1f}")


def take_turns(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each work, one value per round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 2):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
