"""The optimizer: parameter groups with layer-wise decay, and the learning rate of every step.

Only matrices of linear layers and the patch projection are decayed: not biases, norms, positions, nor the CLS and mask
tokens (facebookresearch/mae `util/lr_decay.py`; He et al. 2022, appendix A).
"""

import copy
import math
import re
from typing import Any

import torch
from torch import nn

from mae_hf.config.train import FinetuneTrainConfig, Plan, TrainConfig

_UNDECAYED = ("bias", "cls_token", "mask_token", "position_embeddings", "decoder_pos_embed")


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of a `MaskedAutoencoder` or a `ViTForImageClassification`.

    Each group has an `lr_scale`, by which `set_learning_rate` multiplies the schedule. It is 1 in pre-training, and
    `layer_decay ** distance` in fine-tuning, where the distance is counted in layers below the classifier.
    """
    layer_decay = train.layer_decay if isinstance(train, FinetuneTrainConfig) else 1.0
    num_layers: int = model.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        weight_decay = 0.0 if parameter.ndim == 1 or name.split(".")[-1] in _UNDECAYED else train.weight_decay
        distance = num_layers + 1 if ".embeddings." in name else 0
        if layer := re.match(r"vit\.layers\.(\d+)\.", name):
            distance = num_layers - int(layer[1])
        lr_scale = layer_decay**distance
        group = {"params": [], "weight_decay": weight_decay, "lr_scale": lr_scale, "lr": 0.0}
        groups.setdefault((weight_decay, lr_scale), group)["params"].append(parameter)
    # fused: one kernel for all tensors, which takes a third of the time on a CPU (docs/experiments.md)
    return torch.optim.AdamW(list(groups.values()), betas=(0.9, train.adam_beta2), fused=True)


class WeightAverage:
    """A copy of a model, unwrapped and whole, with the exponential moving average of its weights.

    After step t the average takes 1 - d of the weights, with d = min(decay, (1 + t) / (10 + t)): it soon forgets the
    first steps.

    Source: Polyak & Juditsky 1992; TensorFlow's `ExponentialMovingAverage` warms d up in this way.
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device) -> None:
        self.module = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        self._decay = decay
        self._averages: list[torch.Tensor] = list(self.module.parameters())
        self._weights: list[torch.Tensor] = list(model.parameters())

    def update(self, step: int) -> None:
        """Add the weights after optimizer step `step`, counted from 0, without a device sync."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._weights, 1 - decay)


def learning_rate_at(step: int, plan: Plan, peak: float) -> float:
    """Return the learning rate of optimizer step `step`, from 0: linear warm-up to `peak`, then a cosine to 0.

    Source: Loshchilov & Hutter, arXiv 1608.03983; per step, not per epoch.
    """
    if step < plan.warmup_steps:
        return peak * (step + 1) / plan.warmup_steps
    progress = (step - plan.warmup_steps) / max(1, plan.total_steps - plan.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set each group's learning rate: `learning_rate` times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
