"""An independent masked autoencoder in float64, written from the paper (arXiv 2111.06377), as a reference for tests.

It takes the weights of a model by their names in memory and nothing else from it.
Shapes: B images, N patches, D width, P patch side.
"""

import math

import numpy as np
import torch


def sincos_table(dim: int, grid: int) -> np.ndarray:
    """Return the table of `get_2d_sincos_pos_embed` in the paper's code: column (w) first, CLS row zero."""
    table = np.zeros((1 + grid * grid, dim))
    for row in range(grid):
        for column in range(grid):
            omega = 1.0 / 10000 ** (np.arange(dim // 4) / (dim / 4))
            halves = [np.concatenate((np.sin(place * omega), np.cos(place * omega))) for place in (column, row)]
            table[1 + row * grid + column] = np.concatenate(halves)
    return table


def patches_of(images: torch.Tensor, side: int) -> torch.Tensor:
    """Turn images (B, 3, S, S) into patches (B, N, P·P·3), with the channels of a pixel side by side."""
    grid = images.shape[-1] // side
    cut = [
        images[:, :, r * side : (r + 1) * side, c * side : (c + 1) * side].permute(0, 2, 3, 1).flatten(1)
        for r in range(grid)
        for c in range(grid)
    ]
    return torch.stack(cut, dim=1)


class Reference:
    """The forward pass with given weights, which do not show `heads` and `decoder_heads`."""

    def __init__(self, weights: dict[str, torch.Tensor], heads: int, decoder_heads: int, patch_size: int) -> None:
        self.weights = {name: value.double() for name, value in weights.items()}
        self.heads, self.decoder_heads, self.patch_size = heads, decoder_heads, patch_size

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def block(self, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
        inner, (batch, tokens, dim) = self.norm(f"{name}.layernorm_before", x), x.shape
        q, k, v = (
            self.linear(f"{name}.attention.{part}_proj", inner).view(batch, tokens, heads, -1).transpose(1, 2)
            for part in "qkv"
        )
        mixed = (q @ k.transpose(2, 3) / math.sqrt(dim // heads)).softmax(-1) @ v
        x = x + self.linear(f"{name}.attention.o_proj", mixed.transpose(1, 2).reshape(batch, tokens, dim))
        inner = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.layernorm_after", x))
        return x + self.linear(f"{name}.mlp.fc2", inner * (1 + torch.erf(inner / math.sqrt(2))) / 2)

    def blocks(self, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
        depth = len({key for key in self.weights if key.startswith(name) and key.endswith("fc1.weight")})
        for layer in range(depth):
            x = self.block(f"{name}.{layer}", x, heads)
        return x

    def encode(self, images: torch.Tensor, ids_keep: torch.Tensor) -> torch.Tensor:
        """(B, 1 + V, D) from the patches `ids_keep` (B, V) of each image."""
        table = torch.from_numpy(sincos_table(self.weights["vit.embeddings.cls_token"].shape[-1], self.grid(images)))
        kernel = self.weights["vit.embeddings.patch_embeddings.projection.weight"].permute(0, 2, 3, 1).flatten(1)
        embedded = patches_of(images.double(), self.patch_size) @ kernel.T + table[1:]
        embedded = embedded + self.weights["vit.embeddings.patch_embeddings.projection.bias"]
        visible = torch.stack([tokens[ids] for tokens, ids in zip(embedded, ids_keep, strict=True)])
        cls = self.weights["vit.embeddings.cls_token"].expand(len(images), 1, -1) + table[0]
        return self.norm("vit.layernorm", self.blocks("vit.layers", torch.cat((cls, visible), 1), self.heads))

    def decode(self, latent: torch.Tensor, ids_keep: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """(B, N, P·P·3) predictions of all patches."""
        latent, grid = self.linear("decoder.decoder_embed", latent), self.grid(images)
        tokens = self.weights["decoder.mask_token"].repeat(len(images), 1 + grid * grid, 1)
        tokens[:, 0] = latent[:, 0]
        for image, ids in enumerate(ids_keep):
            tokens[image, 1 + ids] = latent[image, 1:]
        tokens = tokens + torch.from_numpy(sincos_table(tokens.shape[-1], grid))
        tokens = self.blocks("decoder.decoder_layers", tokens, self.decoder_heads)
        return self.linear("decoder.decoder_pred", self.norm("decoder.decoder_norm", tokens))[:, 1:]

    def grid(self, images: torch.Tensor) -> int:
        return images.shape[-1] // self.patch_size

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor, mask_ratio: float, loss: str, norm_pix_loss: bool
    ) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Loss, predictions (B, N, P·P·3) and mask (B, N), 1 where hidden."""
        num_visible = int(noise.shape[1] * (1 - mask_ratio))
        ids_keep = noise.argsort(dim=1)[:, :num_visible]
        predictions = self.decode(self.encode(images, ids_keep), ids_keep, images)
        target = patches_of(images.double(), self.patch_size)
        if norm_pix_loss:
            mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        gap = (predictions - target).abs()
        distance = {"l1": gap, "mse": gap**2, "huber": torch.where(gap < 1, gap**2 / 2, gap - 0.5)}[loss]
        mask = torch.ones(noise.shape).scatter(1, ids_keep, 0.0)
        hidden = [distance[b, n].mean() for b in range(len(images)) for n in range(noise.shape[1]) if mask[b, n]]
        return torch.stack(hidden).mean().item(), predictions, mask
