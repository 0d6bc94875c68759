"""The work of an image, against counts by hand and by torch's own counter; matrix products that count themselves."""

from functools import partial
from pathlib import Path

import pytest
import torch
from few_turns import MODEL, few
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTForImageClassification, ViTModel

from benchmarks import flops
from benchmarks.flops import features_gflop, finetuning_gflop, multiply_matrices, pretraining_gflop
from mae_hf.config import parse
from mae_hf.config.model import MAEConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.models.mae import build_mae, encoder_config, mae_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("preset", "gflop"), [("tiny8", 2.01), ("base16", 10.72)])
def test_the_measured_shapes_need_what_was_counted_by_hand(preset: str, gflop: float):
    model = parse.read_file(PretrainConfig, ROOT / f"configs/benchmark/{preset}.yaml").model
    assert round(pretraining_gflop(model), 2) == gflop


def counted(work, num_images: int) -> float:
    """GFLOP per image of a call, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops() / num_images / 1e9


@pytest.mark.parametrize("decode_ratio", [1.0, 0.5])
def test_pre_training_needs_three_times_what_torch_counts_in_a_forward_pass(decode_ratio: float):
    shape = MAEConfig(**(vars(MODEL) | {"num_hidden_layers": 2, "decode_ratio": decode_ratio}))
    model, images = build_mae(shape, "eager").train(), torch.zeros(2, 3, 16, 16)
    forward = counted(partial(model, images, loss_only=True), 2)
    assert pretraining_gflop(shape) == pytest.approx(3 * forward)


def test_features_and_fine_tuning_need_what_torch_counts():
    config, images = encoder_config(mae_config(MODEL), num_labels=7), torch.zeros(2, 3, 16, 16)
    encoder, classifier = ViTModel(config, add_pooling_layer=False), ViTForImageClassification(config)
    for model in (encoder, classifier):
        model.set_attn_implementation("eager")  # whose products the counter sees
    assert features_gflop(MODEL) == pytest.approx(counted(partial(encoder, images), 2))
    assert finetuning_gflop(MODEL, 7) == pytest.approx(3 * counted(partial(classifier, images), 2))


def test_matrix_products_count_their_own_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flops, "SIDES", (8, 256))
    amounts = few(multiply_matrices, 3, dtype=torch.float32)
    assert amounts == [2 * 256**3 / 1e9] * 3  # the larger one is by far the faster per operation


def test_larger_products_are_tried_while_they_are_clearly_faster(monkeypatch: pytest.MonkeyPatch):
    rates = {8: 10.0, 16: 12.0, 32: 12.1, 64: 99.0}
    monkeypatch.setattr(flops, "SIDES", tuple(rates))
    monkeypatch.setattr(flops, "_rate", lambda pair: rates[len(pair[0])] * 1e12)
    assert flops.peak_tflops(torch.float32) == pytest.approx(12.1), "the fastest so far, and 64 is not tried"
