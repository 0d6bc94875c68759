"""The last lines of a run: what a probe of the frozen encoder gives, and the commands to type next."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from mae_hf.config import parse
from mae_hf.config.data import DataConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.data.dataset import ImageSet
from mae_hf.evaluation.probing import best_probe

SURE = 100  # validation images, below which an accuracy has a standard error of 5 points or more
_PREPARATION = ("data.image_mean", "data.image_std", "data.resize")  # which the model says
FEW_LABELS = 5_000  # up to which configs/finetune/few_labels.yaml is proposed


def describe_next(
    accelerator: Accelerator, config: PretrainConfig, probed: tuple[ImageSet, ImageSet], values: Mapping[str, float]
) -> str:
    """Return the last lines of a pre-training run: what probes of its encoder give, and how to probe and fine-tune it.

    `probed` are the labelled and the validation images of `values`, the numbers of `encoder_probe`.
    """
    labelled, validation = probed
    split = labelled.parts[0][0].split
    kinds = {"linear": "linear probe", "knn": "kNN"}
    found = {text: best for kind, text in kinds.items() if (best := best_probe(values, kind))}
    scores = ", ".join(f"{text} {100 * accuracy:.1f} % ({pooling})" for text, (accuracy, pooling) in found.items())
    images = f"{len(validation)} validation images, from {len(labelled)} labels"
    result = f"frozen encoder: {scores} on {images}, in {values['probe/seconds']:.1f} s" if found else ""

    model, data = config.output_dir, replace(config.data, source=split.source)
    preset = "few_labels" if len(split) <= FEW_LABELS else "published_224"  # both take the shape from the encoder
    head = [] if "linear probe" in found else ["--model.head", "zero"]  # the classifier cannot start from a probe
    words = ["--config", preset, "--model.init", model, *head]
    words += [*parse.to_flags(data, _PREPARATION), "--output_dir", f"runs/finetune/{Path(model).name}"]
    return (
        f"{result}\nnext, probe it on test images, or fine-tune it:\n"
        f"  {_probe_command(accelerator, model, data)}\n"
        f"  {parse.command_line('finetune', words, accelerator.mixed_precision)}"
    )


def compare_with_probe(
    accelerator: Accelerator, config: FinetuneConfig, values: Mapping[str, float], accuracy: float, num_validation: int
) -> str:
    """Say whether fine-tuning is worth it: its `accuracy` beside the linear probe of the encoder it started from.

    Both are on validation images. Empty if the encoder was not probed.
    """
    probe = best_probe(values, "linear")
    if probe is None:
        return ""
    both = f"fine-tuned {100 * accuracy:.1f} %, linear probe of its encoder {100 * probe[0]:.1f} % ({probe[1]})"
    line = f"validation ({num_validation} images): {both}"
    if accuracy >= probe[0]:
        return line
    doubt = f" ({num_validation} images are too few to be sure)" if num_validation < SURE else ""
    # evaluate opens the main branch
    command = "" if config.model.revision else f"\n  {_probe_command(accelerator, config.model.init, config.data)}"
    return f"{line}: use the probe{doubt}{command}"


def _probe_command(accelerator: Accelerator, model: str, data: DataConfig) -> str:
    """Return the command that probes an encoder on the test images of `data`."""
    folder = f"runs/evaluate/{Path(model).name}-probes"
    words = ["--model", model, *parse.to_flags(data, _PREPARATION), "--probe", "knn,linear", "--output_dir", folder]
    return parse.command_line("evaluate", words, accelerator.mixed_precision)
