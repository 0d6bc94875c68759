"""The attention of CLS: recomputed by hand from queries and keys, in its places, and clear where there is none."""

import pytest
import torch
from transformers import ViTConfig, ViTModel

from mae_hf.evaluation.attention_maps import cls_attention

SHAPE = {"image_size": 12, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def encoder(attention: str = "eager") -> ViTModel:
    """A small encoder whose attention is far from even."""
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**SHAPE, intermediate_size=16), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    model.set_attn_implementation(attention)
    return model


def test_it_is_the_softmax_of_query_times_key_of_the_last_layer():
    model, pixel_values = encoder(), torch.randn(3, 3, 12, 12)
    inputs = {}
    last = model.layers[-1].attention
    for name in ("q_proj", "k_proj"):
        layer = getattr(last, name)
        layer.register_forward_hook(lambda _, __, output, name=name: inputs.update({name: output}))
    found = cls_attention(model, pixel_values)
    query, key = (inputs[name].view(3, 10, 2, 4).transpose(1, 2) for name in ("q_proj", "k_proj"))
    weights = (query @ key.transpose(2, 3) / 4**0.5).softmax(dim=-1)
    expected = 10 * weights[:, :, 0, 1:].reshape(3, 2, 3, 3)  # 10 tokens: 1 is an even share
    assert found.shape == (3, 2, 3, 3) and found.std() > 0.1
    torch.testing.assert_close(found, expected)


def test_weights_that_cannot_be_read_are_named():
    with pytest.raises(ValueError, match="'sdpa' gives no weights: open the encoder with 'eager'"):
        cls_attention(encoder("sdpa"), torch.zeros(1, 3, 12, 12))


def test_broken_weights_are_named():
    model = encoder()
    with torch.no_grad():
        model.layers[-1].attention.q_proj.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        cls_attention(model, torch.zeros(1, 3, 12, 12))
