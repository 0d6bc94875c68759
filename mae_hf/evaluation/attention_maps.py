"""The attention of an encoder's CLS token over the patches, in the last layer.

Shapes: B images, H heads, N = G² patches in G rows.
"""

import math

import torch
from torch import Tensor
from transformers import ViTModel


@torch.no_grad()
def cls_attention(encoder: ViTModel, pixel_values: Tensor) -> Tensor:
    """Return each head's attention of CLS to each patch, in multiples of an even spread over all tokens.

    Args:
        encoder: in eval mode, opened with `attn_implementation="eager"`: the faster ones give no weights.
        pixel_values: float (B, 3, S, S), normalised.

    Returns:
        float32 (B, H, G, G), patches in their positions; below 1 on average if CLS attends much to itself.

    Raises:
        ValueError: the encoder gives no attention weights, or they are not finite.

    Source: Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers, arXiv 2104.14294, figure 1.
    """
    attentions = encoder(pixel_values, output_attentions=True).attentions
    if not attentions or attentions[-1] is None:
        implementation = encoder.config._attn_implementation
        raise ValueError(f"attention {implementation!r} gives no weights: open the encoder with 'eager'")
    weights = attentions[-1].float()  # (B, H, 1 + N, 1 + N)
    if not weights.isfinite().all():
        raise ValueError("the attention is not finite: the encoder's weights or its inputs are broken")
    num_tokens = weights.shape[-1]
    side = math.isqrt(num_tokens - 1)
    return (weights[:, :, 0, 1:] * num_tokens).unflatten(-1, (side, side))
