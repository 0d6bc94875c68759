"""Fine-tune a classifier from a pre-trained encoder, or train the same network from scratch."""

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from numpy.typing import NDArray

from mae_hf import figures, hub
from mae_hf.commands.next_steps import compare_with_probe
from mae_hf.commands.open_run import open_run
from mae_hf.config.runs import FinetuneConfig
from mae_hf.data.augment.mix import check_pairs
from mae_hf.data.dataset import DeviceImages, load_labelled_images, thin_out
from mae_hf.data.sampler import BatchSampler
from mae_hf.errors import require
from mae_hf.evaluation.inference import class_probabilities, infer
from mae_hf.evaluation.metrics import classification_metrics, describe_seen, unseen_metrics
from mae_hf.evaluation.probing import ONLINE_IMAGES, encoder_probe
from mae_hf.figures import charts
from mae_hf.leakage.audit import NOT_PRETRAINED, read_model_audit, seen_test_images
from mae_hf.models.classifier import build_classifier
from mae_hf.models.origin import resolve, start_facts
from mae_hf.training.distributed import prepare
from mae_hf.training.hardware import attention_for, compile_layers
from mae_hf.training.loop import Evaluation, Training, train
from mae_hf.training.losses import finetuning_loss
from mae_hf.training.optim import WeightAverage, build_optimizer
from mae_hf.training.predictions import write_predictions
from mae_hf.training.run_folder import read_metrics


def finetune(config: FinetuneConfig) -> None:
    """Fine-tune a classifier, or resume an unfinished run."""
    config = resolve(config)
    run = open_run(config)
    if run is None:
        return
    accelerator, folder = run.accelerator, run.folder

    # ---- data, and the audit of the encoder's pre-training ----
    start = run.start
    is_pretrained = not start.is_new
    audit = read_model_audit(start.init, start.revision) if is_pretrained else NOT_PRETRAINED
    with accelerator.local_main_process_first():
        images = load_labelled_images(config.data, config.model.image_size)
    train_images = images["train"]
    class_names = train_images.class_names
    fitted = config.train.fit(len(train_images), accelerator.num_processes)
    config = dataclasses.replace(config, train=fitted)  # the run folder keeps the config as it was given
    plan = run.plan(config, len(train_images))
    check_pairs(config.augment, plan)

    # ---- model ----
    set_seed(config.train.seed)
    model = build_classifier(start, class_names, attention_for(accelerator), config.train.seed)
    probed = config.model.head == "probe"
    probe = run.record.start_probe  # a resumed run has the head in its checkpoint
    if run.checkpoints.newest() is None and (is_pretrained or probed):
        encoder = copy.deepcopy(model.vit).to(accelerator.device).eval()
        known, others = (thin_out(images[role], ONLINE_IMAGES) for role in ("train", "validation"))
        probe, head = encoder_probe(accelerator, encoder, known, others, config.data, plan.eval_batch_size, ["linear"])
        problem = "model.head probe: this encoder has no linear probe of its classes: start at zero (--model.head zero)"
        require(head is not None or not probed, problem)
        if head and probed:
            weight, bias = (torch.from_numpy(values) for values in head)
            model.classifier.load_state_dict({"weight": weight, "bias": bias})  # LP-FT, arXiv 2202.10054
    optimizer = build_optimizer(model, config.train)
    decay = config.train.ema_decay
    average = WeightAverage(model, decay, accelerator.device) if decay else None
    prepared, optimizer, whole = prepare(accelerator, model, optimizer, average)
    is_compiled = compile_layers(accelerator, prepared, config.train.compile)

    # ---- a step: rows -> images -> augment -> normalise -> erase -> mixup or cutmix -> loss with soft targets ----
    device_images = DeviceImages(train_images, accelerator.device, config.data.on_device)
    loss_of = finetuning_loss(prepared, device_images, len(class_names), config)

    # ---- evaluation: validation images choose the checkpoint, test images never do ----
    def score(role: str) -> tuple[dict[str, Any], NDArray[np.float32]]:
        part, scored = images[role], average.module if average else prepared
        with accelerator.autocast():  # the average is not prepared
            probabilities = infer(accelerator, class_probabilities, scored, part, config.data, plan.eval_batch_size)
        return classification_metrics(probabilities, part.labels, class_names), probabilities

    def validate(step: int) -> dict[str, float]:
        scores, _ = score("validation")
        return {f"eval/{key}": scores[key] for key in ("loss", "accuracy", "f1")}

    # ---- train, from where an unfinished run stopped ----
    state = run.checkpoints.resume()
    sampler = BatchSampler(plan, config.train.seed, accelerator.process_index)
    evaluations = [Evaluation("validation", plan.steps(config.train.eval_every_epochs), validate)]
    training = Training(accelerator, prepared, optimizer, config.train, sampler, loss_of, evaluations, probed, average)
    plan = run.fit_minutes(training, plan, state.step)
    facts = {
        **{f"num_{role}_images": len(part) for role, part in images.items()},
        "labels": train_images.note or "all labels",
        "data_fingerprint": train_images.fingerprint,
        "validation_fingerprint": images["validation"].fingerprint,
        "test_fingerprint": images["test"].fingerprint,
        **start_facts(start),
        "start_probe": probe,
        "is_compiled": is_compiled,
    }
    lines = {
        "images": ", ".join(f"{len(part)} {role}" for role, part in images.items())
        + (f": {train_images.note}" if train_images.note else ""),
        "model": f"{len(class_names)} classes, from {config.model.init}",
    }
    log = run.start_log(state.step, plan, model, facts, lines)
    state = train(training, plan, state, log, run.checkpoints, best_key="eval/accuracy")

    # ---- the best checkpoint on validation images, once on test images ----
    assert state.best_step is not None
    run.checkpoints.load(run.checkpoints.path(state.best_step))
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
        **probe,
    }

    # ---- share: predictions, figure, model/ with its card, and final metrics ----
    complete: Any = average.module if average else whole()
    if accelerator.is_main_process:
        write_predictions(folder / "predictions.parquet", images["test"], probabilities, seen)
        write_predictions(folder / "validation_predictions.parquet", images["validation"], validation_probabilities)
        title = f"{figures.label_of(folder.name, 40)}: test images"
        figure = charts.confusion_figure({title: test["confusion_matrix"]}, class_names)
        log.picture("confusion", figure, plan.total_steps)
        curves = charts.curves_figure({folder.name: [read_metrics(folder)]})
        pictures = {
            "Confusion matrix of the test images": figures.save(figure, folder / "figures" / "confusion.png"),
            "Accuracy and loss during training": figures.save(curves, folder / "figures" / "curves.png"),
        }
        hub.save_model(folder / "model", complete, config, metrics, audit, log.record(), pictures)
    log.finish(metrics)
    accelerator.print(
        f"test accuracy {test['accuracy']:.4f}, macro-F1 {test['f1']:.4f} (epoch {metrics['best_epoch']:g}, the best "
        f"on validation); model is in {folder / 'model'}\n{describe_seen(seen, unseen)}"
    )
    if probe and is_pretrained:
        num_validation = len(images["validation"])
        accelerator.print(compare_with_probe(accelerator, config, probe, validation["accuracy"], num_validation))
    run.end()
