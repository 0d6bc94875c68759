"""The settings of the networks."""

import re

import pytest
from refused import check_refused, id_of

from mae_hf.config.model import ClassifierConfig, EncoderConfig, MAEConfig
from mae_hf.errors import ConfigError


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (EncoderConfig, {"patch_size": 10}, "patch_size 10 does not divide image_size 96: choose 2, 3, .. --model.pat"),
        (EncoderConfig, {"patch_size": 0}, "patch_size 0 does not divide image_size 96: choose 2, 3, .. --model.patch"),
        (EncoderConfig, {"image_size": 97}, "image_size 97 cannot be cut .. such as 96 (--model.image_size)"),
        (EncoderConfig, {"hidden_size": 770}, "hidden_size 770 .. choose 768 or 772 (--model.hidden_size)"),
        (EncoderConfig, {"hidden_size": 65_540}, "model.hidden_size is 65540 but must be above 0 and at most 65536"),
        (
            EncoderConfig,
            {"hidden_size": 20, "num_attention_heads": 3},
            "num_attention_heads 3 does not divide hidden_size 20: choose one of 1, 2, 4, 5, 10, 20 (--model.num_",
        ),
        (
            EncoderConfig,
            {"num_attention_heads": 0},
            "num_attention_heads 0 .. one of 1, 2, 3, .. --model.num_attention",
        ),
        (MAEConfig, {"decoder_hidden_size": 6}, "decoder_hidden_size 6 .. choose 4 or 8 (--model.decoder_hidden_size)"),
        (MAEConfig, {"decoder_hidden_size": 2}, "decoder_hidden_size 2 .. choose 4 or 4 (--model.decoder_hidden_size)"),
        (MAEConfig, {"decoder_num_attention_heads": 7}, "decoder_num_attention_heads 7 .. --model.decoder_num_attenti"),
        (MAEConfig, {"mask_ratio": 1.0}, "model.mask_ratio is 1.0 but must be above 0 and below 1, such as 0.75"),
        (MAEConfig, {"mask_ratio": 0.0}, "model.mask_ratio is 0.0 but must be above 0"),
        (MAEConfig, {"mask_ratio": 0.999}, "mask_ratio 0.999 .. 144 patches .. such as 0.75 (--model.mask_ratio)"),
        (MAEConfig, {"decode_ratio": 1.5}, "model.decode_ratio is 1.5 but must be above 0 and at most 1"),
        (ClassifierConfig, {"patch_size": 7}, "patch_size 7 does not divide image_size 96 .. --model.patch_size"),
        (
            ClassifierConfig,
            {"init": "scratch", "revision": "main"},
            "model.revision main needs an encoder of the Hub .. set it to null (--model.revision)",
        ),
    ],
    ids=id_of,
)
def test_a_wrong_value_is_named_with_what_is_allowed_and_the_flag(config_class, fields, message):
    check_refused(config_class, fields, message)


def test_patch_sizes_offered_are_those_that_work():
    with pytest.raises(ConfigError) as caught:
        EncoderConfig(patch_size=10)
    offered = [int(word) for word in re.findall(r"\d+", str(caught.value).split("choose")[1])]
    assert offered == [2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
    assert [EncoderConfig(patch_size=size).patch_size for size in offered] == offered


@pytest.mark.parametrize(
    ("image_size", "patch_size", "mask_ratio", "num_patches", "num_visible"),
    [
        (96, 8, 0.75, 144, 36),
        (96, 16, 0.75, 36, 9),
        (32, 4, 0.75, 64, 16),
        (96, 12, 0.6, 64, 25),
        (224, 16, 0.75, 196, 49),
    ],
)
def test_patches_and_visible_patches(image_size, patch_size, mask_ratio, num_patches, num_visible):
    model = MAEConfig(image_size=image_size, patch_size=patch_size, mask_ratio=mask_ratio)
    assert (model.num_patches, model.num_visible) == (num_patches, num_visible)
