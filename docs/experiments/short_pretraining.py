"""Experiment: compare short pre-training runs that differ in one setting, by held-out loss and linear probe.

accelerate launch --quiet --config_file configs/accelerate/one_process.yaml --mixed_precision bf16 \
    docs/experiments/short_pretraining.py OUTPUT.json UNLABELED LABELLED STEPS \
    VARIANT [VARIANT...]

A variant is a quoted part of a command line, such as "--model.decode_ratio 0.5". "" is plain `stl10_tiny`, and
`stock-initialisation` is a variant, too. UNLABELED and LABELLED are sources as in `--data.source`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import ViTMAEForPreTraining

from mae_hf.config import parse
from mae_hf.config.data import DataConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.data.dataset import DeviceImages, load_labelled_images, load_pretraining_images
from mae_hf.data.sampler import BatchSampler
from mae_hf.errors import RunError
from mae_hf.evaluation.inference import held_out_loss, infer, pooled_features
from mae_hf.evaluation.probing import probe_features
from mae_hf.models.initialization import check_positions
from mae_hf.models.mae import build_mae, export_encoder, mae_config
from mae_hf.training.checkpoint import Checkpoints, TrainState
from mae_hf.training.hardware import attention_for, use_cpu_well
from mae_hf.training.loop import Evaluation, Training, train
from mae_hf.training.losses import pretraining_loss
from mae_hf.training.optim import build_optimizer
from mae_hf.training.run_folder import RunLog, read_metrics

STOCK = "stock-initialisation"


def main() -> None:
    """Train a model for each variant, print its result, and add it to the file."""
    output, unlabeled, labelled, steps, *variants = sys.argv[1:]
    results = []
    for variant in variants:
        results.append(measure(variant, unlabeled, labelled, int(steps)))
        Path(output).write_text(json.dumps(results, indent=2) + "\n")


def measure(variant: str, unlabeled: str, labelled: str, steps: int) -> dict[str, object]:
    """Return held-out loss, images per second and linear probe after `steps` steps of the `stl10_tiny` recipe."""
    accelerator = Accelerator()
    use_cpu_well(accelerator)
    folder = Path(tempfile.mkdtemp())
    words = ["--config=configs/pretrain/stl10_tiny.yaml", f"--data.source={unlabeled}", f"--output_dir={folder}"]
    words += variant.split() if variant != STOCK else []
    config = parse.read_command(PretrainConfig, words, prog="experiment")
    images, held_out = load_pretraining_images(config.data, config.model.image_size)
    epochs = steps / (len(images) // config.train.batch_size)
    words += [f"--train.epochs={epochs}", "--train.warmup_ratio=0.1", f"--train.save_every_epochs={steps}"]
    config = parse.read_command(PretrainConfig, words, prog="experiment")
    plan = config.train.plan(len(images), accelerator.num_processes)

    set_seed(config.train.seed)
    model = build_mae(config.model, attention_for(accelerator))
    if variant == STOCK:
        model.load_state_dict(ViTMAEForPreTraining(mae_config(config.model)).state_dict())
    try:
        check_positions(model)
        refused = None
    except RunError as error:
        refused = str(error)
    prepared, optimizer = accelerator.prepare(model, build_optimizer(model, config.train))

    def evaluate(step: int) -> dict[str, float]:
        return {"eval/loss": held_out_loss(accelerator, prepared, held_out, config.data, config.model.num_patches, 256)}

    sampler = BatchSampler(plan, config.train.seed, accelerator.process_index)
    loss_of = pretraining_loss(prepared, DeviceImages(images, accelerator.device, config.data.on_device), config)
    evaluations = [Evaluation("held-out loss", plan.steps(config.train.eval_every_epochs), evaluate)]
    training = Training(accelerator, prepared, optimizer, config.train, sampler, loss_of, evaluations)
    log, checkpoints = RunLog(accelerator, config, 0, {}), Checkpoints(accelerator, folder / "checkpoints", 1)
    train(training, plan, TrainState(), log, checkpoints)
    lines = read_metrics(folder)
    result: dict[str, object] = {"variant": variant, "steps": plan.total_steps, "held_out_loss": lines[-1]["eval/loss"]}
    result["images_per_second"] = float(np.median([line["train/images_per_second"] for line in lines]))
    encoder = export_encoder(model).eval()
    labelled_images = load_labelled_images(DataConfig(source=labelled), config.model.image_size)
    features = {
        role: infer(accelerator, pooled_features, encoder, part, config.data, 256)
        for role, part in labelled_images.items()
    }
    values, _ = probe_features(["linear"], features, labelled_images, None)
    result |= {f"linear_probe_{pooling}": values[f"linear/{pooling}/accuracy"] for pooling in ("cls", "mean")}
    result["refused_before_step_0"] = refused
    accelerator.print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
