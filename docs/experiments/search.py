"""Experiment: which pre-training recipe is worth its minutes, all settings at equal cost.

env OMP_NUM_THREADS=1 MAE_HF_CACHE=CACHE taskset -c 1 \
    python docs/experiments/search.py OUTPUT UNLABELED STL10 MINUTES [SETTING...]

UNLABELED and STL10 are sources as in `--data.source`. Without names, every setting of `SETTINGS` runs, in their order.
The same command resumes: a finished setting is skipped, an unfinished one continues at its last checkpoint.

Equal cost: a step of each setting is measured once in CPU seconds of one core, in turns with the reference, and kept in
OUTPUT/costs.json. A setting then gets the number of steps that take MINUTES. A busy machine changes nothing.

Judgement: kNN and logistic regression on frozen features of the 5,000 train images, 5 folds, paired with the reference.
Test images are opened for the audit only, which leaves their duplicates out of pre-training.

OUTPUT receives results.jsonl (one line for each setting, failures too), table.md and a run folder for each setting.
"""

import json
import sys
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from mae_hf import cli
from mae_hf.checkpoint import Checkpoints, TrainState
from mae_hf.config import DataConfig, PretrainConfig, RunStopped
from mae_hf.data.augment import augment, normalize
from mae_hf.data.draws import uniform
from mae_hf.data.images import (
    DeviceImages,
    ImageSet,
    load_labelled_images,
    load_pretraining_images,
    load_test_images,
)
from mae_hf.data.seen import audit_pretraining, describe_audit
from mae_hf.evaluation.inference import extract_features
from mae_hf.evaluation.probes import Labelled, knn_probabilities
from mae_hf.machine import attention_for, use_cpu_well
from mae_hf.models.mae import MaskedAutoencoder, build_mae, export_encoder
from mae_hf.models.positions import check_positions
from mae_hf.objectives import LossOf
from mae_hf.optim import build_optimizer
from mae_hf.tracking import RunLog, environment, inspect_run
from mae_hf.training import batch_sampler, gradients, train, update

PRESET = "configs/pretrain/stl10_tiny.yaml"
WARMUP, SAVE_EVERY_STEPS, PROBE_ROUNDS = 0.05, 100, 15
STRENGTH = 0.01  # of the logistic regression; one value for all settings
CONTRAST_TEMPERATURE, PROJECTION = 0.1, 128
PROBES = ("knn cls", "knn mean", "linear cls", "linear mean")


@dataclass(frozen=True)
class Setting:
    """What one row of the table changes in the `stl10_tiny` preset.

    Args:
        name: of the row and of its run folder.
        words: flags of `scripts/pretrain.py`.
        uniformity: weight of the mean squared cosine between CLS outputs of different images (U-MAE, 2210.08344).
        local_mean: side in pixels of the cells whose mean, interpolated, is removed from the target; 0 keeps it.
        crops: masked crops of each image in a batch.
        invariance: weight of 1 - cosine between the CLS outputs of two crops of an image.
        contrast: weight of InfoNCE between two crops, through a small projector (CAN, 2210.16870).
        cost_as: setting with the same work in a step, whose measured cost counts; empty measures this one.
    """

    name: str
    words: str = ""
    uniformity: float = 0.0
    local_mean: int = 0
    crops: int = 1
    invariance: float = 0.0
    contrast: float = 0.0
    cost_as: str = ""


NORM = "--model.norm_pix_loss=true --model.loss=mse"
HALF = "--train.batch_size=64 --train.base_lr=2.8e-3"  # peak rate 7e-4
PAIR = "--train.batch_size=64 --train.base_lr=4e-3"  # 128 crops, peak rate 1e-3
BASE = f"{NORM} {HALF}"
PATCH8 = "--model.patch_size=8 --model.decode_ratio=0.5"
WIDER = "--model.hidden_size=256 --model.num_attention_heads=4 --model.intermediate_size=1024"
REFERENCE = Setting("reference")  # raw pixels, L1, batch 128, peak rate 1e-3
SETTINGS = (
    REFERENCE,
    Setting("base", BASE, uniformity=0.01),
    Setting("base, patch 8", f"{BASE} {PATCH8}", uniformity=0.01),
    Setting("two crops, contrast 0.05", f"{NORM} {PAIR}", crops=2, contrast=0.05),
    Setting("base, 12 layers", f"{BASE} --model.num_hidden_layers=12", uniformity=0.01),
    Setting("base, local mean removed", f"--model.loss=mse {HALF}", uniformity=0.01, local_mean=8),
    Setting("base, patch 8, 8 layers", f"{BASE} {PATCH8} --model.num_hidden_layers=8", uniformity=0.01),
    Setting(
        "base, twice the rate", f"{NORM} --train.batch_size=64 --train.base_lr=5.6e-3", uniformity=0.01, cost_as="base"
    ),
    Setting("two crops, invariance 0.1, U-MAE 0.1", f"{NORM} {PAIR}", uniformity=0.1, crops=2, invariance=0.1),
    Setting("base, U-MAE 0.1", BASE, uniformity=0.1, cost_as="base"),
    Setting("base, decode_ratio 0.5", f"{BASE} --model.decode_ratio=0.5", uniformity=0.01),
    Setting("base, batch 128", NORM, uniformity=0.01),
    Setting("base, 256 wide", f"{BASE} {WIDER}", uniformity=0.01),
    Setting("base, no U-MAE", BASE, cost_as="base"),
    Setting("base, seed 1", f"{BASE} --train.seed=1", uniformity=0.01, cost_as="base"),
)
"""`base`: normalised patches, MSE, U-MAE 0.01, batch 64, peak rate 7e-4; 192 wide, 6 layers, patch 12."""


class Trial:
    """A setting that is ready to train: model, optimizer and loss.

    Args:
        setting: what to train.
        images: to pre-train on.
        folder: of the run.
        data: source of the images.
        steps: optimizer steps of the run.
    """

    def __init__(self, setting: Setting, images: ImageSet, folder: Path, data: DataConfig, steps: int) -> None:
        self.accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        use_cpu_well(self.accelerator)
        words = [f"--config={PRESET}", f"--output_dir={folder}", *setting.words.split()]
        words.append(f"--data.source={json.dumps(data.source)}")
        config = cli.parse(PretrainConfig, words, prog="search")
        epoch = len(images) // config.train.batch_size  # in steps
        epochs = {"epochs": steps / epoch, "warmup_epochs": WARMUP * steps / epoch, "eval_every_epochs": steps / epoch}
        schedule = replace(config.train, **epochs, save_every_epochs=SAVE_EVERY_STEPS / epoch)
        self.config = replace(config, train=schedule)
        self.plan = self.config.train.plan(len(images), 1)
        set_seed(self.config.train.seed)
        self.model = build_mae(self.config.model, attention_for(self.accelerator))
        check_positions(self.model)
        if setting.contrast:
            width = self.config.model.hidden_size
            projector = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, PROJECTION))
            self.model.add_module("projector", projector)
        if setting.local_mean:
            remove_local_mean(self.model, setting.local_mean)
        optimizer = build_optimizer(self.model, self.config.train)
        self.prepared, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.sampler = batch_sampler(self.accelerator, self.config.train, self.plan)
        device_images = DeviceImages(images, self.accelerator.device, "never")
        self.loss_of = search_loss(setting, self.model, self.prepared, device_images, self.config)

    def step(self, index: int) -> float:
        """Train for one step outside a run and return its CPU seconds."""
        started = time.process_time()
        gradients(self.accelerator, self.prepared, self.sampler, self.loss_of, index, self.config.train)
        update(self.optimizer, torch.zeros(()))
        return time.process_time() - started


def remove_local_mean(model: MaskedAutoencoder, side: int) -> None:
    """Make `model` predict pixels without their local mean, scaled to standard deviation 1."""
    patchify = model.patchify

    def patchify_detail(pixel_values: Tensor) -> Tensor:
        low = F.interpolate(F.avg_pool2d(pixel_values, side), size=pixel_values.shape[2:], mode="bilinear")
        detail = pixel_values - low
        return patchify(detail / detail.std())

    model.patchify = patchify_detail  # its only caller makes the target


def search_loss(
    setting: Setting, model: MaskedAutoencoder, prepared: nn.Module, images: DeviceImages, config: PretrainConfig
) -> LossOf:
    """Return the loss of a batch: reconstruction, and the terms of the setting on the CLS outputs."""
    outputs: list[Tensor] = []
    model.vit.register_forward_hook(lambda _, __, output: outputs.append(output.last_hidden_state[:, 0].float()))

    def crop(rows: np.ndarray, epoch: int, seed: int) -> tuple[Tensor, Tensor]:
        pixels = augment(images.batch(rows), rows, config.augment, seed, epoch)
        noise = uniform(seed, epoch, rows, config.model.num_patches, "mask").astype(np.float32)
        return normalize(pixels, config.data.image_mean, config.data.image_std), torch.from_numpy(noise)

    def loss_of(rows: np.ndarray, epoch: int, batch_index: int) -> Tensor:
        crops = [crop(rows, epoch, config.train.seed + 1000 * number) for number in range(setting.crops)]
        pixel_values, noise = (torch.cat(parts) for parts in zip(*crops, strict=True))
        outputs.clear()
        loss: Tensor = prepared(pixel_values, noise=noise, loss_only=True).loss
        cosines = cosines_of(outputs[0])
        row = torch.arange(len(cosines)) % len(rows)
        partner = (torch.arange(len(cosines)) + len(rows)) % len(cosines)  # the other crop of the image
        if setting.uniformity:
            loss = loss + setting.uniformity * cosines[row[:, None] != row].square().mean()
        if setting.invariance:
            loss = loss + setting.invariance * (1 - cosines[torch.arange(len(cosines)), partner]).mean()
        if setting.contrast:
            logits = cosines_of(model.projector(outputs[0])) / CONTRAST_TEMPERATURE
            loss = loss + setting.contrast * F.cross_entropy(logits - 1e9 * torch.eye(len(logits)), partner)
        return loss

    return loss_of


def cosines_of(features: Tensor) -> Tensor:
    """Return the cosine between each two of the features (B, D), as (B, B)."""
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


def measure_costs(output: Path, settings: list[Setting], images: ImageSet, data: DataConfig) -> dict[str, float]:
    """Return the CPU seconds of a step of each setting; measure the missing ones in turns with the reference.

    A setting's cost is the quiet reference's seconds times the median ratio to the reference within a round.
    """
    file = output / "costs.json"
    costs: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    missing = {setting.cost_as or setting.name for setting in settings} - costs.keys()
    if missing:
        chosen = [setting for setting in SETTINGS if setting == REFERENCE or setting.name in missing]
        trials = [Trial(setting, images, output / "cost", data, 100) for setting in chosen]
        rounds = [[trial.step(index) for trial in trials] for index in range(PROBE_ROUNDS + 2)]
        seconds = np.array(rounds[2:])  # the first two warm up
        quiet = costs.setdefault(REFERENCE.name, float(np.median(seconds[:, 0])))
        ratios = np.median(seconds / seconds[:, :1], axis=0)
        costs |= {setting.name: quiet * float(ratio) for setting, ratio in zip(chosen, ratios, strict=True)}
        file.write_text(json.dumps(costs, indent=2) + "\n")
    return costs


def run(setting: Setting, folder: Path, steps: int, images: ImageSet, data: DataConfig) -> Trial:
    """Train a setting to its last step, from its last checkpoint if it has one."""
    trial = Trial(setting, images, folder, data, steps)
    inspect_run(trial.config)
    checkpoints = Checkpoints(folder / "checkpoints", 2)
    state: TrainState = checkpoints.resume(trial.accelerator)
    print(f"{setting.name}: step {state.step} of {steps}, {time.strftime('%H:%M')}", flush=True)

    facts = {"data_fingerprint": images.fingerprint}
    train(
        trial.accelerator,
        trial.prepared,
        trial.optimizer,
        config=trial.config.train,
        plan=trial.plan,
        state=state,
        sampler=trial.sampler,
        loss_of=trial.loss_of,
        evaluate=lambda step: {},  # losses of different targets cannot be compared
        log=RunLog(trial.accelerator, trial.config, state.step, facts),
        checkpoints=checkpoints,
    )
    return trial


def probe(trial: Trial, images: ImageSet, data: DataConfig) -> dict[str, np.ndarray]:
    """Return which of the images each probe classifies correctly when their fold is left out, bool (n,) by probe."""
    encoder = export_encoder(trial.model.eval()).eval()
    with trial.accelerator.autocast():
        features = extract_features(trial.accelerator, encoder, images, data, 256)
    right: dict[str, np.ndarray] = {}
    labels = images.labels
    for pooling, values in features.items():
        knn, linear = np.empty_like(labels), np.empty_like(labels)
        for rest, fold in StratifiedKFold(5, shuffle=True, random_state=0).split(values, labels):
            knn[fold] = knn_probabilities(Labelled(values[rest], labels[rest]), values[fold], 10).argmax(axis=1)
            regression = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2000))
            linear[fold] = regression.fit(values[rest], labels[rest]).predict(values[fold])
        right |= {f"knn {pooling}": knn == labels, f"linear {pooling}": linear == labels}
    return right


def write_table(output: Path) -> None:
    """Write table.md: accuracy in per cent, and the difference to the reference with its paired standard error."""
    text = f"| setting | minutes | steps | images | {' | '.join(PROBES)} |\n{'|---' * (4 + len(PROBES))}|\n"
    for line in read_lines(output / "results.jsonl"):
        name, minutes = line["name"], line["minutes"]
        base, right = (run_folder(output, row, minutes) / "right.npz" for row in (REFERENCE.name, name))
        cells = [name, f"{minutes:g}", f"{line['steps']:,}", f"{line['images']:,}", line.get("error", "")]
        for column in PROBES if right.exists() else ():
            values = np.load(right)[column].astype(float)
            cells.append(f"{100 * values.mean():.1f}")
            if base.exists() and base != right:
                gain = values - np.load(base)[column]
                cells[-1] += f" ({100 * gain.mean():+.1f} ± {100 * gain.std() / len(gain) ** 0.5:.1f})"
        text += f"| {' | '.join(filter(None, cells))} |\n"
    (output / "table.md").write_text(text)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines; none where it is missing."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_folder(output: Path, name: str, minutes: float) -> Path:
    """Return the run folder of a setting."""
    return output / "".join(c if c.isalnum() or c == "." else "-" for c in f"{name} {minutes:g} minutes")


def main() -> None:
    """Run the settings that have no line in results.jsonl."""
    output, minutes = Path(sys.argv[1]), float(sys.argv[4])
    settings = [setting for setting in SETTINGS if not sys.argv[5:] or setting.name in sys.argv[5:]]
    results = output / "results.jsonl"
    output.mkdir(parents=True, exist_ok=True)
    data = DataConfig(source=sys.argv[2:4])

    tests = load_test_images(data, (), 96)
    images, held_out = load_pretraining_images(data, 96)
    images, held_out, audit = audit_pretraining(images, held_out, tests, leave_out=True)
    print(f"{len(images)} images to train on, {len(held_out)} held out; {describe_audit(audit)}", flush=True)
    labelled = load_labelled_images(DataConfig(source=sys.argv[3]), 96, ("train", "validation"))
    train_images = ImageSet([*labelled["train"].parts, *labelled["validation"].parts])
    costs = measure_costs(output, settings, images, data)

    for setting in settings:
        if any((line["name"], line["minutes"]) == (setting.name, minutes) for line in read_lines(results)):
            continue
        folder = run_folder(output, setting.name, minutes)
        cost = costs[setting.cost_as or setting.name]
        steps = round(60 * minutes / cost)
        line: dict[str, Any] = asdict(setting) | {"minutes": minutes, "steps": steps, "images": 0}
        line |= {"seconds_per_step": cost, "num_duplicates_left_out": audit["num_copies"]}
        try:
            trial = run(setting, folder, steps, images, data)
            right = probe(trial, train_images, data)
            np.savez(folder / "right.npz", **right)
            line |= {"images": steps * trial.config.train.batch_size}
            line |= {key: environment(trial.accelerator)[key] for key in ("git_commit", "device", "mixed_precision")}
            line |= {column: round(100 * float(values.mean()), 2) for column, values in right.items()}
        except RunStopped:
            raise
        except Exception as error:  # a setting that diverges is a result, too
            traceback.print_exc()
            line["error"] = " ".join(f"{type(error).__name__}: {error}".split())
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        write_table(output)


if __name__ == "__main__":
    main()
