"""Initial weights as in the paper's code, for the encoder of both stages and for the decoder.

They are set after construction, because transformers 5 leaves both position tables of a new ViTMAE zero and frozen, and
draws the other weights from other distributions (docs/stock_vit_mae.md).

Shapes: D width, C channels, P patch side.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mae_hf.models.positions import sincos_positions

FUSED = ("q_proj", "k_proj", "v_proj")


@torch.no_grad()
def initialize_encoder(vit: Any) -> None:
    """Initialise a `ViTMAEModel` or a `ViTModel` in place; both stages start from the same distributions.

    Linear layers and the patch projection are Xavier-uniform. Biases are zero; only the projection keeps the default of
    `torch.nn.Conv2d`. LayerNorms are the identity. The CLS token is N(0, 0.02).

    Source: `initialize_weights` in models_mae.py of facebookresearch/mae.
    """
    embeddings = vit.embeddings
    projection = embeddings.patch_embeddings.projection
    _initialize_layers(vit)
    nn.init.xavier_uniform_(projection.weight.flatten(1))  # as a Linear layer: (D, C·P·P)
    bound = 1 / math.sqrt(projection.weight[0].numel())
    nn.init.uniform_(projection.bias, -bound, bound)
    nn.init.normal_(embeddings.cls_token, std=0.02)
    _copy_positions(embeddings.position_embeddings)


@torch.no_grad()
def initialize_decoder(decoder: Any) -> None:
    """Initialise a `ViTMAEDecoder` in place, like the encoder's layers, with a mask token from N(0, 0.02)."""
    _initialize_layers(decoder)
    nn.init.normal_(decoder.mask_token, std=0.02)
    _copy_positions(decoder.decoder_pos_embed)


def _copy_positions(table: Tensor) -> None:
    num_patches = table.shape[1] - 1
    table.copy_(sincos_positions(table.shape[2], math.isqrt(num_patches)))


def _initialize_layers(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            # The paper's code has q, k and v in one (D, 3D) Linear, whose Xavier bound is sqrt(6 / 4D).
            gain = math.sqrt(0.5) if name.endswith(FUSED) else 1.0
            nn.init.xavier_uniform_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
