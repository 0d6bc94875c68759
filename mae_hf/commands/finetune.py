"""Fine-tune a classifier from a pre-trained encoder, or train the same network from scratch.

accelerate launch scripts/finetune.py --config configs/finetune/digits.yaml --model.init runs/pretrain/digits
accelerate launch scripts/finetune.py --config configs/finetune/digits.yaml --model.init scratch \
    --output_dir runs/finetune/digits-scratch
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_hf.config import parse
from mae_hf.config.commands import FinetuneConfig
from mae_hf.data.locations import check_source
from mae_hf.models.locate import FIX_INIT, SCRATCH, find_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tunes as the command line says; an unfinished run goes on, a finished one is left alone."""
    config = parse.read_command(FinetuneConfig, argv, prog="scripts/finetune.py")

    folder = Path(config.output_dir)
    if not (folder / "metrics.json").exists():  # the data and the encoder of a finished run may be gone
        check_source(config.data.sources[0])  # before the imports that take seconds
        if config.model.init != SCRATCH:
            find_model(config.model.init, FIX_INIT)

    from accelerate.utils import set_seed

    from mae_hf import figures, hub
    from mae_hf.data.augment.mix import check_pairs
    from mae_hf.data.dataset import DeviceImages, load_labelled_images
    from mae_hf.evaluation.inference import predict_probabilities
    from mae_hf.evaluation.metrics import classification_metrics
    from mae_hf.evaluation.predictions import write_predictions
    from mae_hf.evaluation.unseen import describe_unseen, unseen_metrics
    from mae_hf.figures import charts
    from mae_hf.leakage.audit import seen_test_images
    from mae_hf.leakage.record import NOT_PRETRAINED, read_model_audit
    from mae_hf.models.classifier import build_classifier
    from mae_hf.models.io import check_init, hub_revision, weights_digest
    from mae_hf.training.checkpoint import Checkpoints
    from mae_hf.training.distributed import check_same, check_shared, prepare, start_accelerator
    from mae_hf.training.hardware import attention_for, compile_layers, use_cpu_well
    from mae_hf.training.lock import RunLock
    from mae_hf.training.loop import Evaluation, batch_sampler, train
    from mae_hf.training.losses import finetuning_loss
    from mae_hf.training.optim import WeightAverage, build_optimizer
    from mae_hf.training.run_folder import RunLog, inspect_run

    accelerator = start_accelerator(
        timeout_minutes=config.train.timeout_minutes,
        log_with=list(config.train.trackers) or None,
        project_dir=folder / "trackers",
    )
    use_cpu_well(accelerator)
    check_same(accelerator, dict(parse.flatten(config)), "type the same command for all of them")
    check_shared(accelerator, folder)
    if inspect_run(config) == "finished":
        accelerator.print(f"{folder} is finished: see {folder / 'metrics.json'}")
        if config.hub.push and accelerator.is_main_process:
            accelerator.print(f"uploaded to {hub.push(folder / 'model', config.hub)}")
        return
    lock = RunLock(accelerator, folder)
    if config.hub.push and accelerator.is_main_process:
        hub.create_repository(config.hub)  # a wrong token shows now, not when the run is done

    # ---- data, once it is clear that the encoder is there and takes images normalised as these are ----
    check_init(config.model, config.data)
    is_pretrained = config.model.init != SCRATCH
    audit = read_model_audit(config.model.init, config.model.revision) if is_pretrained else NOT_PRETRAINED
    with accelerator.local_main_process_first():
        images = load_labelled_images(config.data, config.model.image_size)
    train_images = images["train"]
    class_names = train_images.class_names
    plan = config.train.plan(len(train_images), accelerator.num_processes)
    check_pairs(config.augment, plan)

    # ---- model ----
    set_seed(config.train.seed)
    model = build_classifier(config.model, class_names, attention_for(accelerator), config.train.seed)
    origin = {
        "init_digest": weights_digest(model.vit) if is_pretrained else None,
        "init_revision": hub_revision(config.model.init, config.model.revision) if is_pretrained else None,
    }
    optimizer = build_optimizer(model, config.train)
    average = WeightAverage(model, config.train.ema_decay, accelerator.device) if config.train.ema_decay else None
    prepared, optimizer, whole = prepare(accelerator, model, optimizer, plan, config.train)

    # ---- a step: rows -> images -> augment -> normalise -> erase -> mixup or cutmix -> loss with soft targets ----
    device_images = DeviceImages(train_images, accelerator.device, config.data.on_device)
    loss_of = finetuning_loss(prepared, device_images, len(class_names), config)
    is_compiled = compile_layers(accelerator, prepared, config.train.compile)

    # ---- go on where an unfinished run stopped ----
    checkpoints = Checkpoints(folder / "checkpoints", config.train.keep_checkpoints, average)
    state = checkpoints.resume(accelerator)

    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {
        **{f"num_{role}_images": len(part) for role, part in images.items()},
        "labels": train_images.note or "all labels",
        "data_fingerprint": train_images.fingerprint,
        "validation_fingerprint": images["validation"].fingerprint,
        "test_fingerprint": images["test"].fingerprint,
        "num_parameters": num_parameters,
        "is_compiled": is_compiled,
        **origin,
    }
    log = RunLog(accelerator, config, state.step, facts, lock)
    accelerator.print(
        f"run             {folder}, from step {state.step}\n"
        f"images          {', '.join(f'{len(part)} {role}' for role, part in images.items())}"
        f"{f': {train_images.note}' if train_images.note else ''}\n"
        f"model           {num_parameters / 1e6:.1f} M parameters, {len(class_names)} classes, "
        f"from {config.model.init}\n"
        f"device          {accelerator.device.type}, precision {accelerator.mixed_precision}"
        f"{', compiled layers' if is_compiled else ''}\n{plan.describe(config.train)}"
    )

    # ---- an evaluation: decisions are taken on validation, never on test ----
    def score(role: str) -> "tuple[dict[str, Any], NDArray[np.float32]]":
        part, scored = images[role], average.module if average else prepared
        with accelerator.autocast():  # the average is not prepared
            probabilities = predict_probabilities(accelerator, scored, part, config.data, plan.eval_batch_size)
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
        sampler=batch_sampler(accelerator, config.train, plan),
        loss_of=loss_of,
        evaluations=[Evaluation("validation", plan.eval_every_steps, evaluate)],
        log=log,
        checkpoints=checkpoints,
        best_key="eval/accuracy",
    )

    # ---- the best checkpoint by validation, once on test ----
    assert state.best_step is not None
    checkpoints.load(accelerator, checkpoints.path(state.best_step))
    prepared.eval()
    validation, validation_probabilities = score("validation")
    test, probabilities = score("test")
    seen = seen_test_images(audit, images["test"])
    unseen = unseen_metrics(probabilities, images["test"].labels, class_names, seen)
    metrics = {
        **{f"test/{key}": test[key] for key in ("accuracy", "f1", "loss", "f1_per_class")},
        **unseen,
        **{f"eval/{key}": validation[key] for key in ("accuracy", "f1", "loss")},
        "best_epoch": state.best_step / plan.steps_per_epoch,
    }

    # ---- what is shared ----
    complete: Any = average.module if average else whole()
    if accelerator.is_main_process:
        write_predictions(folder / "predictions.parquet", images["test"].labels, probabilities, seen)
        write_predictions(
            folder / "validation_predictions.parquet", images["validation"].labels, validation_probabilities, None
        )
        figure = charts.confusion_figure({"": test["confusion_matrix"]}, class_names, f"{folder.name}: test images")
        figures.save(figure, folder / "figures" / "confusion.png")
        hub.save_model(folder / "model", complete, config, metrics, audit=audit)
        if config.hub.push:
            accelerator.print(f"uploaded to {hub.push(folder / 'model', config.hub)}")
    log.finish(metrics)
    accelerator.print(
        f"test accuracy {test['accuracy']:.4f}, macro-F1 {test['f1']:.4f} (epoch {metrics['best_epoch']:g}, the best "
        f"on validation); model is in {folder / 'model'}\n{describe_unseen(unseen)}"
    )
