"""Pre-train a masked autoencoder on unlabelled images.

accelerate launch scripts/pretrain.py --config configs/pretrain/digits.yaml
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_hf.config import parse
from mae_hf.config.commands import PretrainConfig
from mae_hf.data.locations import check_source


def main(argv: Sequence[str] | None = None) -> None:
    """Pre-trains as the command line says; an unfinished run goes on, a finished one is left alone."""
    config = parse.read_command(PretrainConfig, argv, prog="scripts/pretrain.py")

    folder = Path(config.output_dir)
    if not (folder / "metrics.json").exists():  # the data of a finished run may be gone
        for source in (*config.data.sources, *config.audit.sources):
            # before the imports that take seconds
            check_source(source, streaming=config.data.streaming and source in config.data.sources)

    from accelerate.utils import set_seed

    from mae_hf import hub
    from mae_hf.data.dataset import (
        DeviceImages,
        ImageSet,
        load_evaluation_images,
        load_pretraining_images,
        load_probe_images,
    )
    from mae_hf.data.stream.notes import describe_notes, read_notes
    from mae_hf.data.stream.reader import Stream, load_stream, open_stream
    from mae_hf.evaluation.inference import held_out_loss
    from mae_hf.evaluation.probing import ONLINE_IMAGES, ONLINE_NOTE, online_probe
    from mae_hf.evaluation.reconstruction import save_reconstructions
    from mae_hf.files import write_text
    from mae_hf.leakage.audit import audit_held_out, audit_pretraining, finish_stream_audit, stream_search
    from mae_hf.leakage.record import AUDIT, audit_json, describe_audit
    from mae_hf.models.mae import build_mae, export_encoder
    from mae_hf.models.positions import check_positions
    from mae_hf.training.checkpoint import Checkpoints
    from mae_hf.training.distributed import check_same, check_shared, prepare, start_accelerator
    from mae_hf.training.hardware import attention_for, compile_layers, use_cpu_well
    from mae_hf.training.lock import RunLock
    from mae_hf.training.loop import Evaluation, Sampler, batch_sampler, train
    from mae_hf.training.losses import pretraining_loss
    from mae_hf.training.optim import build_optimizer
    from mae_hf.training.run_folder import RunLog, inspect_run, read_metrics

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

    # ---- data ----
    train_images: ImageSet | Stream
    with accelerator.local_main_process_first():
        evaluation = load_evaluation_images(config.data, config.audit.sources, config.model.image_size)
        if config.data.streaming:
            train_images, held_out = load_stream(config.data, config.model.image_size)
            find_duplicate = stream_search(held_out, evaluation)
            held_out, audit = audit_held_out(held_out, evaluation, config.audit.leave_out)
        else:
            train_images, held_out = load_pretraining_images(config.data, config.model.image_size)
            train_images, held_out, audit = audit_pretraining(
                train_images, held_out, evaluation, config.audit.leave_out
            )
    plan = config.train.plan(len(train_images), accelerator.num_processes)

    # ---- model ----
    set_seed(config.train.seed)
    model = build_mae(config.model, attention_for(accelerator))
    check_positions(model)
    optimizer = build_optimizer(model, config.train)
    prepared, optimizer, whole = prepare(accelerator, model, optimizer, plan, config.train)

    # ---- a step: rows -> images -> crop, flip -> normalise -> mask -> loss over the hidden patches ----
    streamed = None
    sampler: Sampler
    if isinstance(train_images, Stream):
        streamed = open_stream(
            train_images, config, plan, accelerator.device, accelerator.process_index, find_duplicate
        )
        sampler = streamed.sampler
        loss_of = pretraining_loss(prepared, streamed, config)
    else:
        sampler = batch_sampler(accelerator, config.train, plan)
        device_images = DeviceImages(train_images, accelerator.device, config.data.on_device)
        loss_of = pretraining_loss(prepared, device_images, config)
    is_compiled = compile_layers(accelerator, prepared, config.train.compile)

    # ---- go on where an unfinished run stopped ----
    checkpoints = Checkpoints(folder / "checkpoints", config.train.keep_checkpoints)
    state = checkpoints.resume(accelerator)

    # ---- labelled images to probe the encoder on while it learns ----
    labelled = None
    if config.train.probe_every_epochs and not config.data.streaming:
        with accelerator.local_main_process_first():
            labelled = load_probe_images(config.data, config.model.image_size, ONLINE_IMAGES)

    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {
        "num_train_images": len(train_images),
        "num_held_out_images": len(held_out),
        "num_test_duplicates": audit.num_test_duplicates,
        "num_validation_duplicates": audit.num_validation_duplicates,
        "duplicates_left_out": audit.left_out,
        "data_fingerprint": train_images.fingerprint,
        "num_parameters": num_parameters,
        "is_compiled": is_compiled,
        "probe": ONLINE_NOTE if labelled else None,
    }
    log = RunLog(accelerator, config, state.step, facts, lock)
    if accelerator.is_main_process:
        write_text(folder / AUDIT, audit_json(audit))
    accelerator.print(
        f"run             {folder}, from step {state.step}\n"
        f"images          {len(train_images)} to train on, {len(held_out)} held out\n"
        f"audit           {describe_audit(audit)}\n"
        f"model           {num_parameters / 1e6:.1f} M parameters, {config.model.num_visible} of "
        f"{config.model.num_patches} patches visible\n"
        f"device          {accelerator.device.type}, precision {accelerator.mixed_precision}"
        f"{', compiled layers' if is_compiled else ''}\n{plan.describe(config.train)}\n"
        f"probe           {ONLINE_NOTE if labelled else 'none'}"
    )

    # ---- evaluations: held-out images, with fixed masks and without augmentation; figures; a probe ----
    pictured = held_out.batch(range(min(8, len(held_out))))

    def loss_on_held_out(step: int) -> dict[str, float]:
        num_patches = config.model.num_patches
        loss = held_out_loss(accelerator, prepared, held_out, config.data, num_patches, plan.eval_batch_size)
        return {"eval/loss": loss}

    def draw(step: int) -> dict[str, float]:
        complete = whole()  # by every process
        if complete is not None and accelerator.is_main_process:
            save_reconstructions(complete, pictured, config.data, folder / "figures", step)
        return {}

    evaluations = [
        Evaluation("held-out loss", plan.eval_every_steps, loss_on_held_out),
        Evaluation("figures", plan.steps(config.train.figure_every_epochs), draw),
    ]
    if labelled:
        voters, queries = labelled

        def probe(step: int) -> dict[str, float]:
            return online_probe(accelerator, whole(), voters, queries, config.data, plan.eval_batch_size)

        evaluations.append(Evaluation("probe", plan.steps(config.train.probe_every_epochs), probe))

    with streamed.reading(state.step, plan.total_steps) if streamed else contextlib.nullcontext():
        train(
            accelerator,
            prepared,
            optimizer,
            config=config.train,
            plan=plan,
            state=state,
            sampler=sampler,
            loss_of=loss_of,
            evaluations=evaluations,
            log=log,
            checkpoints=checkpoints,
        )

    # ---- which streamed images were duplicates, or could not be decoded ----
    if streamed:
        accelerator.wait_for_everyone()
        notes = read_notes(folder)
        audit = finish_stream_audit(audit, notes)
        accelerator.print(f"audit           {describe_audit(audit)}\n{describe_notes(notes)}")
        if accelerator.is_main_process:
            write_text(folder / AUDIT, audit_json(audit))

    # ---- what is shared ----
    kept = ("step", "epoch", "train/loss", "eval/loss")
    metrics: dict[str, Any] = {
        key: value
        for key, value in read_metrics(folder)[-1].items()
        if (key in kept or key.startswith("probe/")) and value is not None  # null: it was not finite
    }
    complete = whole()
    if complete is not None and accelerator.is_main_process:
        hub.save_model(folder / "model", complete, config, metrics, encoder=export_encoder(complete), audit=audit)
        if config.hub.push:
            accelerator.print(f"uploaded to {hub.push(folder / 'model', config.hub)}")
    log.finish(metrics)
    loss = f"{metrics['eval/loss']:.4f}" if "eval/loss" in metrics else "not finite"
    accelerator.print(f"held-out loss {loss}; model and encoder are in {folder / 'model'}")
