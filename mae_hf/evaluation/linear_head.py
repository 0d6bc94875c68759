"""The paper's linear probe: batch normalisation without parameters and a linear layer, trained by SGD.

Shapes: n images, D features, C classes.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from mae_hf.evaluation.probes import Labelled, Probe, check_finite

EPOCHS, WARMUP_EPOCHS, BATCH_SIZE, MOMENTUM = 90, 10, 256, 0.9
LEARNING_RATES = (0.01, 0.1, 1.0)  # at `BATCH_SIZE`; validation chooses


def head_probe(
    train: Labelled, validation: Labelled, test_features: np.ndarray, num_classes: int, seed: int = 0
) -> Probe:
    """Return the paper's linear head on frozen features, with the learning rate that is best on validation.

    As in the paper: BatchNorm without affine parameters, a linear layer that starts at N(0, 0.01²), 90 epochs, 10 of
    warm-up and a cosine to 0, momentum 0.9, no weight decay. Two things differ. The features are computed once, without
    random crops or flips. SGD with batches of 256 replaces LARS with batches of 16,384.

    Args:
        train: at least two images.
        validation: images that choose the learning rate, the smallest of equals.
        test_features: float (n, D).
        num_classes: C.
        seed: of the first weights and of the order of the images.

    Raises:
        ConfigError: features that are not finite.

    Source: He et al. 2022, appendix A.1 (arXiv 2111.06377); `main_linprobe.py` of facebookresearch/mae.
    """
    check_finite(train_features=train.features, validation_features=validation.features, test_features=test_features)
    candidates = []
    for learning_rate in LEARNING_RATES:
        head = _train(train, num_classes, learning_rate, seed)
        predictions = _probabilities(head, validation.features).argmax(axis=1)
        candidates.append((float((predictions == validation.labels).mean()), learning_rate, head))
    accuracy, learning_rate, head = max(candidates, key=lambda candidate: candidate[0])
    settings = {"learning_rate": learning_rate, "epochs": EPOCHS}
    return Probe(_probabilities(head, test_features), accuracy, settings)


def _train(train: Labelled, num_classes: int, learning_rate: float, seed: int) -> nn.Module:
    features, labels = _tensor(train.features), torch.from_numpy(np.asarray(train.labels, np.int64))
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(features.shape[1], num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    head = nn.Sequential(nn.BatchNorm1d(features.shape[1], affine=False, eps=1e-6), linear)
    num_batches = max(1, len(labels) // BATCH_SIZE)
    optimizer = torch.optim.SGD(head.parameters(), lr=learning_rate, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step / num_batches))
    for _ in range(EPOCHS):
        order = torch.randperm(len(labels), generator=generator)
        for rows in order.tensor_split(num_batches):  # of one size to within one: no rest too small to normalise
            loss = nn.functional.cross_entropy(head(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def _factor(epoch: float) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine to 0."""
    if epoch < WARMUP_EPOCHS:
        return epoch / WARMUP_EPOCHS
    return (1 + math.cos(math.pi * (epoch - WARMUP_EPOCHS) / (EPOCHS - WARMUP_EPOCHS))) / 2


@torch.no_grad()
def _probabilities(head: nn.Module, features: np.ndarray) -> np.ndarray:
    return head(_tensor(features)).softmax(dim=-1).numpy()


def _tensor(features: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(features, np.float32))
