"""The attention function for CPUs, compared with the formula in float64 and with transformers."""

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from mae_hf.models.layers import CPU_ATTENTION, cpu_attention


def qkv(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 7, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_output_weights_and_gradients_equal_the_formula(dtype, tolerance):
    found, wanted = qkv(dtype), [x.detach().double().requires_grad_() for x in qkv(dtype)]
    output, weights = cpu_attention(nn.Identity(), *found, None, scaling=0.3)
    assert output.dtype == dtype

    query, key, value = wanted
    scores = 0.3 * torch.einsum("bhnd,bhmd->bhnm", query, key)
    expected_weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    expected = torch.einsum("bhnm,bhmd->bnhd", expected_weights, value)
    torch.testing.assert_close(weights.double(), expected_weights, rtol=0, atol=tolerance)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=tolerance)

    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (output * direction.to(dtype)).sum().backward()
    (expected * direction).sum().backward()
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=10 * tolerance)


def test_transformers_finds_it_by_name_and_computes_the_same_features_and_weights():
    config = ViTConfig(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    eager = ViTModel._from_config(config, attn_implementation="eager").eval()
    ours = ViTModel._from_config(config, attn_implementation=CPU_ATTENTION).eval()
    ours.load_state_dict(eager.state_dict())
    found, wanted = (model(images, output_attentions=True) for model in (ours, eager))
    torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state)
    torch.testing.assert_close(found.attentions, wanted.attentions)


def test_dropout_acts_only_in_training():
    module, values = nn.Identity(), qkv(torch.float32)
    torch.manual_seed(0)
    _, weights = cpu_attention(module.train(), *values, None, scaling=1.0, dropout=0.5)
    assert 0.3 < (weights == 0).float().mean() < 0.7
    _, weights = cpu_attention(module.eval(), *values, None, scaling=1.0, dropout=0.5)
    assert (weights > 0).all()
