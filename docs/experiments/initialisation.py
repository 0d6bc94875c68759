"""Experiment: what the initialisation of transformers 5 costs, against the paper's, all else being equal.

accelerate launch --mixed_precision bf16 docs/experiments/initialisation.py OUTPUT.json UNLABELED LABELLED [STEPS]
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import ViTMAEForPreTraining

from mae_hf import cli
from mae_hf.checkpoint import Checkpoints, TrainState
from mae_hf.config import DataConfig, PretrainConfig
from mae_hf.data.augment import augment, normalize
from mae_hf.data.draws import uniform
from mae_hf.data.images import load_labelled_images, load_pretraining_images
from mae_hf.evaluation.inference import extract_features, held_out_loss
from mae_hf.evaluation.probes import linear_probe
from mae_hf.machine import attention_for, use_cpu_well
from mae_hf.models.mae import build_mae, export_encoder, mae_config
from mae_hf.models.positions import PositionError, check_positions
from mae_hf.optim import build_optimizer
from mae_hf.tracking import RunLog
from mae_hf.training import train


def main() -> None:
    """Trains one model per initialisation and prints a line for each."""
    output, unlabeled, labelled, *steps = sys.argv[1:]
    results = [measure(name, unlabeled, labelled, int(steps[0]) if steps else 600) for name in ("stock", "paper")]
    Path(output).write_text(json.dumps(results, indent=2) + "\n")


def measure(initialisation: str, unlabeled: str, labelled: str, steps: int) -> dict[str, object]:
    """Held-out loss and linear probe after `steps` steps of the `stl10_tiny` recipe."""
    accelerator = Accelerator()
    use_cpu_well(accelerator)
    folder = tempfile.mkdtemp()
    flags = [f"--data.source={unlabeled}", f"--output_dir={folder}", f"--train.save_every_epochs={steps}"]
    config = cli.parse(PretrainConfig, ["--config=configs/pretrain/stl10_tiny.yaml", *flags], prog="initialisation")
    images, held_out = load_pretraining_images(config.data, config.model.image_size)
    epochs = steps / (len(images) // config.train.batch_size)
    config = cli.parse(
        PretrainConfig,
        ["--config=configs/pretrain/stl10_tiny.yaml", *flags, f"--train.epochs={epochs}", "--train.warmup_epochs=0.3"],
        prog="initialisation",
    )
    plan = config.train.plan(len(images), accelerator.num_processes)

    set_seed(config.train.seed)
    model = build_mae(config.model, attention_for(accelerator))
    if initialisation == "stock":
        model.load_state_dict(ViTMAEForPreTraining(mae_config(config.model)).state_dict())
    try:
        check_positions(model)
        refused = None
    except PositionError as error:
        refused = str(error)
    prepared, optimizer = accelerator.prepare(model, build_optimizer(model, config.train))

    def loss_of(rows, epoch):  # type: ignore[no-untyped-def]
        pixels = augment(images.batch(rows).to(accelerator.device), rows, config.augment, config.train.seed, epoch)
        noise = torch.from_numpy(uniform(config.train.seed, epoch, rows, config.model.num_patches, "mask"))
        pixel_values = normalize(pixels, config.data.image_mean, config.data.image_std)
        return prepared(pixel_values, noise=noise.float().to(accelerator.device)).loss

    def evaluate(step: int) -> dict[str, float]:
        return {"eval/loss": held_out_loss(accelerator, prepared, held_out, config.data, config.model.num_patches, 256)}

    train(
        accelerator,
        prepared,
        optimizer,
        config=config.train,
        plan=plan,
        state=TrainState(),
        loss_of=loss_of,
        evaluate=evaluate,
        log=RunLog(accelerator, config, 0, {}),
        checkpoints=Checkpoints(Path(folder) / "checkpoints", 1),
    )
    loss = evaluate(plan.total_steps)["eval/loss"]
    encoder = export_encoder(model).eval()
    labelled_images = load_labelled_images(DataConfig(source=labelled), config.model.image_size)
    features = {
        role: extract_features(accelerator, encoder, part, config.data, 256) for role, part in labelled_images.items()
    }
    result: dict[str, object] = {"initialisation": initialisation, "steps": plan.total_steps, "held_out_loss": loss}
    for pooling in ("cls", "mean"):
        sets = [(features[role][pooling], labelled_images[role].labels) for role in ("train", "validation", "test")]
        result[f"linear_probe_{pooling}"] = linear_probe(*(array for pair in sets for array in pair)).accuracy
    result["refused_before_step_0"] = refused
    accelerator.print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
