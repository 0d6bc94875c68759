"""Pre-train a masked autoencoder on unlabelled images."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from accelerate.utils import set_seed

from mae_hf import figures, hub
from mae_hf.commands.next_steps import describe_next
from mae_hf.commands.open_run import open_run
from mae_hf.config.runs import PretrainConfig
from mae_hf.data import dataset
from mae_hf.data.sampler import BatchSampler
from mae_hf.data.stream.order import Stream
from mae_hf.data.stream.reader import StreamedImages, describe_notes, load_stream, read_notes
from mae_hf.evaluation.inference import held_out_loss
from mae_hf.evaluation.probing import ONLINE_IMAGES, ONLINE_NOTE, encoder_probe
from mae_hf.evaluation.reconstruction import OVER_TIME, save_reconstructions
from mae_hf.figures import charts
from mae_hf.files import write_json
from mae_hf.leakage import audit as leakage
from mae_hf.models.initialization import check_positions
from mae_hf.models.mae import build_mae, export_encoder
from mae_hf.models.origin import resolve, start_facts
from mae_hf.training.distributed import prepare
from mae_hf.training.hardware import attention_for, compile_layers
from mae_hf.training.loop import Evaluation, Training, train
from mae_hf.training.losses import pretraining_loss
from mae_hf.training.optim import build_optimizer
from mae_hf.training.run_folder import read_metrics


def pretrain(config: PretrainConfig) -> None:
    """Pre-train a masked autoencoder, from new or published weights, or resume an unfinished run."""
    config = resolve(config)
    run = open_run(config)
    if run is None:
        return
    accelerator, folder = run.accelerator, run.folder

    # ---- data: images to train on, held-out images, labelled images for a probe, and which are duplicates of test ----
    train_images: dataset.ImageSet | Stream
    probed = None  # labelled train images that vote, and validation images to classify
    with accelerator.local_main_process_first():
        evaluation = dataset.load_evaluation_images(config.data, config.audit.sources, config.model.image_size)
        if config.data.streaming:
            train_images, held_out = load_stream(config.data, config.model.image_size)
            find_duplicate = leakage.stream_search(held_out, evaluation)
        else:
            train_images, held_out = dataset.load_pretraining_images(config.data, config.model.image_size)
            probed = dataset.load_probe_images(config.data, config.model.image_size, ONLINE_IMAGES)
        train_images, held_out, audit = leakage.audit_pretraining(
            train_images, held_out, evaluation, config.audit.leave_out
        )
    start = run.start
    if not start.is_new:
        audit = leakage.continue_audit(audit, leakage.read_model_audit(start.init, start.revision))
    plan = run.plan(config, len(train_images))
    config.check_uniformity(plan)

    # ---- model ----
    set_seed(config.train.seed)
    model = build_mae(start, attention_for(accelerator))
    check_positions(model)
    optimizer = build_optimizer(model, config.train)
    prepared, optimizer, whole = prepare(accelerator, model, optimizer)
    is_compiled = compile_layers(accelerator, prepared, config.train.compile)

    # ---- a step: rows -> images -> crop, flip -> normalise -> mask -> loss over the masked patches ----
    rank, streamed = accelerator.process_index, None
    images: dataset.DeviceImages | StreamedImages
    if isinstance(train_images, Stream):
        images = streamed = StreamedImages(train_images, config, plan, accelerator.device, rank, find_duplicate)
    else:
        images = dataset.DeviceImages(train_images, accelerator.device, config.data.on_device)
    sampler = streamed.sampler if streamed else BatchSampler(plan, config.train.seed, rank)
    loss_of = pretraining_loss(prepared, images, config)

    # ---- evaluations: the loss on held-out images with fixed masks, figures of reconstructions, and probes ----
    pictured, batch_size = held_out.batch(range(min(8, len(held_out)))), plan.eval_batch_size

    def loss_on_held_out(step: int) -> dict[str, float]:
        loss = held_out_loss(accelerator, prepared, held_out, config.data, config.model.num_patches, batch_size)
        return {"eval/loss": loss}

    def draw(step: int) -> dict[str, float]:
        complete = whole()  # by every process
        if complete is not None and accelerator.is_main_process:
            figure = save_reconstructions(complete, pictured, config.data, folder / "figures", step)
            if run.log:
                run.log.picture("reconstruction", figure, step)
        return {}

    def probe(probes: Sequence[str], step: int) -> dict[str, float]:
        assert probed is not None
        started, complete = time.perf_counter(), whole()
        encoder = None if complete is None else export_encoder(complete)  # not prepared: no checkpoint holds it
        values, _ = encoder_probe(accelerator, encoder, *probed, config.data, batch_size, probes)
        return values | {"probe/seconds": time.perf_counter() - started}

    evaluations = [
        Evaluation("held-out loss", plan.steps(config.train.eval_every_epochs), loss_on_held_out),
        Evaluation("figures", plan.steps(config.train.figure_every_epochs), draw),
    ]
    if probed:
        online = ("knn", "rank")
        if every := config.train.probe_every_epochs:
            evaluations.append(Evaluation("probe", plan.steps(every), partial(probe, online), at_end=False))
        evaluations.append(Evaluation("last probe", sys.maxsize, partial(probe, (*online, "linear"))))

    # ---- train, from where an unfinished run stopped ----
    state = run.checkpoints.resume()
    reading = streamed.reading if streamed else None
    training = Training(accelerator, prepared, optimizer, config.train, sampler, loss_of, evaluations, reading=reading)
    plan = run.fit_minutes(training, plan, state.step)
    facts = {
        **start_facts(start),
        "num_train_images": len(train_images),
        "num_held_out_images": len(held_out),
        "data_fingerprint": train_images.fingerprint,
        "is_compiled": is_compiled,
        "probe": ONLINE_NOTE if probed else None,
    }
    decoder = "" if facts["init_has_decoder"] else " with a new decoder"
    origin = "new weights" if start.is_new else f"from {config.model.init}{decoder}"
    lines = {
        "images": f"{len(train_images)} to train on, {len(held_out)} held out",
        "audit": leakage.describe_audit(audit),
        "probe": ONLINE_NOTE if probed else "none",
        "model": f"{origin}, {config.model.num_visible} of {config.model.num_patches} patches visible",
    }
    log = run.start_log(state.step, plan, model, facts, lines)
    if accelerator.is_main_process:
        write_json(folder / leakage.AUDIT, asdict(audit))
    train(training, plan, state, log, run.checkpoints)

    # ---- which streamed images were duplicates, or could not be decoded ----
    if streamed:
        accelerator.wait_for_everyone()
        notes = read_notes(folder)
        audit = leakage.finish_stream_audit(audit, notes)
        accelerator.print(f"audit           {leakage.describe_audit(audit)}\n{describe_notes(notes)}")
        if accelerator.is_main_process:
            write_json(folder / leakage.AUDIT, asdict(audit))

    # ---- share: model/ with its card, and final metrics; a value that was not finite is null in the log ----
    history = read_metrics(folder)
    last = history[-1]
    probes = [key for key in last if key.startswith("probe/") and key != "probe/seconds"]
    metrics = {key: last[key] for key in ("step", "epoch", "train/loss", "eval/loss", *probes) if key in last}
    complete = whole()
    if complete is not None and accelerator.is_main_process:
        curves = charts.curves_figure({folder.name: [history]}, panels=charts.PRETRAINING)
        pictures = {
            "Reconstructions of held-out images during training": folder / "figures" / OVER_TIME,
            "Loss during training": figures.save(curves, folder / "figures" / "curves.png"),
        }
        hub.save_model(folder / "model", complete, config, metrics, audit, log.record(), pictures)
    log.finish(metrics)
    loss = f"{metrics['eval/loss']:.4f}" if "eval/loss" in metrics else "not finite"
    accelerator.print(f"held-out loss {loss}; encoder and autoencoder are in {folder / 'model'}")

    # ---- what the encoder is worth on validation images, and what to type next ----
    if probed:
        accelerator.print(describe_next(accelerator, config, probed, last))
    run.end()
