"""The masked autoencoder: stock ViTMAE with the paper's initial weights, more losses, and files that stock opens.

Shapes: B images, N patches of an image, D width, P patch side, C channels, S image side.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTModel
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEForPreTrainingOutput
from transformers.utils.generic import can_return_tuple

from mae_hf.config.model import MAEConfig
from mae_hf.errors import require
from mae_hf.models.initialization import initialize_decoder, initialize_encoder
from mae_hf.models.io import ENCODER_KEYS, SHAPE_KEYS, SavedModel, encoder_config, quiet_transformers
from mae_hf.models.layers import ShuffledDecoder, VisibleEmbeddings, take, use_autocast_norms
from mae_hf.models.locate import AUTOENCODER
from mae_hf.models.origin import load_encoder, open_start, resized_weights

LOSSES: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "mse": F.mse_loss, "huber": F.huber_loss}

# A weight's name in memory -> in files that transformers 4 and 5 both read. Files of 5.x lose the decoder in 4.x.
SAVED_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
# The reverse, for files of 4.x, of 5.x (`decoder_encoder`) and of mae_hf; transformers applies them in this order.
LOADED_NAMES = {r"decoder_encoder\.layer\.": "decoder_layers.", r"encoder\.layer\.": "layers."}
LOADED_NAMES |= {re.escape(file): memory for memory, file in SAVED_NAMES.items()}


class MaskedAutoencoder(ViTMAEForPreTraining):
    """`ViTMAEForPreTraining`, initialised as in the paper, with L1, MSE or Huber loss over the masked patches.

    The config's key `mae_loss` names the loss (default: stock's MSE), `mae_decode_ratio` the part of the masked patches
    that a training step decodes (default 1), and `mae_uniformity` the weight of `uniformity_loss` in it (default 0).
    Stock transformers ignores these keys. Both position tables are frozen.

    Source: He et al. 2022, arXiv 2111.06377; decoding some of the masked patches: VideoMAE v2, arXiv 2303.16727,
    section 3.2, and CrossMAE, arXiv 2401.14391, section 3.3; uniformity: U-MAE, arXiv 2210.08344.
    """

    def __init__(self, config: ViTMAEConfig) -> None:
        self.loss_kind = getattr(config, "mae_loss", "mse")
        self.decode_ratio = getattr(config, "mae_decode_ratio", 1.0)
        self.uniformity = getattr(config, "mae_uniformity", 0.0)
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
        """Return the embeddings, which FSDP2 shards as one unit: only their own forward reads their weights."""
        return self.vit.embeddings

    def _freeze_positions(self) -> None:
        self.vit.embeddings.position_embeddings.requires_grad_(False)
        self.decoder.decoder_pos_embed.requires_grad_(False)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, noise: Tensor | None = None, loss_only: bool = False, **kwargs: Any
    ) -> ViTMAEForPreTrainingOutput:
        """Return loss () float32, logits (B, N, P²C), mask (B, N), 1 where masked, and ids_restore (B, N).

        `pixel_values` (B, C, S, S) float are normalised, and cast to the dtype of the weights, as ViT does. The patches
        with the smallest `noise` (B, N) float stay visible; by default it is random. With `loss_only`, only the loss is
        computed, in training from `decode_ratio` of the masked patches (masks are random, so these are a random part),
        and with the uniformity of the CLS features. `kwargs`: `output_hidden_states`, `output_attentions`, as in stock.
        """
        if kwargs.pop("interpolate_pos_encoding", False):
            raise ValueError("interpolate_pos_encoding: the decoder's positions cannot be resized, resize the images")
        expected = (len(pixel_values), self.vit.embeddings.patch_embeddings.num_patches)
        if noise is not None and noise.shape != expected:  # fewer rows would silently drop images
            raise ValueError(f"noise has shape {tuple(noise.shape)}, the images need {expected}: a value per patch")
        weights = self.vit.embeddings.patch_embeddings.projection.weight
        encoded = self.vit(pixel_values.to(weights.dtype), noise=noise, **kwargs)
        hidden = encoded.ids_restore.argsort(dim=1)[:, encoded.last_hidden_state.shape[1] - 1 :]
        outputs: dict[str, Any] = {}
        if loss_only:
            ratio = self.decode_ratio if self.training else 1.0
            hidden = hidden[:, : max(1, round(ratio * hidden.shape[1]))]
            predicted = self.decoder(encoded.last_hidden_state, encoded.ids_restore, hidden.shape[1]).logits
        else:
            logits = self.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
            predicted = take(logits, hidden)
            outputs = {"logits": logits, **{key: encoded[key] for key in encoded if key != "last_hidden_state"}}
        target = take(self.patchify(pixel_values.float()), hidden)
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        # In float32. All images have the same number of masked patches, so the mean over these is that over images.
        loss = LOSSES[self.loss_kind](predicted.float(), target)
        if loss_only and self.training and self.uniformity:
            loss = loss + self.uniformity * uniformity_loss(encoded.last_hidden_state[:, 0])
        return ViTMAEForPreTrainingOutput(loss=loss, **outputs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Open a masked autoencoder of mae_hf or of stock transformers (4.x or 5.x layout), without output.

        The name is a run folder, a model folder, a Hub id or a `SavedModel`, and the subfolder `autoencoder` is found
        in it; the options are transformers' own. Raises ConfigError as `SavedModel` does.
        """
        subfolder = kwargs.pop("subfolder", AUTOENCODER)
        require(subfolder == AUTOENCODER, f"subfolder {subfolder!r} cannot be opened: leave it out ({AUTOENCODER})")
        fix = "give a whole masked autoencoder, such as the folder of a pre-training run or facebook/vit-mae-base"
        saved = pretrained_model_name_or_path
        if not isinstance(saved, SavedModel):
            saved = SavedModel(str(saved), fix, kwargs.pop("revision", None))
        saved.config()
        model = saved.load(super().from_pretrained, **{"key_mapping": LOADED_NAMES, **kwargs})
        model._freeze_positions()
        return model

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], *, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write config and weights so that stock transformers 4 and 5 open them as `ViTMAEForPreTraining`.

        `state_dict` holds weights by their names in memory. The other options are transformers', without `push_to_hub`.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained only writes the folder: call push_to_hub(repo_id) to upload")
        weights = {}
        for name, value in (state_dict or self.state_dict()).items():
            name = re.sub(r"^vit\.layers\.", "vit.encoder.layer.", name)
            for memory, file in SAVED_NAMES.items():
                name = name.replace(f".{memory}.", f".{file}.")
            weights[name] = value
        with quiet_transformers():
            super().save_pretrained(save_directory, state_dict=weights, **{**kwargs, "save_original_format": False})
        self.config.architectures = [ViTMAEForPreTraining.__name__]  # transformers wrote a class that others lack
        if kwargs.get("is_main_process", True):
            self.config.save_pretrained(save_directory)


def mae_config(config: MAEConfig) -> ViTMAEConfig:
    """Return the transformers config of the config section `model`."""
    fields = {key: value for key, value in vars(config).items() if key not in ("init", "revision")}
    own = {f"mae_{key}": fields.pop(key) for key in ("loss", "decode_ratio", "uniformity")}
    return ViTMAEConfig(**fields, **own, layer_norm_eps=1e-6)


def build_mae(config: MAEConfig, attn_implementation: str) -> MaskedAutoencoder:
    """Return the masked autoencoder that pre-training starts from; ConfigError as in `load_encoder`.

    Its weights are new, from the global random state, or those of the checkpoint `config.init`, which gets a decoder if
    it has none. Position tables are resized to `config.image_size`, and stay frozen, also learned ones of a ViT.
    """
    shape = mae_config(config)
    if config.is_new:
        return MaskedAutoencoder._from_config(shape, attn_implementation=attn_implementation)
    encoder, saved = load_encoder(config, attn_implementation), open_start(config)
    shape.update({key: getattr(encoder.config, key) for key in ENCODER_KEYS if key not in SHAPE_KEYS})
    model = MaskedAutoencoder._from_config(shape, attn_implementation=attn_implementation)
    model.vit.load_state_dict(resized_weights(encoder, "embeddings.position_embeddings", config))
    if saved.has_decoder:
        whole = MaskedAutoencoder.from_pretrained(saved, dtype=torch.float32)
        model.decoder.load_state_dict(resized_weights(whole.decoder, "decoder_pos_embed", config))
    return model


def uniformity_loss(features: Tensor) -> Tensor:
    """Return the mean squared cosine () between the features (B, D) of different images, of all processes together.

    Source: U-MAE, arXiv 2210.08344.
    """
    directions = F.normalize(features.float(), dim=1)
    if distributed.is_initialized():
        directions = torch.cat(all_gather(directions))  # whose gradients are summed over the processes
    num = len(directions)
    return ((directions @ directions.T).square().sum() - num) / (num * (num - 1))  # without each with itself


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch over pixels and channels, (B, N, 1) each, as in stock."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1e-6) ** 0.5


@torch.no_grad()
def reconstruct_pixels(model: MaskedAutoencoder, pixel_values: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images with predicted masked patches and the original visible patches, and the mask.

    Takes images (B, C, S, S) float, normalised, and noise (B, N), whose smallest values stay visible. Returns pixels
    (B, C, S, S) float32, normalised in the same way, and the mask (B, N), 1 where masked. With `norm_pix_loss`, mean
    and contrast of the masked patches are given, not predicted.
    """
    outputs = model(pixel_values, noise=noise)
    target = model.patchify(pixel_values.float())
    prediction = outputs.logits.float()
    if model.config.norm_pix_loss:
        mean, std = patch_statistics(target)
        prediction = prediction * std + mean
    return model.unpatchify(torch.where(outputs.mask[..., None].bool(), prediction, target)), outputs.mask


@torch.no_grad()
def export_encoder(mae: ViTMAEForPreTraining) -> ViTModel:
    """Return the encoder as a plain `ViTModel` for `AutoModel`: deterministic features of whole images.

    `AutoModel` gives every ViT a pooler, with random weights if the file has none. Here the pooler is the identity, so
    `pooler_output` is the CLS feature.
    """
    config, attention = encoder_config(mae.config, pooler_act="linear"), mae.config._attn_implementation
    encoder = ViTModel._from_config(config, attn_implementation=attention, dtype=mae.dtype)
    weights = mae.vit.state_dict()
    weights["pooler.dense.weight"] = torch.eye(mae.config.hidden_size)
    weights["pooler.dense.bias"] = torch.zeros(mae.config.hidden_size)
    encoder.load_state_dict(weights)
    return encoder.to(mae.device).eval()
