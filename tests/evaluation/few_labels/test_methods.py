"""Features that are computed once, probes against scikit-learn on them, and fine-tunings in processes of their own."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_folders
import torch
from accelerate import Accelerator
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import ViTConfig, ViTModel

from mae_hf.config import parse
from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.data import DataConfig
from mae_hf.config.runs import FinetuneConfig
from mae_hf.config.train import FinetuneTrainConfig
from mae_hf.data.sources import load_splits
from mae_hf.errors import ConfigError, RunError, RunStopped
from mae_hf.evaluation.few_labels import methods
from mae_hf.evaluation.few_labels.methods import (
    LabelSet,
    Protocol,
    describe_recipe,
    load_features,
    load_protocol_images,
    measure_finetuning,
    measure_probe,
    plan_finetunings,
    random_encoder,
    shape_of,
)
from mae_hf.models.io import weights_digest
from mae_hf.training.signals import TERMINATING, handling, stop

DATA = DataConfig(source="digits", class_names=None)
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TRAIN = {"batch_size": 48, "epochs": 40.0, "warmup_ratio": 0.125, "eval_every_epochs": 2.0, "save_every_epochs": 20.0}
RECIPE = FinetuneConfig(train=FinetuneTrainConfig(**TRAIN, per_device_batch_size=24, trackers=("tensorboard",), seed=7))


def encoder(seed: int) -> ViTModel:
    torch.manual_seed(seed)
    return ViTModel(ViTConfig(**SHAPE, intermediate_size=32), add_pooling_layer=False).eval()


def test_features_are_computed_once_for_each_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train, test = load_protocol_images(DATA, 16)
    calls, infer = [], methods.infer
    monkeypatch.setattr(methods, "infer", lambda *words: calls.append(1) or infer(*words))

    def load(arm: str, model: ViTModel) -> dict[str, np.ndarray]:
        config = FewLabelsConfig("m", str(tmp_path), data=DATA)
        return load_features(arm, Accelerator(cpu=True), model, train, test, config)

    first, scratch = load("model", encoder(0)), load("scratch", encoder(1))
    assert len(calls) == 4 and {path.name for path in tmp_path.iterdir()} == {
        "features-model.npz",
        "features-scratch.npz",
    }
    assert first["train-cls"].shape == (300, 16) and first["test-mean"].shape == (497, 16)
    again = load("model", encoder(0))
    assert len(calls) == 4 and all((again[name] == first[name]).all() for name in first)
    assert (scratch["train-cls"] != first["train-cls"]).any()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_probe_learns_from_the_rows_of_the_set_alone_and_predicts_all_test_images(pooling: str):
    images, _ = load_protocol_images(DATA, 16)  # 300 rows in mixed order
    made, _ = make_classification(600, 10, n_informative=5, n_classes=3, random_state=0)
    made[:300] += images.labels[:, None] % 3
    features = {"train-cls": made[:300], "test-cls": made[300:]}
    features |= {f"{role}-mean": features[f"{role}-cls"] * np.arange(1, 11) ** 2 for role in ("train", "test")}
    rows = np.arange(0, 300, 2)
    facts, probabilities = measure_probe("linear", pooling, features, images, LabelSet("even", 0, DATA, rows))
    chosen = np.flatnonzero(images.split_rows % 2 == 0)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=facts["settings"]["C"], max_iter=2000))
    model.fit(features[f"train-{pooling}"][chosen], images.labels[chosen])
    np.testing.assert_allclose(probabilities, model.predict_proba(features[f"test-{pooling}"]), atol=1e-5)
    assert (facts["num_labels"], facts["num_validation_labels"]) == (150, 0) and len(chosen) == 150
    assert 0 < facts["validation_accuracy"] < 1


def test_the_random_encoder_is_the_same_network_with_other_weights_and_the_same_ones_each_time():
    model = encoder(0)
    first, again = (random_encoder(model, ("a", "b"), "eager") for _ in range(2))
    assert shape_of(first) == shape_of(model) == {**SHAPE, "intermediate_size": 32}
    assert weights_digest(first) == weights_digest(again) != weights_digest(model)
    assert not first.training


def budgets_in(folder: Path, draws: int) -> Protocol:
    """The protocol of fine-tuning on budgets of the digits."""
    budgets = {"protocol": "budgets", "method": "finetune", "draws": draws, "finetune_config": "r.yaml"}
    split = load_splits(DATA, "digits")["train"]
    return Protocol(FewLabelsConfig("m", str(folder), data=DATA, **budgets), split, np.arange(len(split)))


def test_a_label_set_has_its_own_data_and_seed_and_a_minimum_of_steps(tmp_path: Path):
    protocol, name = budgets_in(tmp_path, draws=3), "budget-0.1-draw-2-model"
    config = plan_finetunings(protocol, RECIPE, {"model": encoder(0)})[name]
    data = dataclasses.replace(DATA, label_fraction=0.1, label_seed=2)
    assert (config.train.seed, config.train.min_steps, config.data) == (9, 200, data)
    assert config.train.trackers == () and not config.hub.push
    patient = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, min_steps=300))
    assert plan_finetunings(protocol, patient, {"model": encoder(0)})[name].train.min_steps == 300
    assert config.train.fit(20).epochs == 200, "batches of 20 give 40 steps in 40 epochs, so 200 steps take 200"


def test_recipes_differ_if_and_only_if_they_change_results():
    other = dataclasses.replace(RECIPE, output_dir="elsewhere", data=DataConfig(source="digits", fold=1))
    assert describe_recipe(other) == describe_recipe(RECIPE)
    slower = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, base_lr=1e-5))
    changed = dict(describe_recipe(slower).items() - describe_recipe(RECIPE).items())
    assert changed == {"recipe.train.base_lr": "1e-05"}
    patient = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, timeout_minutes=3.0))
    assert describe_recipe(patient) == describe_recipe(RECIPE), "a run that has stopped may be given it"


def test_folders_with_a_different_config_are_found_before_the_first_run_starts(tmp_path: Path):
    protocol = budgets_in(tmp_path, draws=1)
    encoders = {"model": encoder(0), "scratch": encoder(1)}
    runs = plan_finetunings(protocol, RECIPE, encoders)
    assert len(runs) == 2 * 5 and not list(tmp_path.iterdir())
    last = runs["budget-1-draw-0-scratch"]
    assert (last.model.init, last.train.batch_size, last.data.label_fraction) == ("scratch", 48, 1)
    assert (last.model.patch_size, last.model.drop_path) == (4, RECIPE.model.drop_path)
    assert (runs["budget-0.1-draw-0-model"].train.min_steps, runs["budget-0.1-draw-0-model"].model.init) == (200, "m")
    Path(last.output_dir).mkdir(parents=True)
    changed = dataclasses.replace(last, train=dataclasses.replace(last.train, seed=99))
    (Path(last.output_dir) / "config.yaml").write_text(parse.to_yaml(changed))
    with pytest.raises(ConfigError, match=r"runs/budget-1-draw-0-scratch holds .* \(train.seed: 99 -> 7\)"):
        plan_finetunings(protocol, RECIPE, encoders)


def finished_run(tmp_path: Path) -> Path:
    """The folder of a finished run with 270 train and 30 validation images and 4 test images, one of them wrong."""
    folder = run_folders.write_run(tmp_path / "run", "scratch", run_folders.THREE)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "num_validation_images": 30}))
    return folder


def test_a_finished_run_is_read_and_its_checkpoints_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/no/python")  # nothing is left to run
    folder = finished_run(tmp_path)
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    config = parse.read_file(FinetuneConfig, folder / "config.yaml")
    facts, probabilities = measure_finetuning(config)
    assert (probabilities.argmax(axis=1) == run_folders.LABELS).mean() == 0.75 == facts["validation_accuracy"]
    assert (facts["num_labels"], facts["num_validation_labels"]) == (300, 30)
    assert facts["settings"] == {"best_epoch": 2.0, "epochs": config.train.epochs, "seed": 0}
    assert not (folder / "checkpoints").exists()


def test_a_finished_run_with_a_different_config_is_refused_with_the_difference(tmp_path: Path):
    folder = finished_run(tmp_path)
    config = parse.read_file(FinetuneConfig, folder / "config.yaml")
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=7.0))
    with pytest.raises(ConfigError, match=r"different config \(train.epochs: .* -> 7.*choose another --output_dir"):
        measure_finetuning(other)


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    """The config of a run that has not begun."""
    return dataclasses.replace(RECIPE, train=FinetuneTrainConfig(), output_dir=str(tmp_path / "runs" / "fold-1-model"))


def replace_python(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `sys.executable` be a program that runs this code, whatever command it is given."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{code}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_a_failed_run_is_named_with_its_last_line_and_its_log(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    replace_python("print(*sys.argv[1:], flush=True)\nsys.exit('error: no such thing')", tmp_path, monkeypatch)
    with pytest.raises(RunError, match=r"runs/fold-1-model failed \(error: no such thing\): see .*/fold-1-model\.log"):
        measure_finetuning(config)
    *words, file = (tmp_path / "runs" / "fold-1-model.log").read_text().splitlines()[0].split()
    assert words == ["-m", "mae_hf", "finetune", "--config"] and parse.read_file(FinetuneConfig, Path(file)) == config


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_waits_for_the_fine_tuning_to_save(
    config: FinetuneConfig, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
):
    saved = tmp_path / "saved"
    code = (
        f"def note(number, frame): time.sleep(0.5); open({str(saved)!r}, 'w').close(); sys.exit(128 + number)\n"
        f"signal.signal({int(number)}, note)\n"
        f"os.kill(os.getppid(), {int(number)})\n"
        # a terminal sends Ctrl-C to both
        f"{'os.kill(os.getpid(), signal.SIGINT)' if number == signal.SIGINT else ''}\n"
        "time.sleep(60)"
    )
    replace_python(code, tmp_path, monkeypatch)
    before = {each: signal.getsignal(each) for each in TERMINATING}
    try:
        with (
            pytest.raises(RunStopped, match=r"the fine-tuning .*runs/fold-1-model is saved") as stopped,
            handling(stop, TERMINATING),
        ):
            measure_finetuning(config)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert stopped.value.signal_number == number and saved.exists()


def test_a_signal_while_the_fine_tuning_is_being_started_reaches_it(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    children: list[subprocess.Popen[bytes]] = []

    def started(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        children.append(popen(*arguments, **options))
        os.kill(os.getpid(), signal.SIGTERM)
        return children[0]

    popen = subprocess.Popen
    replace_python("time.sleep(60)", tmp_path, monkeypatch)
    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(RunStopped, match="SIGTERM"), handling(stop, [signal.SIGTERM]):
        measure_finetuning(config)
    assert children[0].wait(timeout=10) == -signal.SIGTERM


def test_a_signal_that_ends_the_fine_tuning_before_its_first_step_still_stops_the_command(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = "signal.signal(signal.SIGINT, signal.SIG_DFL)\nos.kill(os.getppid(), 2)\nos.kill(os.getpid(), 2)"
    replace_python(code, tmp_path, monkeypatch)
    with pytest.raises(RunStopped, match="SIGINT"):
        measure_finetuning(config)


def test_a_signal_that_finds_the_fine_tuning_finished_still_stops_the_command(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = "signal.signal(signal.SIGINT, lambda *_: sys.exit(0))\nos.kill(os.getppid(), 2)\nos.kill(os.getpid(), 2)"
    replace_python(code, tmp_path, monkeypatch)
    with pytest.raises(RunStopped, match="is saved"):
        measure_finetuning(config)
