"""The masked autoencoder: stock ViTMAE with right initial weights, the loss of the config, and files that others open.

Shapes: B images, N patches of an image, D width, P patch side, C channels, S image side.
"""

import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEForPreTrainingOutput
from transformers.utils.generic import can_return_tuple

from mae_hf.config.model import MAEConfig
from mae_hf.errors import require
from mae_hf.models.initialization import initialize_decoder, initialize_encoder
from mae_hf.models.loading import LOADED_NAMES, SAFE, check_loaded, opening, quiet_transformers, read_config, saved_name
from mae_hf.models.locate import find_model
from mae_hf.models.norm import use_autocast_norms
from mae_hf.models.visible_first import ShuffledDecoder, VisibleEmbeddings, check_size, take

LOSSES: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "mse": F.mse_loss, "huber": F.huber_loss}
ENCODER_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "qkv_bias"),
)


class MaskedAutoencoder(ViTMAEForPreTraining):
    """`ViTMAEForPreTraining`, initialised as in the paper, with L1, MSE or Huber loss over the hidden patches.

    The loss is named by the config's key `mae_loss`, which stock transformers ignores; without it, it is stock's MSE.
    `mae_decode_ratio` is the part of the hidden patches that a training step decodes (1 without it).
    Both position tables are fixed. What `save_pretrained` writes opens in stock transformers 4 and 5.

    Source: He et al. 2022, arXiv 2111.06377; decoding a part of the hidden patches: VideoMAE v2, arXiv 2303.16727,
    section 3.2, and CrossMAE, arXiv 2401.14391, section 3.3.

    Raises:
        ConfigError: an unknown `mae_loss`.
    """

    def __init__(self, config: ViTMAEConfig) -> None:
        self.loss_kind = getattr(config, "mae_loss", "mse")
        self.decode_ratio = getattr(config, "mae_decode_ratio", 1.0)
        require(self.loss_kind in LOSSES, f"mae_loss {self.loss_kind!r} is unknown: choose one of {', '.join(LOSSES)}")
        super().__init__(config)
        self.vit.embeddings = VisibleEmbeddings(config)
        self.decoder = ShuffledDecoder(config, self.vit.embeddings.patch_embeddings.num_patches)
        use_autocast_norms(self.vit.layers)
        use_autocast_norms(self.decoder.decoder_layers)
        initialize_encoder(self.vit)
        initialize_decoder(self.decoder)
        self._freeze_positions()

    def get_input_embeddings(self) -> nn.Module:
        """Where images come in: what FSDP2 may shard as one, since nothing but its own forward reads its weights."""
        return self.vit.embeddings

    def _freeze_positions(self) -> None:
        self.vit.embeddings.position_embeddings.requires_grad_(False)
        self.decoder.decoder_pos_embed.requires_grad_(False)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, noise: Tensor | None = None, loss_only: bool = False, **kwargs: Any
    ) -> ViTMAEForPreTrainingOutput:
        """Reconstructs the patches that the mask hides.

        Args:
            pixel_values: (B, C, S, S) float, normalised; cast to the dtype of the weights, as ViT does.
            noise: (B, N) float; the patches with the smallest values stay visible. Drawn when left out.
            loss_only: leave out all that the loss does not need, in training also the hidden patches beyond
                `decode_ratio`; nothing but the loss is returned. Masks are random, so those decoded are a random part.
            kwargs: `output_hidden_states`, `output_attentions`, as stock.

        Returns:
            loss () float32; logits (B, N, P²C); mask (B, N), 1 where hidden; ids_restore (B, N).

        Raises:
            ValueError: images of another size than the config's, or noise of another shape than (B, N).
        """
        if kwargs.pop("interpolate_pos_encoding", False):
            raise ValueError("interpolate_pos_encoding: the decoder's positions cannot be resized, resize the images")
        expected = (pixel_values.shape[0], self.vit.embeddings.patch_embeddings.num_patches)
        if noise is not None and tuple(noise.shape) != expected:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, the images need {expected}: a value per patch")
        weights = self.vit.embeddings.patch_embeddings.projection.weight
        encoded = self.vit(pixel_values.to(weights.dtype), noise=noise, **kwargs)
        hidden = encoded.ids_restore.argsort(dim=1)[:, encoded.last_hidden_state.shape[1] - 1 :]
        if loss_only:
            ratio = self.decode_ratio if self.training else 1.0
            hidden = hidden[:, : max(1, round(ratio * hidden.shape[1]))]
            predicted = self.decoder(encoded.last_hidden_state, encoded.ids_restore, hidden.shape[1]).logits
        else:
            logits = self.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
            predicted = take(logits, hidden)
        target = take(self.patchify(pixel_values.float()), hidden)
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        # in float32; the mean over images is that over hidden patches, since every image hides as many
        loss = LOSSES[self.loss_kind](predicted.float(), target)
        if loss_only:
            return ViTMAEForPreTrainingOutput(loss=loss)
        return ViTMAEForPreTrainingOutput(
            loss=loss,
            logits=logits,
            mask=encoded.mask,
            ids_restore=encoded.ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Opens a masked autoencoder, ours or stock (4.x or 5.x layout): quietly, and whole or not at all.

        Args:
            pretrained_model_name_or_path: run folder, model folder or Hub id.
            args, kwargs: as for any transformers model.

        Raises:
            ConfigError: no such model; weights are missing, left over or of another shape; a position table is all
                zero (a stock ViTMAE that transformers 5 trained from scratch) or not finite.
        """
        name = pretrained_model_name_or_path
        fix = "give a whole masked autoencoder, such as the folder of a pre-training run or facebook/vit-mae-base"
        path = find_model(str(name), fix) if name is not None and "subfolder" not in kwargs else name
        wants_info = kwargs.pop("output_loading_info", False)
        # Weights of another shape are left to check_loaded, which names them.
        options = (
            {"key_mapping": LOADED_NAMES}
            | kwargs
            | {"ignore_mismatched_sizes": True, "output_loading_info": True, **SAFE}
        )
        if name is not None and not {"subfolder", "config"} & kwargs.keys():
            read_config(str(name), str(path), fix)
        with opening(str(name), fix):
            loaded: Any = super().from_pretrained(path, *args, **options)
        model, info = loaded
        check_loaded(str(name), model, info, fix)
        model._freeze_positions()
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Writes config and weights so that stock transformers 4 and 5 open them as `ViTMAEForPreTraining`.

        Args:
            save_directory: made if needed.
            is_main_process: whether this process is the one that writes.
            state_dict: weights to write instead of the model's own, by their names in memory.
            push_to_hub: must be false; `push_to_hub` is a method of its own.
            args, kwargs: as for any transformers model.
        """
        if push_to_hub:
            raise ValueError("save_pretrained only writes the folder: call push_to_hub(repo_id) to upload")
        weights = {saved_name(key): value for key, value in (state_dict or self.state_dict()).items()}
        options = kwargs | {"save_original_format": False}
        with quiet_transformers():
            super().save_pretrained(save_directory, is_main_process, weights, False, *args, **options)
        self.config.architectures = [ViTMAEForPreTraining.__name__]  # transformers wrote our class, which others lack
        if is_main_process:
            self.config.save_pretrained(save_directory)


def mae_config(config: MAEConfig) -> ViTMAEConfig:
    """The transformers config of our model section."""
    fields = dict(vars(config))
    fields |= {"mae_loss": fields.pop("loss"), "mae_decode_ratio": fields.pop("decode_ratio"), "layer_norm_eps": 1e-6}
    return ViTMAEConfig(**fields)


def build_mae(config: MAEConfig, attn_implementation: str) -> MaskedAutoencoder:
    """A new masked autoencoder from the global random state; `attn_implementation` reaches the decoder too."""
    return MaskedAutoencoder._from_config(mae_config(config), attn_implementation=attn_implementation)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch over its pixels and channels, (B, N, 1) each, as stock's."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1e-6) ** 0.5


@torch.no_grad()
def reconstruct(
    model: MaskedAutoencoder,
    pixel_values: Tensor,
    noise: Tensor,
    statistics: Literal["target", "visible"] = "target",
) -> tuple[Tensor, Tensor]:
    """The images with their hidden patches as predicted and their visible patches pasted as they are.

    With `norm_pix_loss` the model predicts patches without their mean and contrast, which have to come from elsewhere:
    `target` takes each hidden patch's true ones, so colour and contrast of the picture are given, not predicted;
    `visible` takes, for all hidden patches of an image, the average of its visible patches', and nothing hidden.

    Args:
        pixel_values: (B, C, S, S) float, normalised.
        noise: (B, N) float; the patches with the smallest values stay visible.
        statistics: where mean and contrast come from; without `norm_pix_loss` it changes nothing.

    Returns:
        pixels (B, C, S, S) float32 in the normalised space of `pixel_values`, and mask (B, N), 1 where hidden.
    """
    outputs = model(pixel_values, noise=noise)
    hidden = outputs.mask[..., None]
    target = model.patchify(pixel_values.float())
    prediction = outputs.logits.float()
    if model.config.norm_pix_loss:
        mean, std = patch_statistics(target)
        if statistics == "visible":
            visible = 1 - hidden
            mean, std = ((x * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True) for x in (mean, std))
        prediction = prediction * std + mean
    return model.unpatchify(torch.where(hidden.bool(), prediction, target)), outputs.mask


def encode(model: ViTMAEForPreTraining, pixel_values: Tensor) -> Tensor:
    """Features of whole images, nothing masked and nothing shuffled: what `ViTModel` gives with the same weights.

    Args:
        pixel_values: (B, C, S, S) float, normalised.

    Returns:
        (B, 1 + N, D): the CLS feature, then the patches row by row.
    """
    vit = model.vit
    patch_embeddings, positions = vit.embeddings.patch_embeddings, vit.embeddings.position_embeddings
    check_size(vit.embeddings, pixel_values)
    patches = patch_embeddings(pixel_values.to(patch_embeddings.projection.weight.dtype)) + positions[:, 1:]
    cls = (vit.embeddings.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
    hidden_states = torch.cat((cls, patches), dim=1)
    for layer in vit.layers:
        hidden_states = layer(hidden_states)
    return vit.layernorm(hidden_states)


def encoder_config(config: ViTMAEConfig | ViTConfig, **extra: Any) -> ViTConfig:
    """A clean `ViTConfig` of the encoder that `config` describes: no key of the decoder, the mask or the loss."""
    return ViTConfig(**{key: getattr(config, key) for key in ENCODER_KEYS}, **extra)


@torch.no_grad()
def export_encoder(mae: ViTMAEForPreTraining) -> ViTModel:
    """The encoder as a plain `ViTModel` for `AutoModel`: deterministic, unmasked features.

    `AutoModel` gives every ViT a pooler, and would invent one where the file has none: this one is the identity, so
    that `pooler_output` is the CLS feature itself.
    """
    config, attention = encoder_config(mae.config, pooler_act="linear"), mae.config._attn_implementation
    encoder = ViTModel._from_config(config, attn_implementation=attention, dtype=mae.dtype)
    weights = mae.vit.state_dict()
    weights["pooler.dense.weight"] = torch.eye(mae.config.hidden_size)
    weights["pooler.dense.bias"] = torch.zeros(mae.config.hidden_size)
    encoder.load_state_dict(weights)
    return encoder.to(mae.device).eval()
