"""The networks of a comparison, opened again, with their attention on the same test images.

Shapes: n images, S side of an image, H heads, G² patches in G rows.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import ViTModel

from mae_hf.config.commands import EvaluateConfig
from mae_hf.data.dataset import ImageSet, load_labelled_images
from mae_hf.errors import ConfigError, require
from mae_hf.evaluation.inference import LoadedModel, pixel_values_of
from mae_hf.models.classifier import build_classifier
from mae_hf.models.io import open_classifier, open_encoder, weights_digest
from mae_hf.report.comparison import Comparison
from mae_hf.training.finished_runs import Run

PRETRAINED_ENCODER, RANDOM_ENCODER = "MAE before fine-tuning", "untrained"
FINETUNED_ENCODER, SUPERVISED_ENCODER = "MAE fine-tuned", "from scratch, trained"


@dataclass(frozen=True, eq=False)
class Network(LoadedModel):
    """An encoder of a comparison, with attention whose weights can be read, and the test images as it takes them."""

    images: ImageSet  # the n test images, of its size and by its `data.resize`

    def attention(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return `cls_attention` of these rows, (n, H, G, G)."""
        pixel_values = pixel_values_of(self.images, rows, self.data, self.model.device)
        return cls_attention(self.model, pixel_values).cpu().numpy()


@torch.no_grad()
def cls_attention(encoder: ViTModel, pixel_values: Tensor) -> Tensor:
    """Return the last layer's attention of CLS to each patch, in multiples of an even spread over all tokens.

    The encoder is in eval mode and has eager attention, as the faster ones give no weights. Normalised images, float
    (n, 3, S, S), give float32 (n, H, G, G), below 1 on average if CLS attends much to itself. ValueError if the
    attention is not finite.

    Source: Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers, arXiv 2104.14294, figure 1.
    """
    weights = encoder(pixel_values, output_attentions=True).attentions[-1].float()  # (n, H, 1 + G², 1 + G²)
    if not weights.isfinite().all():
        raise ValueError("the attention is not finite: the encoder's weights or its inputs are broken")
    num_tokens = weights.shape[-1]
    side = math.isqrt(num_tokens - 1)
    return (weights[:, :, 0, 1:] * num_tokens).unflatten(-1, (side, side))


def open_test_images(run: Run) -> ImageSet:
    """Return a run's test images, prepared for its network; ConfigError if they are missing or have changed since."""
    images = load_labelled_images(run.config.data, run.shape["image_size"], roles=("test",))["test"]
    is_same = run.record.test_fingerprint in (None, images.fingerprint)
    problem = f"{', '.join(run.config.data.sources)} no longer holds the {len(run.test)} test images of {run.path}"
    require(is_same and np.array_equal(images.labels, run.test.labels), problem)
    return images


def open_networks(comparison: Comparison, images: Mapping[str, ImageSet]) -> tuple[dict[str, Network], dict[str, str]]:
    """Return the networks to draw, and why missing ones cannot be opened; `images` are `open_test_images` by arm.

    With pre-training against scratch these are the networks of both before and after fine-tuning. Before: the encoder
    that `model.init` names, and the random weights that the scratch run began with. After: the models of each arm's
    best run. Where validation chooses the arm, it is the network of each arm's best run, fine-tuned or frozen.
    """
    wanted = [(arm, arm, True) for arm in comparison.best]
    if not comparison.chooses_arm:
        ours, baseline = comparison.best
        wanted = [(PRETRAINED_ENCODER, ours, False), (RANDOM_ENCODER, baseline, False)]
        wanted += [(FINETUNED_ENCODER, ours, True), (SUPERVISED_ENCODER, baseline, True)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks, missing = {}, {}
    for name, arm, is_trained in wanted:
        run = comparison.best[arm]
        try:
            if isinstance(run.config, EvaluateConfig):
                encoder = open_encoder(run.init, "eager")
            elif is_trained:
                encoder = open_classifier(str(run.path), "eager").vit
            else:
                encoder = build_classifier(run.config.model, run.class_names, "eager", run.config.train.seed).vit
            networks[name] = Network(encoder.eval().to(device), run.config.data, images[arm])
        except ConfigError as error:
            missing[name] = str(error)
    return networks, missing


def changed_encoders(runs: Sequence[Run]) -> list[str]:
    """Return a warning for each run whose encoder no longer has the weights that the run started from."""
    runs = [run for run in runs if run.record.init_digest]
    digests = {}
    for init in {run.init for run in runs}:
        with contextlib.suppress(ConfigError):  # `open_networks` says why
            digests[init] = weights_digest(open_encoder(init, "sdpa"))
    return [
        f"The encoder {run.init} has changed since {run.path} started from it: its pictures, settings and "
        "audit do not belong to these scores. Restore it, or run finetune again."
        for run in runs
        if digests.get(run.init, run.record.init_digest) != run.record.init_digest
    ]
