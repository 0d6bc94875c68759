"""Fine-tune a classifier from a pre-trained encoder, or train the same network from scratch.

accelerate launch scripts/finetune.py --config configs/finetune/digits.yaml --model.init runs/pretrain/digits
accelerate launch scripts/finetune.py --config configs/finetune/digits.yaml --model.init scratch \
    --output_dir runs/finetune/digits-scratch
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_hf import cli
from mae_hf.config import FinetuneConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tunes as the command line says; an unfinished run goes on, a finished one is left alone."""
    config = cli.parse(FinetuneConfig, argv, prog="scripts/finetune.py")

    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from torch.nn import functional as F

    from mae_hf import figures, hub
    from mae_hf.checkpoint import Checkpoints, TrainState
    from mae_hf.data.augment import augment, normalize
    from mae_hf.data.erase import erase
    from mae_hf.data.images import load_labelled_images
    from mae_hf.data.mix import mix
    from mae_hf.evaluation.inference import predict_probabilities
    from mae_hf.evaluation.metrics import classification_metrics
    from mae_hf.evaluation.predictions import write_predictions
    from mae_hf.models.classifier import build_classifier
    from mae_hf.models.pretrained import check_init
    from mae_hf.optim import build_optimizer
    from mae_hf.tracking import RunLog, inspect_run
    from mae_hf.training import attention_for, train, use_all_cores

    folder = Path(config.output_dir)
    accelerator = Accelerator(log_with=list(config.train.trackers) or None, project_dir=folder / "trackers")
    device = accelerator.device
    use_all_cores(accelerator)
    if inspect_run(config) == "finished":
        accelerator.print(f"{folder} is finished: see {folder / 'metrics.json'}")
        if config.hub.push and accelerator.is_main_process:
            accelerator.print(f"uploaded to {hub.push(folder / 'model', config.hub)}")
        return
    if config.hub.push and accelerator.is_main_process:
        hub.create_repository(config.hub)  # a wrong token shows now, not when the run is done

    # ---- data, once it is clear that the encoder is there and takes images normalised as these are ----
    check_init(config.model.init, config.data)
    with accelerator.main_process_first():
        images = load_labelled_images(config.data, config.model.image_size)
    train_images = images["train"]
    class_names = train_images.class_names
    labels = torch.from_numpy(train_images.labels)
    plan = config.train.plan(len(train_images), accelerator.num_processes)

    # ---- model ----
    set_seed(config.train.seed)
    model = build_classifier(config.model, class_names, attention_for(accelerator), config.train.seed)
    optimizer = build_optimizer(model, config.train)
    prepared, optimizer = accelerator.prepare(model, optimizer)

    # ---- go on where an unfinished run stopped ----
    checkpoints = Checkpoints(folder / "checkpoints", config.train.keep_checkpoints)
    latest = checkpoints.latest()
    state = checkpoints.load(accelerator, latest) if latest else TrainState()

    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {
        **{f"num_{role}_images": len(part) for role, part in images.items()},
        "data_fingerprint": train_images.fingerprint,
        "num_parameters": num_parameters,
    }
    log = RunLog(accelerator, config, state.step, facts)
    accelerator.print(
        f"run             {folder}, from step {state.step}\n"
        f"images          {', '.join(f'{len(part)} {role}' for role, part in images.items())}\n"
        f"model           {num_parameters / 1e6:.1f} M parameters, {len(class_names)} classes, "
        f"from {config.model.init}\n"
        f"device          {device.type}, precision {accelerator.mixed_precision}\n{plan.describe(config.train)}"
    )

    # ---- a step: rows -> images -> augment -> normalise -> erase -> mixup or cutmix -> loss with soft targets ----
    def loss_of(rows, epoch):  # type: ignore[no-untyped-def]
        seed = config.train.seed
        pixels = augment(train_images.batch(rows).to(device), rows, config.augment, seed, epoch)
        pixel_values = normalize(pixels, config.data.image_mean, config.data.image_std)
        pixel_values = erase(pixel_values, rows, config.augment.erase_probability, seed, epoch)
        targets = labels[rows].to(device)
        pixel_values, targets = mix(pixel_values, targets, len(class_names), config.augment, seed, epoch, rows)
        # the loss is computed here: float labels passed to the model would turn its config into multi-label
        return F.cross_entropy(prepared(pixel_values).logits.float(), targets)

    # ---- an evaluation: decisions are taken on validation, never on test ----
    def score(role: str) -> "tuple[dict[str, Any], NDArray[np.float32]]":
        part = images[role]
        probabilities = predict_probabilities(accelerator, prepared, part, config.data, plan.micro_batch_size)
        scores = classification_metrics(probabilities.argmax(axis=1), part.labels, probabilities, class_names)
        return scores, probabilities

    def evaluate(step: int) -> dict[str, float]:
        scores, _ = score("validation")
        return {f"eval/{key}": scores[key] for key in ("loss", "accuracy", "f1")}

    state = train(
        accelerator,
        prepared,
        optimizer,
        config=config.train,
        plan=plan,
        state=state,
        loss_of=loss_of,
        evaluate=evaluate,
        log=log,
        checkpoints=checkpoints,
        best_key="eval/accuracy",
    )

    # ---- the best checkpoint by validation, once on test ----
    assert state.best_step is not None
    checkpoints.load(accelerator, checkpoints.path(state.best_step))
    model.eval()
    validation, _ = score("validation")
    test, probabilities = score("test")
    metrics = {
        **{f"test/{key}": test[key] for key in ("accuracy", "f1", "loss", "f1_per_class")},
        **{f"eval/{key}": validation[key] for key in ("accuracy", "f1", "loss")},
        "best_epoch": state.best_step / plan.steps_per_epoch,
    }

    # ---- what is shared ----
    if accelerator.is_main_process:
        write_predictions(folder / "predictions.parquet", images["test"].labels, probabilities)
        figure = figures.confusion_figure({"": test["confusion_matrix"]}, class_names, f"{folder.name}: test images")
        figures.save(figure, folder / "figures" / "confusion.png")
        hub.save_model(folder / "model", model, config, metrics)
        if config.hub.push:
            accelerator.print(f"uploaded to {hub.push(folder / 'model', config.hub)}")
    log.finish(metrics)
    accelerator.print(
        f"test accuracy {test['accuracy']:.4f}, macro-F1 {test['f1']:.4f} (epoch {metrics['best_epoch']:g}, the best "
        f"on validation); model is in {folder / 'model'}"
    )


if __name__ == "__main__":
    cli.run(main)
