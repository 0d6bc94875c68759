"""The optimizer against tables written by hand, stock schedulers and an AdamW built by hand."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from transformers import ViTConfig, ViTForImageClassification

from mae_hf.config.model import MAEConfig
from mae_hf.config.train import FinetuneTrainConfig, Plan, PretrainTrainConfig
from mae_hf.models.mae import build_mae
from mae_hf.training.optim import WeightAverage, build_optimizer, learning_rate_at, set_learning_rate

TRAIN = FinetuneTrainConfig(layer_decay=0.5, weight_decay=0.05, adam_beta2=0.99)

# 3 layers: the classifier and the last norm learn at the full rate, each layer below at half of the one above it.
LR_SCALE = {"vit.embeddings": 1 / 16, "vit.layers.0": 1 / 8, "vit.layers.1": 1 / 4, "vit.layers.2": 1 / 2}


@pytest.fixture
def classifier() -> ViTForImageClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=5, **shape))


@pytest.fixture
def mae():
    torch.manual_seed(0)
    encoder = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return build_mae(
        MAEConfig(image_size=8, patch_size=2, **encoder, **{f"decoder_{k}": v for k, v in encoder.items()}), "sdpa"
    )


def settings_of(model, optimizer) -> dict[str, tuple[float, float]]:
    """Name -> (lr_scale, weight_decay), from the group that holds the parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["lr_scale"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def test_each_parameter_of_a_classifier_has_the_rate_of_its_layer(classifier):
    scales = {name: scale for name, (scale, _) in settings_of(classifier, build_optimizer(classifier, TRAIN)).items()}
    for name, scale in scales.items():
        layer = next((prefix for prefix in LR_SCALE if name.startswith(f"{prefix}.")), None)
        assert scale == (LR_SCALE[layer] if layer else 1.0), name
    assert scales.keys() == dict(classifier.named_parameters()).keys()
    assert {name for name, scale in scales.items() if scale == 1.0} == {
        *("classifier.weight", "classifier.bias", "vit.layernorm.weight", "vit.layernorm.bias")
    }


def test_only_matrices_of_layers_patches_and_classifier_are_decayed(classifier):
    settings = settings_of(classifier, build_optimizer(classifier, TRAIN))
    decayed = {name for name, (_, weight_decay) in settings.items() if weight_decay == 0.05}
    rest = {name for name, (_, weight_decay) in settings.items() if weight_decay == 0.0}
    matrices = {
        name for name, parameter in classifier.named_parameters() if name.endswith(".weight") and parameter.ndim > 1
    }
    assert decayed == matrices
    assert len(decayed) == 3 * 6 + 2  # query, key, value, output and two of the MLP; patches and classifier
    assert decayed | rest == settings.keys()
    assert {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings", "vit.layernorm.weight"} <= rest


def test_pre_training_treats_all_layers_alike_and_leaves_tokens_undecayed(mae):
    settings = settings_of(mae, build_optimizer(mae, PretrainTrainConfig(weight_decay=0.1)))
    assert {scale for scale, _ in settings.values()} == {1.0}
    for name, (_, weight_decay) in settings.items():
        is_matrix = name.endswith(".weight") and mae.get_parameter(name).ndim > 1
        assert weight_decay == (0.1 if is_matrix else 0.0), name
    assert {name for name in settings if name.endswith(("cls_token", "mask_token"))} == {
        *("vit.embeddings.cls_token", "decoder.mask_token")
    }


def test_frozen_parameters_are_in_no_group(mae):
    settings = settings_of(mae, build_optimizer(mae, PretrainTrainConfig()))
    frozen = {name for name, parameter in mae.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[-1] for name in frozen} == {"position_embeddings", "decoder_pos_embed"}
    assert settings.keys() == dict(mae.named_parameters()).keys() - frozen


def plan(total_steps: int, warmup_steps: int) -> Plan:
    train = PretrainTrainConfig(batch_size=8, warmup_ratio=min(0.99, warmup_steps / total_steps))
    return Plan(train, num_images=8, num_processes=1, steps_per_epoch=1, total_steps=total_steps, micro_batch_size=8)


@pytest.mark.parametrize(
    ("total_steps", "warmup_steps", "rates"),
    [
        (8, 4, [0.25, 0.5, 0.75, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (2, 0, [1, 0.5]),
        (3, 3, [1 / 3, 2 / 3, 1]),
        (1, 0, [1]),
        (1, 1, [1]),
    ],
)
def test_the_learning_rate_warms_up_and_falls_as_a_cosine(total_steps, warmup_steps, rates):
    found = [learning_rate_at(step, plan(total_steps, warmup_steps), 2e-3) for step in range(total_steps)]
    assert found == pytest.approx([2e-3 * rate for rate in rates])


@pytest.mark.parametrize(("total_steps", "warmup_steps"), [(30, 7), (12, 1), (25, 24)])
def test_the_learning_rate_is_that_of_torchs_linear_and_cosine_schedulers(total_steps, warmup_steps):
    peak = 3e-4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    warmup = LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=max(1, warmup_steps - 1))
    cosine = CosineAnnealingLR(optimizer, T_max=total_steps - warmup_steps)
    reference = SequentialLR(optimizer, [warmup, cosine], milestones=[warmup_steps])
    for step in range(total_steps):
        assert learning_rate_at(step, plan(total_steps, warmup_steps), peak) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-6
        )
        optimizer.step()
        reference.step()


def test_a_group_learns_at_the_scheduled_rate_times_its_own_factor(classifier):
    optimizer = build_optimizer(classifier, TRAIN)
    set_learning_rate(optimizer, 0.8)
    set_learning_rate(optimizer, 0.4)  # the factors must not pile up
    rates = {(group["weight_decay"], group["lr"]) for group in optimizer.param_groups}
    assert rates == {(decay, rate) for decay in (0.05, 0.0) for rate in (0.4, 0.2, 0.1, 0.05, 0.025)}


def test_steps_are_those_of_an_adamw_with_a_group_per_parameter(classifier):
    reference = ViTForImageClassification(classifier.config)
    reference.load_state_dict(classifier.state_dict())
    by_hand = []
    for name, parameter in reference.named_parameters():
        layer = next((prefix for prefix in LR_SCALE if name.startswith(f"{prefix}.")), None)
        decay = 0.05 if name.endswith(".weight") and parameter.ndim > 1 else 0.0
        by_hand.append({"params": [parameter], "lr": 1e-2 * LR_SCALE.get(layer, 1.0), "weight_decay": decay})
    expected = torch.optim.AdamW(by_hand, betas=(0.9, 0.99), eps=1e-8, fused=False, foreach=False)
    optimizer = build_optimizer(classifier, TRAIN)
    set_learning_rate(optimizer, 1e-2)
    for seed in range(2):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        for model, its_optimizer in ((classifier, optimizer), (reference, expected)):
            its_optimizer.zero_grad()
            model.eval()(images).logits.square().sum().backward()
            its_optimizer.step()
    for name, parameter in classifier.named_parameters():
        torch.testing.assert_close(parameter, reference.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_the_average_of_the_weights_is_the_textbook_recurrence_with_a_warm_up():
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.3, torch.device("cpu"))
    expected = {name: weight.detach().double() for name, weight in model.named_parameters()}
    for step in range(5):
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                parameter.add_(step + number)
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, weight in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach().double()
    assert decay == 0.3 > 1 / 10  # both ends of the warm-up were seen
    for name, weight in average.module.named_parameters():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-6, atol=1e-6)
        assert not weight.requires_grad
