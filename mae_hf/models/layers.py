"""Parts of the two models, with stock's weights under stock's names, that compute less than stock.

Only visible patches are embedded, tokens are never put back in order, the last decoder layer computes only the tokens
that are read, LayerNorms cast once, and CPUs have an attention function.

Shapes: B images, N patches of an image, V visible and K decoded masked ones, T tokens, D width, H heads, P patch side,
C channels, S image side. A mask is an order of the patches, int64 (B, N): the first V are visible. `ids_restore` is the
inverse order.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, ViTMAEConfig
from transformers.models.vit_mae import modeling_vit_mae as stock

CPU_ATTENTION = "mae_hf_cpu"  # an `attn_implementation` of transformers, once this module is imported


class VisibleEmbeddings(stock.ViTMAEEmbeddings):
    """Stock's embeddings with the same weights; only visible patches are projected."""

    def forward(  # type: ignore[override]  # stock's annotation says Tensor and stock returns three
        self, pixel_values: Tensor, noise: Tensor | None = None, interpolate_pos_encoding: bool | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turn images (B, C, S, S) into tokens (B, 1 + V, D), mask (B, N), 1 where masked, and ids_restore (B, N)."""
        wanted = (self.patch_embeddings.num_channels, *self.patch_embeddings.image_size)
        if tuple(pixel_values.shape[1:]) != wanted:
            raise ValueError(f"images of shape {tuple(pixel_values.shape[1:])}, the model takes {wanted}")
        projection, positions = self.patch_embeddings.projection, self.position_embeddings
        side = self.patch_embeddings.patch_size[0]
        patches = pixel_values.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        # (B, N, C·P·P), in the order of the kernel
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        noise = torch.rand(patches.shape[:2], device=patches.device) if noise is None else noise
        order = noise.argsort(dim=1)
        visible = order[:, : int(order.shape[1] * (1 - self.config.mask_ratio))]
        tokens = F.linear(take(patches, visible), projection.weight.flatten(1), projection.bias)
        tokens = tokens + positions[0, 1:][visible]
        cls = (self.cls_token + positions[:, :1]).expand(len(tokens), -1, -1)
        mask = torch.ones(order.shape, device=order.device).scatter(1, visible, 0.0)
        return torch.cat((cls, tokens), dim=1), mask, order.argsort(dim=1)


class ShuffledDecoder(stock.ViTMAEDecoder):
    """Stock's decoder with the same weights; tokens stay in the order of the mask, and positions follow that order."""

    def __init__(self, config: ViTMAEConfig, num_patches: int) -> None:
        super().__init__(config, num_patches)
        # another forward on the same weights: building a layer would draw from the seed
        self.decoder_layers[-1].__class__ = LastLayer

    def forward(
        self, hidden_states: Tensor, ids_restore: Tensor, num_decoded: int | None = None
    ) -> stock.ViTMAEDecoderOutput:
        """Return logits (B, N, P²C) of all patches from the encoder's tokens (B, 1 + V, D).

        With `num_decoded`, K, only the first K masked patches get a token, and the logits are theirs, (B, K, P²C).
        """
        num_visible = hidden_states.shape[1] - 1
        order = ids_restore.argsort(dim=1)[:, : None if num_decoded is None else num_visible + num_decoded]
        embedded = self.decoder_embed(hidden_states)
        mask_tokens = self.mask_token.expand(len(order), order.shape[1] - num_visible, -1)
        rows = F.pad(order + 1, (1, 0))  # of the position table; row 0 belongs to the CLS token
        tokens = torch.cat((embedded, mask_tokens), dim=1) + self.decoder_pos_embed[0][rows]
        for layer in self.decoder_layers[:-1]:
            tokens = layer(tokens)
        tokens = self.decoder_layers[-1](tokens, first=1 if num_decoded is None else 1 + num_visible)
        logits = self.decoder_pred(self.decoder_norm(tokens))
        return stock.ViTMAEDecoderOutput(logits=take(logits, ids_restore) if num_decoded is None else logits)


class LastLayer(stock.ViTMAELayer):
    """Stock's layer with the same weights; computes only the tokens that are read, from the keys and values of all."""

    def forward(self, hidden_states: Tensor, first: int = 0) -> Tensor:  # type: ignore[override]
        """Turn tokens (B, T, D) into (B, T - `first`, D), the tokens from `first` on."""
        attention, normed = self.attention, self.layernorm_before(hidden_states)
        projected = attention.q_proj(normed[:, first:]), attention.k_proj(normed), attention.v_proj(normed)
        query, key, value = (x.unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for x in projected)
        kind = attention.config._attn_implementation
        attend = AttentionInterface().get_interface(kind, stock.eager_attention_forward)
        dropout = attention.attention_dropout if self.training else 0.0
        attended, _ = attend(attention, query, key, value, None, dropout=dropout, scaling=attention.scaling)
        tokens = hidden_states[:, first:] + self.dropout(attention.o_proj(attended.flatten(2)))
        return tokens + self.dropout(self.mlp(self.layernorm_after(tokens)))


def take(values: Tensor, index: Tensor) -> Tensor:
    """Return the patches (B, K, D) of `values` (B, N, D) at `index` (B, K)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


class AutocastLayerNorm(nn.LayerNorm):
    """LayerNorm whose output has the dtype of autocast.

    It is cast once. Autocast would cast the float32 output again for each of query, key and value, also backwards.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise tokens (B, T, D)."""
        normed = super().forward(hidden_states)
        device = hidden_states.device.type
        return normed.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else normed


def use_autocast_norms(layers: nn.ModuleList) -> None:
    """Replace the LayerNorms of transformer layers by `AutocastLayerNorm`, with the same weights and names."""
    for layer in layers:
        layer.layernorm_before.__class__ = layer.layernorm_after.__class__ = AutocastLayerNorm


def cpu_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float, dropout: float = 0.0, **kwargs: object
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute softmax attention as transformers' `eager` does, with fewer passes over the T x T weights.

    It scales the queries instead of the scores, and the softmax keeps the dtype (internally it uses float32). On a CPU
    in bf16 this is faster than `eager`, and much faster than `sdpa`, whose backward pass is slow there.
    `query`, `key` and `value` are (B, H, T, D) float, D the width of a head. Returns (B, T, H, D) float, and the
    weights (B, H, T, T).
    """
    weights = torch.bmm((query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).softmax(dim=-1)
    weights = F.dropout(weights, dropout, module.training)
    output = torch.bmm(weights, value.flatten(0, 1)).view(query.shape)
    return output.transpose(1, 2), weights.view(*query.shape[:2], *weights.shape[1:])


AttentionInterface.register(CPU_ATTENTION, cpu_attention)
