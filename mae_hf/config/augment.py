"""How images are cropped, flipped, distorted, erased and mixed."""

from dataclasses import dataclass

from mae_hf.errors import require

Pair = tuple[float, float]


@dataclass(frozen=True)
class CropConfig:
    """The augmentation of pre-training (paper, section 4): random resized crop and flip, nothing else.

    Args:
        crop_scale: least and greatest part of the image's area that a random crop keeps.
        flip: mirror half of the images left to right; switch it off where left and right differ in meaning.
    """

    crop_scale: Pair = (0.2, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1,
            f"crop_scale {[low, high]} is not a range of areas: choose 0 < least <= greatest <= 1, such as [0.2, 1.0] "
            "(--augment.crop_scale)",
        )


@dataclass(frozen=True)
class AugmentConfig(CropConfig):
    """The augmentation and regularisation of fine-tuning.

    Args:
        rand_augment_ops: operations of RandAugment per image; 0 switches it off.
        rand_augment_magnitude: their strength, 0 to 10.
        mixup: alpha of mixup; 0 switches it off. With cutmix on too, each batch draws one of the two.
        cutmix: alpha of cutmix; 0 switches it off.
        label_smoothing: part of the label's weight that is spread over all classes.
        erase_probability: part of the images in which a random box becomes noise; 0 switches it off.
    """

    rand_augment_ops: int = 2
    rand_augment_magnitude: float = 9.0
    mixup: float = 0.8
    cutmix: float = 1.0
    label_smoothing: float = 0.1
    erase_probability: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.rand_augment_ops >= 0 and 0 <= self.rand_augment_magnitude <= 10,
            f"rand_augment_ops {self.rand_augment_ops}, rand_augment_magnitude {self.rand_augment_magnitude}: choose "
            "0 or more operations of strength 0 to 10 (--augment.rand_augment_ops, --augment.rand_augment_magnitude)",
        )
        require(
            self.mixup >= 0 and self.cutmix >= 0,
            f"mixup {self.mixup}, cutmix {self.cutmix}: choose 0 (off) or a positive alpha (--augment.mixup, "
            "--augment.cutmix)",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing {self.label_smoothing} is not a part below 1: choose 0 or 0.1 "
            "(--augment.label_smoothing)",
        )
        require(
            0 <= self.erase_probability <= 1,
            f"erase_probability {self.erase_probability} is not a part of the images: choose 0 (off) to 1, such as "
            "0.25 (--augment.erase_probability)",
        )
