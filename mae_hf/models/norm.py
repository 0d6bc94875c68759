"""LayerNorm in front of several linear layers, under autocast."""

import torch
from torch import Tensor, nn


class AutocastLayerNorm(nn.LayerNorm):
    """LayerNorm that gives the dtype which autocast is going to ask for.

    LayerNorm computes in the dtype of its input, float32 along the residual. Autocast casts its output once for each
    linear layer that takes it: three times for query, key and value, and three times back. Here it is cast once.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        normed = super().forward(hidden_states)
        device = hidden_states.device.type
        return normed.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else normed


def use_autocast_norms(layers: nn.ModuleList) -> None:
    """Puts `AutocastLayerNorm` where transformer layers have LayerNorms, with the same weights under the same names."""
    for layer in layers:
        for name in ("layernorm_before", "layernorm_after"):
            stock = getattr(layer, name)
            norm = AutocastLayerNorm(stock.normalized_shape, stock.eps)
            norm.weight, norm.bias = stock.weight, stock.bias
            setattr(layer, name, norm)
