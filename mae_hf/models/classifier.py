"""The classifier: stock ViTForImageClassification, with a pre-trained encoder or started from scratch.

Shapes: B images, N patches of an image, D width, C channels, S image side.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from mae_hf.config.model import ClassifierConfig
from mae_hf.models.initialization import initialize_encoder
from mae_hf.models.io import SHAPE_KEYS, encoder_config
from mae_hf.models.layers import use_autocast_norms
from mae_hf.models.origin import load_encoder, resized_weights


def build_classifier(
    config: ClassifierConfig, class_names: Sequence[str], attn_implementation: str, seed: int
) -> ViTForImageClassification:
    """Return a classifier on the CLS feature: the encoder that `config.init` names, and a new, almost zero classifier.

    `scratch` starts the encoder from the same distributions as the masked autoencoder. Otherwise all weights of an
    encoder are taken over, the position table resized to `config.image_size`; ConfigError as in `load_encoder`. The
    position table, frozen in pre-training, is trainable here, as in ViT and in the paper's fine-tuning.

    `class_names` are in the order of the labels. `seed` draws the new weights; the global random state does not change.

    Source: arXiv 2111.06377, appendix A.1; `main_finetune.py` of facebookresearch/mae.
    """
    labels = {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}
    labels["problem_type"] = "single_label_classification"
    source = None if config.is_new else load_encoder(config, attn_implementation)
    shape = {key: getattr(config, key) for key in SHAPE_KEYS}
    encoder = ViTConfig(layer_norm_eps=1e-6, **shape) if source is None else source.config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        whole = encoder_config(encoder, image_size=config.image_size, **labels)
        options = {"attn_implementation": attn_implementation, "dtype": torch.float32}
        model = ViTForImageClassification._from_config(whole, **options)
        if source is None:
            initialize_encoder(model.vit)
        nn.init.trunc_normal_(model.classifier.weight, std=2e-5)
        nn.init.zeros_(model.classifier.bias)
    if source is not None:  # strict: only the classifier may be new
        model.vit.load_state_dict(resized_weights(source, "embeddings.position_embeddings", config))
    set_drop_path(model, config.drop_path)
    use_autocast_norms(model.vit.layers)
    return model


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch of an image with probability `rate`.

    The other branches are scaled up by `1 / (1 - rate)`. The random numbers of `dropping_paths` belong to the image and
    not to the process or micro-batch. Source: arXiv 1603.09382.
    """

    keep_rate: Tensor
    draws: Tensor  # (2, B) in [0, 1): of the attention branch and of the MLP branch, which pass here in turn

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.draws = torch.empty(2, 0)
        self.branch = 0
        # A tensor, because a number would make torch.compile compile every layer anew.
        self.register_buffer("keep_rate", torch.tensor(1 - rate), persistent=False)

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        if not self.training:
            return branch
        draws = self.draws[self.branch]
        self.branch = 1 - self.branch
        keep = (draws < self.keep_rate) / self.keep_rate
        return branch * keep.to(branch.dtype)[:, None, None]


@contextlib.contextmanager
def dropping_paths(drop_paths: Sequence[DropPath], draws: Tensor) -> Iterator[None]:
    """Give one forward pass in training the random numbers that decide which branches it drops.

    `draws` are float32 (B, 2L) uniform in [0, 1): two per image for each of the L `drop_paths`, in the order of layers.
    They cannot travel through `forward`, since stock layers call their dropout without arguments.
    """
    by_layer = draws.T.reshape(len(drop_paths), 2, len(draws))
    for drop_path, of_layer in zip(drop_paths, by_layer, strict=True):
        drop_path.draws, drop_path.branch = of_layer, 0
    try:
        yield
    finally:
        for drop_path in drop_paths:  # a pass without draws is an error, not a repetition
            drop_path.draws = torch.empty(2, 0)


def set_drop_path(model: ViTForImageClassification, rate: float) -> None:
    """Give the layers stochastic depth, rising linearly from 0 in the first layer to `rate` in the last.

    transformers has none for ViT. `DropPath`, without weights, replaces `ViTLayer.dropout`, through which both branches
    go before they are added to the residual.
    """
    layers = model.vit.layers
    for layer, layer_rate in zip(layers, torch.linspace(0, rate, len(layers)).tolist(), strict=True):
        if not hasattr(layer, "dropout"):
            raise RuntimeError("drop_path replaces ViTLayer.dropout, which this version of transformers does not have")
        layer.dropout = DropPath(layer_rate) if layer_rate > 0 else nn.Identity()
