"""Initial weights as in the paper's code, for both stages, and the check that a model uses its position tables.

They are set after construction, because transformers 5 leaves both position tables of a new ViTMAE zero and frozen, and
draws the other weights from other distributions (docs/stock_vit_mae.md).

Shapes: D width, C channels, P patch side, N patches of an image.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTMAEForPreTraining

from mae_hf.errors import RunError


@torch.no_grad()
def initialize_encoder(vit: Any) -> None:
    """Initialise a `ViTMAEModel` or a `ViTModel` in place; both stages start from the same distributions.

    Linear layers and the patch projection are Xavier-uniform, and the CLS token is N(0, 0.02). Biases are zero; only
    that of the projection is as in `torch.nn.Conv2d`. Source: `initialize_weights` of facebookresearch/mae.
    """
    embeddings = vit.embeddings
    projection = embeddings.patch_embeddings.projection
    _initialize_layers(vit, embeddings.position_embeddings)
    nn.init.xavier_uniform_(projection.weight.flatten(1))  # as a Linear layer: (D, C·P·P)
    bound = 1 / math.sqrt(projection.weight[0].numel())
    nn.init.uniform_(projection.bias, -bound, bound)
    nn.init.normal_(embeddings.cls_token, std=0.02)


@torch.no_grad()
def initialize_decoder(decoder: Any) -> None:
    """Initialise a `ViTMAEDecoder` in place, like the encoder's layers, with a mask token from N(0, 0.02)."""
    _initialize_layers(decoder, decoder.decoder_pos_embed)
    nn.init.normal_(decoder.mask_token, std=0.02)


def _initialize_layers(module: nn.Module, table: Tensor) -> None:
    table.copy_(sincos_positions(table.shape[2], math.isqrt(table.shape[1] - 1)))
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            # The paper's code has q, k and v in one (D, 3D) Linear, whose Xavier bound is sqrt(6 / 4D).
            gain = math.sqrt(0.5) if name.endswith(("q_proj", "k_proj", "v_proj")) else 1.0
            nn.init.xavier_uniform_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def sincos_positions(dim: int, grid_size: int) -> Tensor:
    """Return the fixed 2-d sine-cosine position table, (1 + grid_size², dim) float32; its first row (CLS) is zero.

    As in the published weights, the first half of a row encodes the column of the patch, and the second half its row.
    Each half holds sines, then cosines, of `dim / 4` frequencies.
    Source: arXiv 2111.06377, appendix A; `get_2d_sincos_pos_embed` of facebookresearch/mae.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)
    columns, rows = axis.repeat(grid_size, 1), axis.repeat_interleave(grid_size, dim=0)
    patches = torch.cat((columns, rows), dim=1)
    return torch.cat((torch.zeros_like(patches[:1]), patches)).float()


def resize_positions(table: Tensor, grid_size: int) -> Tensor:
    """Return a position table (1, 1 + N, D) for images of `grid_size`² patches; the row of CLS stays.

    Sine-cosine rows are computed for the new grid. Learned rows are interpolated bicubically in two dimensions, as
    `ViTModel` does with `interpolate_pos_encoding`.
    """
    side = math.isqrt(table.shape[1] - 1)
    if side == grid_size:
        return table
    if is_sincos(table):
        patches = sincos_positions(table.shape[2], grid_size)[None, 1:].to(table)
    else:
        grid = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        patches = F.interpolate(grid, (grid_size, grid_size), mode="bicubic").flatten(2).transpose(1, 2)
    return torch.cat((table[:, :1], patches), dim=1)


def is_sincos(table: Tensor) -> bool:
    """Return whether a position table (1, 1 + N, D) has sine-cosine rows for the patches, up to bf16's rounding."""
    fixed = sincos_positions(table.shape[2] // 4 * 4, math.isqrt(table.shape[1] - 1)).to(table)
    return table.shape[1:] == fixed.shape and torch.allclose(table[0, 1:], fixed[1:], rtol=0, atol=0.01)


def tells_patches_apart(table: Tensor) -> bool:
    """Return whether a position table (1, 1 + N, D) is finite, and has different rows for the patches."""
    rows = table.detach()[0, 1:].float()
    difference = float((rows - rows[0]).abs().max())
    return math.isfinite(difference) and (difference > 1e-4 or len(rows) == 1)


def check_positions(model: ViTMAEForPreTraining) -> None:
    """Raise RunError for a model that does not know where a patch is. Every run does this before step 0."""
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        if not tells_patches_apart(model.get_parameter(name)):
            problem = f"the model does not know where a patch is: the rows of {name} are equal or not finite"
            raise RunError(f"{problem}: fill it as build_mae does, or start from other weights (--model.init)")
