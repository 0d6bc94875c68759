"""How images are cropped, flipped, distorted, erased and mixed."""

from dataclasses import dataclass
from typing import Annotated

from mae_hf.config.fields import NotNegative, Range, Rate, Settings, Share


@dataclass(frozen=True)
class CropConfig(Settings):
    """The augmentation of pre-training: random resized crop and flip only (paper, section 4).

    Args:
        crop_scale: minimum and maximum share of the image's area that a random crop keeps.
        flip: mirror half of the images; switch it off where left and right differ in meaning.
    """

    section = "augment"
    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        problem = "has its minimum above its maximum: choose a range such as [0.2, 1.0]"
        self.check("crop_scale", self.crop_scale[0] <= self.crop_scale[1], problem)


@dataclass(frozen=True)
class AugmentConfig(CropConfig):
    """The augmentation and regularisation of fine-tuning.

    Args:
        rand_augment_ops: number of RandAugment operations per image; 0 switches it off.
        rand_augment_magnitude: strength of these operations.
        mixup: alpha of mixup; 0 switches it off. If cutmix is also on, each batch uses one of the two at random.
        cutmix: alpha of cutmix; 0 switches it off.
        label_smoothing: share of the label's weight that is spread over all classes.
        erase_probability: share of the images in which a random box is replaced by noise; 0 switches it off.
    """

    rand_augment_ops: Annotated[int, Range(at_least=0)] = 2
    rand_augment_magnitude: Annotated[float, Range(at_least=0, at_most=10)] = 9.0
    mixup: NotNegative = 0.8
    cutmix: NotNegative = 1.0
    label_smoothing: Rate = 0.1
    erase_probability: Annotated[float, Range(at_least=0, at_most=1)] = 0.25
