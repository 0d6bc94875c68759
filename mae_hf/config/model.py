"""The shapes of the networks, and the loss of pre-training."""

from dataclasses import dataclass
from typing import Literal

from mae_hf.config.checks import check_above_zero
from mae_hf.errors import require

MAX_SIZE = 65_536  # of an image's side, a width, a number of layers


@dataclass(frozen=True)
class EncoderConfig:
    """The Vision Transformer that both stages share.

    Args:
        image_size: side of the square input in pixels; images of other sizes are resized and cropped to it.
        patch_size: side of a patch in pixels; must divide `image_size`.
        hidden_size: width D of the encoder.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: attention heads of the encoder; must divide `hidden_size`.
        intermediate_size: width of the encoder's MLPs.
    """

    image_size: int = 96
    patch_size: int = 8
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072

    def __post_init__(self) -> None:
        for name in ("image_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
            check_above_zero(f"model.{name}", getattr(self, name))
            require(
                getattr(self, name) <= MAX_SIZE,
                f"{name} {getattr(self, name)} is above {MAX_SIZE}: choose a smaller one (--model.{name})",
            )
        divisors = [p for p in range(2, self.image_size // 2 + 1) if self.image_size % p == 0]
        require(
            len(divisors) > 0,
            f"image_size {self.image_size} cannot be cut into patches: choose a multiple of 8, such as 96 "
            "(--model.image_size)",
        )
        require(
            self.patch_size in divisors,
            f"patch_size {self.patch_size} does not divide image_size {self.image_size}: choose "
            f"{', '.join(map(str, divisors))} (--model.patch_size)",
        )
        check_width("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)

    @property
    def num_patches(self) -> int:
        """N = (H / P)², the patches of an image."""
        return (self.image_size // self.patch_size) ** 2


def check_width(width_name: str, width: int, heads_name: str, heads: int) -> None:
    require(
        width % 4 == 0,
        f"{width_name} {width} is not a multiple of 4: the 2-d sine-cosine positions need sin and cos for two axes, "
        f"choose {max(4, width - width % 4)} or {width + 4 - width % 4} (--model.{width_name})",
    )
    allowed = [h for h in range(1, 33) if width % h == 0]
    require(
        heads in allowed,
        f"{heads_name} {heads} does not divide {width_name} {width}: choose one of {', '.join(map(str, allowed))} "
        f"(--model.{heads_name})",
    )


@dataclass(frozen=True)
class MAEConfig(EncoderConfig):
    """The masked autoencoder: the shared encoder, a lighter decoder, and the loss.

    Args:
        decoder_hidden_size: width of the decoder.
        decoder_num_hidden_layers: number of decoder layers.
        decoder_num_attention_heads: attention heads of the decoder; must divide `decoder_hidden_size`.
        decoder_intermediate_size: width of the decoder's MLPs.
        mask_ratio: part of the patches that is hidden from the encoder.
        loss: distance between prediction and pixels over the hidden patches: `l1`, `mse` or `huber` (delta 1).
        norm_pix_loss: predict each patch's pixels normalised by that patch's own mean and variance.
        decode_ratio: part of the hidden patches that a training step decodes; below 1 it is faster, and held-out losses
            still count all of them.
    """

    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float = 0.75
    loss: Literal["l1", "mse", "huber"] = "l1"
    norm_pix_loss: bool = False
    decode_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_intermediate_size"):
            check_above_zero(f"model.{name}", getattr(self, name))
        check_width(
            "decoder_hidden_size",
            self.decoder_hidden_size,
            "decoder_num_attention_heads",
            self.decoder_num_attention_heads,
        )
        require(
            0 <= self.mask_ratio <= 1 and 1 <= self.num_visible < self.num_patches,
            f"mask_ratio {self.mask_ratio} does not leave at least one of the {self.num_patches} patches visible and "
            "one hidden: choose a value such as 0.75 (--model.mask_ratio)",
        )
        require(
            0 < self.decode_ratio <= 1,
            f"decode_ratio {self.decode_ratio} is not above 0 and at most 1: choose 1 to decode all hidden patches in "
            "a step, 0.5 for half of them (--model.decode_ratio)",
        )

    @property
    def num_visible(self) -> int:
        """Patches the encoder sees; truncated exactly as transformers truncates."""
        return int(self.num_patches * (1 - self.mask_ratio))


@dataclass(frozen=True)
class ClassifierConfig(EncoderConfig):
    """The classifier: the shared encoder and where its weights come from.

    Args:
        init: folder or Hub id of a pre-trained encoder (a run folder will do), or `scratch` for the baseline.
        drop_path: rate of stochastic depth in the last layer, rising linearly from 0 in the first.
    """

    init: str = "runs/pretrain/stl10_base"
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.drop_path < 1,
            f"drop_path {self.drop_path} is not a probability below 1: choose 0 to switch it off, or 0.1 "
            "(--model.drop_path)",
        )
