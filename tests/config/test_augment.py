"""The settings of the augmentation."""

from refused import check_refused

from mae_hf.config.augment import AugmentConfig, CropConfig


def test_a_crop_scale_with_its_minimum_above_its_maximum_is_refused():
    message = "augment.crop_scale [0.9, 0.5] .. a range such as [0.2, 1.0] (--augment.crop_scale)"
    check_refused(CropConfig, {"crop_scale": (0.9, 0.5)}, message)
    check_refused(AugmentConfig, {"crop_scale": (0.9, 0.5)}, message)


def test_everything_can_be_switched_off():
    off = {"rand_augment_ops": 0, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "erase_probability": 0.0}
    assert AugmentConfig(**off, flip=False, crop_scale=(1.0, 1.0)).mixup == 0
    for name in off:
        check_refused(AugmentConfig, {name: -1}, f"augment.{name} is -1 but must be at least 0")
    check_refused(AugmentConfig, {"rand_augment_magnitude": 11.0}, "augment.rand_augment_magnitude is 11.0 .. 10")
    check_refused(AugmentConfig, {"erase_probability": 1.1}, "augment.erase_probability is 1.1 .. at most 1")
