"""What is measured with few labels: the label sets of a protocol, probes of frozen features, and fine-tuning."""

import itertools
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn
from transformers import ViTModel

from mae_hf.config import parse
from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.data import NUM_FOLDS, DataConfig
from mae_hf.config.model import ClassifierConfig
from mae_hf.config.runs import MACHINE_SETTINGS, FinetuneConfig, HubConfig
from mae_hf.data.dataset import ImageSet, load_labelled_images
from mae_hf.data.splits import Split, few_label_rows
from mae_hf.errors import RunError, RunStopped
from mae_hf.evaluation.inference import POOLINGS, infer, pooled_features
from mae_hf.evaluation.probes import CLASSIFIERS, Labelled
from mae_hf.files import write_npz
from mae_hf.models.classifier import build_classifier
from mae_hf.models.io import SHAPE_KEYS
from mae_hf.models.locate import SCRATCH
from mae_hf.training.finished_runs import read_run
from mae_hf.training.run_folder import inspect_run
from mae_hf.training.signals import TERMINATING, handling

BUDGETS = (0.01, 0.05, 0.1, 0.25, 1.0)
MIN_STEPS = 200  # of a fine-tuning whose recipe does not say a minimum
Measured = tuple[dict[str, Any], NDArray[np.floating]]  # for a line of results.jsonl; probabilities of test images


class LabelSet(NamedTuple):
    """One set of labels to learn from."""

    name: str  # of its lines and run folders, such as `fold-3` or `budget-0.05-draw-1`
    draw: int  # number of the fold, or of the draw of this budget
    data: DataConfig  # restricts the labels to this set
    rows: NDArray[np.int64]  # its rows of the train split: the same images for every method


@dataclass(frozen=True, eq=False)
class Protocol:
    """What is measured: a method on each of its label sets."""

    config: FewLabelsConfig
    split: Split  # the labelled train split, which may have official folds
    rows: NDArray[np.int64]  # the rows of it that have an image and are not test images, ascending

    @property
    def is_official(self) -> bool:
        """Whether the results follow the official protocol of STL-10."""
        return self.config.protocol == "folds" and self.split.folds is not None

    @property
    def note(self) -> str:
        """A line for every output: what the labels are, and whether the protocol is official."""
        if self.config.protocol == "budgets":
            parts = ", ".join(f"{100 * part:g}" for part in BUDGETS)
            drawn = "drawn by class with fixed seeds, two a class at least"
            return f"UNOFFICIAL label budgets: {parts} % of the labels, {drawn}"
        if self.split.folds is None:
            return f"UNOFFICIAL folds: {NUM_FOLDS} of a fifth of the training images, drawn by class with a fixed seed"
        return f"official protocol: the {len(self.split.folds)} predefined folds of fold_indices.txt"

    def label_sets(self, method: str) -> list[LabelSet]:
        """Return the label sets to measure `knn`, `linear` or `finetune` on."""
        if self.config.protocol == "folds":
            num_folds = NUM_FOLDS if self.split.folds is None else len(self.split.folds)
            return [self._label_set(f"fold-{fold}", fold, fold=fold) for fold in range(num_folds)]
        sets = []
        for fraction in BUDGETS:
            # all labels are a single set: a probe is measured on it once, fine-tuning with several seeds
            for draw in range(self.config.draws if fraction < 1 or method == "finetune" else 1):
                name, seed = f"budget-{fraction:g}-draw-{draw}", draw if fraction < 1 else 0
                sets.append(self._label_set(name, draw, label_fraction=fraction, label_seed=seed))
        return sets

    def _label_set(self, name: str, draw: int, **restriction: Any) -> LabelSet:
        data = replace(self.config.data, **restriction)
        return LabelSet(name, draw, data, few_label_rows(self.split, self.rows, data))


def load_protocol_images(data: DataConfig, image_size: int) -> tuple[ImageSet, ImageSet]:
    """Return the labelled train images, also the ones that a run validates on, and the test images."""
    images = load_labelled_images(replace(data, label_fraction=1.0), image_size)
    return ImageSet([*images["train"].parts, *images["validation"].parts]), images["test"]


# ---- probes of frozen features ----


def load_features(
    arm: str, accelerator: Accelerator, encoder: nn.Module, train: ImageSet, test: ImageSet, config: FewLabelsConfig
) -> dict[str, np.ndarray]:
    """Return the features of `train` and `test`, by ROLE-POOLING, from features-ARM.npz, or compute and store them."""
    path = Path(config.output_dir) / f"features-{arm}.npz"
    if not path.exists():  # `Measurements` has checked that what exists is of this encoder and these images
        prepared, features = accelerator.prepare(encoder), dict[str, np.ndarray]()
        for role, images in (("train", train), ("test", test)):
            values = infer(accelerator, pooled_features, prepared, images, config.data, config.batch_size)
            features |= {f"{role}-{pooling}": values[:, number] for number, pooling in enumerate(POOLINGS)}
        write_npz(path, **features)
    with np.load(path) as file:
        return dict(file)


def measure_probe(
    name: str, pooling: str, features: dict[str, np.ndarray], train: ImageSet, label_set: LabelSet
) -> Measured:
    """Measure a probe of the train images in a label set, given the features of all of them and of the test images."""
    here = np.isin(train.split_rows, label_set.rows)
    labelled = Labelled(features[f"train-{pooling}"][here], train.labels[here])  # some classes may be missing
    found = CLASSIFIERS[name](labelled, features[f"test-{pooling}"], len(train.class_names))
    line: dict[str, Any] = {"num_labels": len(labelled.labels), "num_validation_labels": 0}
    line |= {"validation_accuracy": found.cross_validated_accuracy, "settings": found.settings}
    return line, found.probabilities


# ---- fine-tuning ----


def shape_of(encoder: ViTModel) -> dict[str, Any]:
    """Return the architecture of an encoder, by the fields of `EncoderConfig`."""
    return {key: getattr(encoder.config, key) for key in SHAPE_KEYS}


def random_encoder(encoder: ViTModel, class_names: Sequence[str], attn_implementation: str) -> ViTModel:
    """Return the same network, in eval mode, with the weights that fine-tuning from scratch with seed 0 starts from."""
    config = ClassifierConfig(init=SCRATCH, **shape_of(encoder))
    return build_classifier(config, class_names, attn_implementation, seed=0).vit.eval()


def describe_recipe(recipe: FinetuneConfig) -> dict[str, str]:
    """Return the settings that all fine-tunings of a folder share, by name, except data and architecture."""
    shared = ("augment.", "train.", "model.drop_path", "model.head")
    settings = {key: str(value) for key, value in parse.flatten(recipe).items() if key.startswith(shared)}
    return {f"recipe.{key}": value for key, value in settings.items() if key not in MACHINE_SETTINGS}


def plan_finetunings(
    protocol: Protocol, recipe: FinetuneConfig, encoders: Mapping[str, ViTModel]
) -> dict[str, FinetuneConfig]:
    """Return the config of every fine-tuning by LABELSET-ARM, the name of its run folder. Writes nothing.

    Each has at least 200 steps if the recipe does not say a minimum; its seed is the recipe's plus the number of the
    draw. Encoders are by arm, `model` and `scratch`. A folder with a run of a different config is a ConfigError.
    """
    runs = {}
    for label_set, (arm, encoder) in itertools.product(protocol.label_sets("finetune"), encoders.items()):
        init = SCRATCH if arm == "scratch" else protocol.config.model
        model, name = replace(recipe.model, init=init, **shape_of(encoder)), f"{label_set.name}-{arm}"
        min_steps, seed = recipe.train.min_steps or MIN_STEPS, recipe.train.seed + label_set.draw
        train = replace(recipe.train, min_steps=min_steps, seed=seed, trackers=())
        folder = str(Path(protocol.config.output_dir) / "runs" / name)
        runs[name] = replace(recipe, data=label_set.data, model=model, train=train, hub=HubConfig(), output_dir=folder)
        inspect_run(runs[name])
    return runs


def measure_finetuning(config: FinetuneConfig) -> Measured:
    """Measure a fine-tuning: the best epoch on validation images, on all test images.

    It runs or resumes as a command in its own process, which frees its memory afterwards. A finished run is read, and
    its checkpoints are removed, because there are many runs. ConfigError if the folder holds a run with a different
    config, or files that contradict each other; RunError names the log. RunStopped after a signal, once it has saved.
    """
    folder = Path(config.output_dir)
    if inspect_run(config) != "finished":
        file, log = (folder.with_name(f"{folder.name}.{kind}") for kind in ("yaml", "log"))
        folder.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(parse.to_yaml(config))
        command = [sys.executable, "-m", "mae_hf", "finetune", "--config", str(file)]
        received, num_sent = list[int](), 0
        with log.open("a") as output, handling(lambda number, frame: received.append(number)):
            child = subprocess.Popen(command, stdout=output, stderr=output)
            while child.poll() is None:
                for number in received[num_sent:]:
                    child.send_signal(number)
                    num_sent += 1
                time.sleep(0.1)
        # below 0: a signal has ended it, while Python was still starting
        number = child.returncode - 128 if child.returncode > 0 else next(iter(received), 0)
        if number in (*TERMINATING, signal.SIGINT):
            raise RunStopped(f"{signal.Signals(number).name}: the fine-tuning {folder} is saved", number)
        if child.returncode != 0:
            cause = (log.read_text(errors="replace").splitlines() or [f"exit code {child.returncode}"])[-1].strip()
            raise RunError(f"the fine-tuning {folder} failed ({cause}): see {log}; the same command resumes here")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    run = read_run(folder)
    num_validation = run.record.num_validation_images or 0
    line = {
        "num_labels": (run.record.num_train_images or 0) + num_validation,
        "num_validation_labels": num_validation,
        "validation_accuracy": float(run.validation.correct.mean()),
        "settings": {"best_epoch": run.best_epoch, "epochs": config.train.epochs, "seed": config.train.seed},
    }
    return line, run.test.probabilities
