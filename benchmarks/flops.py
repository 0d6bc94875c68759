"""The necessary work in matrix products, and the speed of this machine at them: the measure for the throughput.

It counts multiplications and additions of matrix products. A backward pass counts as two forward passes.

N patches of an image, V of them visible, K masked ones decoded, D width.
"""

import itertools
import time

import torch

from benchmarks.turns import Turns
from mae_hf.config.model import EncoderConfig, MAEConfig

SIDES = (1024, 2048, 4096, 8192) if torch.cuda.is_available() else (1024, 2048, 4096)


def pretraining_gflop(model: MAEConfig) -> float:
    """Return the GFLOP per image of a pre-training step, forward and backward, without avoidable work.

    V patches are embedded, V + 1 tokens encoded, V + K + 1 decoded (the last layer needs K), and K predicted.
    """
    visible, values = model.num_visible, 3 * model.patch_size**2
    decoded = max(1, round(model.decode_ratio * (model.num_patches - visible)))
    products = visible * values * model.hidden_size
    products += _layers(visible + 1, model.num_hidden_layers, model.hidden_size, model.intermediate_size)
    products += (visible + 1) * model.hidden_size * model.decoder_hidden_size
    tokens, sizes = visible + decoded + 1, (model.decoder_hidden_size, model.decoder_intermediate_size)
    products += _layers(tokens, model.decoder_num_hidden_layers - 1, *sizes)
    products += _layers(tokens, 1, *sizes, num_queries=decoded)
    products += decoded * model.decoder_hidden_size * values
    return 3 * 2 * products / 1e9


def features_gflop(model: EncoderConfig) -> float:
    """Return the GFLOP of encoding a whole image, forward only."""
    products = model.num_patches * 3 * model.patch_size**2 * model.hidden_size
    products += _layers(model.num_patches + 1, model.num_hidden_layers, model.hidden_size, model.intermediate_size)
    return 2 * products / 1e9


def finetuning_gflop(model: EncoderConfig, num_classes: int) -> float:
    """Return the GFLOP per image of a fine-tuning step, forward and backward. The classifier takes one token."""
    return 3 * (features_gflop(model) + 2 * model.hidden_size * num_classes / 1e9)


def _layers(tokens: int, num_layers: int, width: int, mlp_width: int, num_queries: int | None = None) -> int:
    """Multiply-adds of transformer layers: keys and values; for each query its projections, attention and MLP."""
    queries = tokens if num_queries is None else num_queries
    per_query = 2 * width**2 + 2 * tokens * width + 2 * width * mlp_width
    return num_layers * (2 * tokens * width**2 + queries * per_query)


def multiply_matrices(turns: Turns, dtype: torch.dtype) -> None:
    """A contender: multiply square matrices of a size with the peak rate, and count GFLOP."""
    turns.begin()
    (a, b), _ = _at_peak(dtype)
    product = torch.empty_like(a)
    for _ in itertools.count():
        torch.mm(a, b, out=product)
        turns.done(2 * len(a) ** 3 / 1e9)


def peak_tflops(dtype: torch.dtype) -> float:
    """Return the peak TFLOP/s of matrix products on this machine. It takes a few seconds."""
    return _at_peak(dtype)[1] / 1e12


def _at_peak(dtype: torch.dtype) -> tuple[torch.Tensor, float]:
    """Return a pair of square matrices, (2, size, size), and the FLOP/s of their product.

    Larger ones are tried while they are faster by 3 %: without instructions for bf16, a large product takes seconds.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fastest, peak = torch.empty(0), 0.0
    for size in SIDES:
        pair = torch.randn(2, size, size, device=device).to(dtype)
        rate, before = _rate(pair), peak
        if rate > peak:
            fastest, peak = pair, rate
        if rate < 1.03 * before:
            break
    return fastest, peak


def _rate(pair: torch.Tensor) -> float:
    """FLOP/s of the product of these two matrices, the best of three."""
    seconds = list[float]()
    for _ in range(3):
        started = time.perf_counter()
        torch.mm(pair[0], pair[1])
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * pair.shape[1] ** 3 / min(seconds)
