"""The two ends of a masked autoencoder without needless work: only visible patches go in, no token is put back, and the
last layer computes no token that nobody reads.

Shapes: B images, N patches of an image, V visible and K decoded hidden ones, D width, P patch side, C channels, S image
side. A mask is an order of the patches, int64 (B, N): the first V are visible. `ids_restore` is the inverse order.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEDecoder,
    ViTMAEDecoderOutput,
    ViTMAEEmbeddings,
    ViTMAELayer,
    eager_attention_forward,
)


class VisibleEmbeddings(ViTMAEEmbeddings):
    """Stock's embeddings, with the same weights; only the patches that stay visible are projected."""

    def forward(  # type: ignore[override]  # stock's annotation says Tensor and stock returns three
        self, pixel_values: Tensor, noise: Tensor | None = None, interpolate_pos_encoding: bool | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, C, S, S) to tokens (B, 1 + V, D), mask (B, N), 1 where hidden, and ids_restore (B, N)."""
        check_size(self, pixel_values)
        projection, positions = self.patch_embeddings.projection, self.position_embeddings
        side = self.patch_embeddings.patch_size[0]
        patches = pixel_values.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C·P·P), as the kernel has them
        noise = torch.rand(patches.shape[:2], device=patches.device) if noise is None else noise
        order = noise.argsort(dim=1)
        visible = order[:, : int(order.shape[1] * (1 - self.config.mask_ratio))]
        tokens = F.linear(take(patches, visible), projection.weight.flatten(1), projection.bias)
        tokens = tokens + positions[0, 1:][visible]
        cls = (self.cls_token + positions[:, :1]).expand(len(tokens), -1, -1)
        mask = torch.ones(order.shape, device=order.device).scatter(1, visible, 0.0)
        return torch.cat((cls, tokens), dim=1), mask, order.argsort(dim=1)


class ShuffledDecoder(ViTMAEDecoder):
    """Stock's decoder, with the same weights; tokens stay in the order of the mask, and positions are put in order."""

    def __init__(self, config: ViTMAEConfig, num_patches: int) -> None:
        super().__init__(config, num_patches)
        with torch.random.fork_rng(devices=[]):  # a seed goes on to give the weights that it gives without this layer
            self.decoder_layers[-1] = LastLayer(self.config)

    def forward(
        self, hidden_states: Tensor, ids_restore: Tensor, num_decoded: int | None = None
    ) -> ViTMAEDecoderOutput:
        """The prediction from the encoder's tokens (B, 1 + V, D).

        Args:
            hidden_states: the encoder's tokens.
            ids_restore: (B, N) int64.
            num_decoded: K, how many of the hidden patches are decoded; the rest has no token at all.

        Returns:
            logits (B, N, P²C) of all patches; with `num_decoded`, (B, K, P²C) of the first K hidden ones.
        """
        num_visible = hidden_states.shape[1] - 1
        order = ids_restore.argsort(dim=1)[:, : None if num_decoded is None else num_visible + num_decoded]
        embedded = self.decoder_embed(hidden_states)
        mask_tokens = self.mask_token.expand(len(order), order.shape[1] - num_visible, -1)
        places = F.pad(order + 1, (1, 0))  # the CLS token has place 0
        tokens = torch.cat((embedded, mask_tokens), dim=1) + self.decoder_pos_embed[0][places]
        for layer in self.decoder_layers[:-1]:
            tokens = layer(tokens)
        tokens = self.decoder_layers[-1](tokens, first=1 if num_decoded is None else 1 + num_visible)
        logits = self.decoder_pred(self.decoder_norm(tokens))
        return ViTMAEDecoderOutput(logits=take(logits, ids_restore) if num_decoded is None else logits)


class LastLayer(ViTMAELayer):
    """Stock's layer, with the same weights; computes the tokens that are read, from all of them.

    The others have no query, output projection or MLP here: at 75 % masked, a quarter of the layer but for keys and
    values.
    """

    def forward(self, hidden_states: Tensor, first: int = 0) -> Tensor:  # type: ignore[override]
        """(B, T, D) to (B, T - `first`, D), the tokens from `first` on."""
        attention, normed = self.attention, self.layernorm_before(hidden_states)
        projected = attention.q_proj(normed[:, first:]), attention.k_proj(normed), attention.v_proj(normed)
        query, key, value = (x.unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for x in projected)
        attend = AttentionInterface().get_interface(attention.config._attn_implementation, eager_attention_forward)
        dropout = attention.attention_dropout if self.training else 0.0
        attended, _ = attend(attention, query, key, value, None, dropout=dropout, scaling=attention.scaling)
        tokens = hidden_states[:, first:] + self.dropout(attention.o_proj(attended.flatten(2)))
        return tokens + self.dropout(self.mlp(self.layernorm_after(tokens)))


def take(values: Tensor, index: Tensor) -> Tensor:
    """The patches (B, K, D) of `values` (B, N, D) that `index` (B, K) names."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def check_size(embeddings: ViTMAEEmbeddings, pixel_values: Tensor) -> None:
    """Raises ValueError unless images (B, C, S, S) have the channels and the side that the embeddings take."""
    wanted = (embeddings.patch_embeddings.num_channels, *embeddings.patch_embeddings.image_size)
    if tuple(pixel_values.shape[1:]) != wanted:
        raise ValueError(f"images of shape {tuple(pixel_values.shape[1:])}, the model takes {wanted}")
