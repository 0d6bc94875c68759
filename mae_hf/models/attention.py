"""Attention for CPUs, as one of transformers' attention functions: two batched matrix products and a softmax.

Shapes: B images, H heads, N tokens, D width of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

CPU_ATTENTION = "mae_hf_cpu"


def register_cpu_attention() -> str:
    """Makes `attn_implementation="mae_hf_cpu"` known to transformers and returns the name."""
    AttentionInterface.register(CPU_ATTENTION, cpu_attention)
    return CPU_ATTENTION


def cpu_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Softmax attention, what transformers' `eager` computes with fewer passes over the N x N weights.

    The queries are scaled instead of the scores, and the softmax keeps the dtype (it is computed in float32 inside). On
    a CPU in bf16 this is faster than `eager`, and much faster than `sdpa`, whose backward pass is slow there.

    Args:
        module: the attention layer.
        query: (B, H, N, D) float; `key` and `value` likewise.
        attention_mask: must be None, every token sees every token.
        scaling: factor on the scores.
        dropout: rate at which weights are dropped.

    Returns:
        (B, N, H, D) float, and the weights (B, H, N, N).

    Raises:
        ValueError: an attention mask.
    """
    if attention_mask is not None:
        raise ValueError(f"{CPU_ATTENTION} takes no attention mask: use attn_implementation sdpa or eager")
    weights = torch.bmm((query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).softmax(dim=-1)
    weights = F.dropout(weights, dropout, module.training)
    output = torch.bmm(weights, value.flatten(0, 1)).view(query.shape)
    return output.transpose(1, 2), weights.view(*query.shape[:2], *weights.shape[1:])
