"""The shapes of the networks, and the loss of pre-training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mae_hf.config.fields import FromInit, NotNegative, Range, Rate, Settings, Share

MAX_SIZE = 65_536  # of an image's side, a width, a number of layers
Size = Annotated[int, Range(above=0, at_most=MAX_SIZE)]


@dataclass(frozen=True)
class EncoderConfig(Settings):
    """The Vision Transformer that both stages share.

    Args:
        image_size: side of the square input in pixels, to which all images are resized (`data.resize`). Here and
            below, null takes the value of the model that `init` names.
        patch_size: side of a patch in pixels; must divide `image_size`.
        hidden_size: width D of the encoder.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: attention heads of the encoder; must divide `hidden_size`.
        intermediate_size: width of the encoder's MLPs.
    """

    section = "model"
    image_size: FromInit[Size] = 96
    patch_size: FromInit[int] = 8
    hidden_size: FromInit[Size] = 768
    num_hidden_layers: FromInit[Size] = 12
    num_attention_heads: FromInit[int] = 12
    intermediate_size: FromInit[Size] = 3072

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None:
            divisors = [p for p in range(2, self.image_size // 2 + 1) if self.image_size % p == 0]
            self.check("image_size", bool(divisors), "cannot be cut into patches: choose a multiple of 8, such as 96")
            problem = f"does not divide image_size {self.image_size}: choose {', '.join(map(str, divisors))}"
            self.check("patch_size", self.patch_size is None or self.patch_size in divisors, problem)
        for prefix in ("", "decoder_"):
            width, heads = (getattr(self, f"{prefix}{key}", None) for key in ("hidden_size", "num_attention_heads"))
            if width is not None and heads is not None:
                fix = f"choose {max(4, width - width % 4)} or {width + 4 - width % 4}"
                problem = "is not a multiple of 4, which the 2-d sine-cosine positions need"
                self.check(f"{prefix}hidden_size", width % 4 == 0, f"{problem}: {fix}")
                allowed = [h for h in range(1, 33) if width % h == 0]
                problem = f"does not divide {prefix}hidden_size {width}: choose one of {', '.join(map(str, allowed))}"
                self.check(f"{prefix}num_attention_heads", heads in allowed, problem)

    @property
    def num_patches(self) -> int:
        """N = (H / P)², the patches of an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class StartConfig(EncoderConfig):
    """An encoder, and where its first weights come from. Settings that are null come from there, too.

    Args:
        init: run folder, model folder or Hub id of a masked autoencoder or an encoder; for random weights, `paper` in
            pre-training and `scratch` in fine-tuning.
        revision: branch, tag or commit of that model on the Hub.
    """

    new = "paper"  # the `init` of random weights
    init: str = new
    revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        problem = f"needs an encoder of the Hub, and model.init is {self.init}: set it to null"
        self.check("revision", self.revision is None or not self.is_new, problem)

    @property
    def is_new(self) -> bool:
        """Whether the weights are random, so that no checkpoint is read."""
        return self.init == self.new


@dataclass(frozen=True)
class MAEConfig(StartConfig):
    """The masked autoencoder: the shared encoder, a lighter decoder, and the loss.

    Args:
        decoder_hidden_size: width of the decoder.
        decoder_num_hidden_layers: number of decoder layers.
        decoder_num_attention_heads: attention heads of the decoder; must divide `decoder_hidden_size`.
        decoder_intermediate_size: width of the decoder's MLPs.
        mask_ratio: share of the patches that are masked, so that the encoder does not see them.
        loss: distance between predicted and real pixels of the masked patches: `l1`, `mse` or `huber` (delta 1).
        norm_pix_loss: predict the pixels of each patch normalised by the mean and variance of that patch.
        decode_ratio: share of the masked patches that a step decodes: fewer are faster. Held-out losses count all.
        uniformity: weight of a second term of the training loss, such as 0.01, which spreads the CLS features: the mean
            squared cosine between two images of the batch (U-MAE, arXiv 2210.08344). 0 leaves it out.
    """

    decoder_hidden_size: FromInit[Size] = 512
    decoder_num_hidden_layers: FromInit[Size] = 4
    decoder_num_attention_heads: FromInit[int] = 16
    decoder_intermediate_size: FromInit[Size] = 2048
    mask_ratio: Annotated[float, Range(above=0, below=1)] = 0.75
    loss: FromInit[Literal["l1", "mse", "huber"]] = "l1"
    norm_pix_loss: FromInit[bool] = False
    decode_ratio: Share = 1.0
    uniformity: NotNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and self.patch_size is not None:
            problem = f"does not leave one of {self.num_patches} patches visible and one masked: choose one such as"
            self.check("mask_ratio", 1 <= self.num_visible < self.num_patches, f"{problem} 0.75")

    @property
    def num_visible(self) -> int:
        """The number of patches that the encoder sees, truncated exactly as in transformers."""
        return int(self.num_patches * (1 - self.mask_ratio))


@dataclass(frozen=True)
class ClassifierConfig(StartConfig):
    """The classifier: the shared encoder, and where its weights come from.

    Args:
        drop_path: rate of stochastic depth in the last layer; it rises linearly from 0 in the first layer.
        head: what the new classifier starts from: `zero`, weights that are almost zero, or `probe`, the linear probe of
            the encoder's CLS feature (LP-FT, arXiv 2202.10054), which helps with few labels.
    """

    new = "scratch"
    init: str = "runs/pretrain/stl10_base"
    drop_path: Rate = 0.1
    head: Literal["zero", "probe"] = "zero"
