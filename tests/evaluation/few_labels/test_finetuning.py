"""The recipe, cut to a label set by arithmetic done here by hand, and a run that is read instead of repeated."""

import dataclasses
import importlib
import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import run_folders

from mae_hf.config import parse
from mae_hf.config.commands import FewLabelsConfig, FinetuneConfig
from mae_hf.config.data import DataConfig
from mae_hf.config.train import FinetuneTrainConfig
from mae_hf.data.sources import load_splits
from mae_hf.errors import ConfigError, RunError, RunStopped
from mae_hf.evaluation.few_labels.finetuning import (
    adapt_recipe,
    describe_recipe,
    measure_finetuning,
    plan_finetunings,
    run_finetuning,
)
from mae_hf.evaluation.few_labels.measurements import Measurements
from mae_hf.evaluation.few_labels.protocol import LabelSet, label_sets

SHAPE = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
SHAPE |= {"intermediate_size": 96}
TRAIN = {"batch_size": 48, "epochs": 40.0, "warmup_ratio": 0.125, "eval_every_epochs": 2.0, "save_every_epochs": 20.0}
RECIPE = FinetuneConfig(train=FinetuneTrainConfig(**TRAIN, per_device_batch_size=24, trackers=("tensorboard",), seed=7))
SET = LabelSet("budget-0.1-draw-2", 0.1, 2, DataConfig(source="digits", label_fraction=0.1, label_seed=2))


def never(config: FinetuneConfig, log: Path) -> None:
    raise AssertionError("nothing is left to do")


def test_few_images_get_a_smaller_batch_and_more_epochs():
    config = adapt_recipe(RECIPE, SET, 20, 200)
    # 20 images: a batch of 20, one step an epoch, 40 steps planned, so five times as long
    assert (config.train.batch_size, config.train.per_device_batch_size) == (20, None)
    durations = (config.train.epochs, config.train.eval_every_epochs)
    assert (*durations, config.train.save_every_epochs) == (200, 10, 100)
    assert (config.train.plan(20, 1).total_steps, config.train.plan(20, 1).warmup_steps) == (200, 25)
    assert config.train.seed == 9
    assert config.data == SET.data
    assert config.train.trackers == () and not config.hub.push


def test_enough_images_keep_the_recipe():
    config = adapt_recipe(RECIPE, SET, 240, 200)
    assert (config.train.batch_size, config.train.per_device_batch_size, config.train.epochs) == (48, 24, 40)
    assert config.train.eval_every_epochs == 2


def test_a_finished_run_is_read_and_its_checkpoints_removed(tmp_path: Path):
    folder = finished_run(tmp_path)
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    run = run_finetuning(never, parse.read_file(FinetuneConfig, folder / "config.yaml"))
    assert (run.metrics["test/accuracy"], run.test.correct.mean()) == (0.75, 0.75)
    assert not (folder / "checkpoints").exists()


def test_a_finished_run_with_a_different_config_is_refused_with_the_difference(tmp_path: Path):
    folder = finished_run(tmp_path)
    config = parse.read_file(FinetuneConfig, folder / "config.yaml")
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=7.0))
    with pytest.raises(ConfigError, match=r"different config \(train.epochs: .* -> 7.*choose another --output_dir"):
        run_finetuning(never, other)


def test_folders_with_a_different_config_are_found_before_the_first_run_starts(tmp_path: Path):
    data = DataConfig(source="digits", class_names=None)
    budgets = {"protocol": "budgets", "method": "finetune", "draws": 1, "finetune_config": "r.yaml"}
    config = FewLabelsConfig("m", str(tmp_path), data=data, **budgets)
    sets = label_sets(config, load_splits(data, "digits")["train"], "finetune")
    runs = plan_finetunings(config, RECIPE, sets, {"model": "m", "scratch": "scratch"}, SHAPE)
    assert len(runs) == 2 * 5 and not list(tmp_path.iterdir())
    last = runs["scratch", "budget-1-draw-0"]
    assert (last.model.init, last.train.batch_size, last.data.label_fraction) == ("scratch", 48, 1)
    assert (last.model.patch_size, last.model.drop_path) == (8, RECIPE.model.drop_path)
    assert runs["model", "budget-0.1-draw-0"].train.batch_size == 20  # 3 labels a class, one of them for validation
    Path(last.output_dir).mkdir(parents=True)
    changed = dataclasses.replace(last, train=dataclasses.replace(last.train, seed=99))
    (Path(last.output_dir) / "config.yaml").write_text(parse.to_yaml(changed))
    with pytest.raises(ConfigError, match=r"runs/budget-1-draw-0-scratch holds .* \(train.seed: 99 -> 7\)"):
        plan_finetunings(config, RECIPE, sets, {"model": "m", "scratch": "scratch"}, SHAPE)


def test_the_line_and_the_predictions_of_a_run_match_its_files(tmp_path: Path):
    folder = finished_run(tmp_path)
    config = parse.read_file(FinetuneConfig, folder / "config.yaml")
    labels, seen = np.array(run_folders.LABELS), np.array([True, False, False, False])
    results = Measurements(tmp_path / "few", labels, ("cat", "dog"), seen)
    (tmp_path / "few").mkdir()
    line = {"label_set": "fold-3", "arm": "model", "method": "finetune"}
    for _ in range(2):  # the second call finds the line
        measure_finetuning(results, line, never, config)
    (found,) = results.lines
    assert (found["accuracy"], found["validation_accuracy"], found["num_labels"]) == (0.75, 0.75, 300)
    assert found["unseen_accuracy"] == pytest.approx(2 / 3)  # the last of the four is wrong, the first was seen
    assert (found["num_validation_labels"], found["pooling"]) == (30, None)
    assert found["settings"] == {"best_epoch": 2.0, "epochs": config.train.epochs, "seed": 0}
    copied, own = (
        pq.read_table(path).to_pydict()
        for path in (tmp_path / "few/predictions/fold-3-model-finetune.parquet", folder / "predictions.parquet")
    )
    assert copied["prediction"] == own["prediction"] and copied["label"] == own["label"]
    np.testing.assert_allclose(copied["probabilities"], own["probabilities"], atol=1e-7)


def finished_run(tmp_path: Path) -> Path:
    """The folder of a finished run with 270 train and 30 validation images and 4 test images, one of them wrong."""
    folder = run_folders.write_run(tmp_path / "run", "scratch", run_folders.THREE)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "num_validation_images": 30}))
    return folder


def test_recipes_differ_if_and_only_if_they_change_results():
    other = dataclasses.replace(RECIPE, output_dir="elsewhere", data=DataConfig(source="digits", fold=1))
    assert describe_recipe(other, 200) == describe_recipe(RECIPE, 200)
    assert describe_recipe(RECIPE, 200)["min_steps"] == "200"
    slower = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, base_lr=1e-5))
    changed = dict(describe_recipe(slower, 200).items() - describe_recipe(RECIPE, 200).items())
    assert changed == {"recipe.train.base_lr": "1e-05"}
    patient = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, timeout_minutes=3.0))
    assert describe_recipe(patient, 200) == describe_recipe(RECIPE, 200), "a run that has stopped may be given it"


def start_of(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[FinetuneConfig, Path], None]:
    """A function `start(config, log)` with this body, in a module that a new process can import."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"started_{tmp_path.name.replace('-', '_')}"
    body = "".join(f"    {line}\n" for line in code.splitlines())
    (tmp_path / f"{name}.py").write_text(f"import os, signal, sys, time\ndef start(config, log):\n{body}")
    return importlib.import_module(name).start


def test_a_failed_run_is_named_with_its_last_line_and_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = "log.write_text(f'{config.output_dir}\\nerror: no such thing\\n')\nsys.exit(1)"
    config = dataclasses.replace(RECIPE, output_dir=str(tmp_path / "runs" / "budget-0.1-model"))
    with pytest.raises(
        RunError, match=r"runs/budget-0\.1-model failed \(error: no such thing\): see .*/budget-0\.1-model\.log"
    ):
        run_finetuning(start_of(code, tmp_path, monkeypatch), config)
    assert (tmp_path / "runs" / "budget-0.1-model.log").read_text().startswith(config.output_dir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_waits_for_the_fine_tuning_to_save(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch):
    saved = tmp_path / "saved"
    code = (
        f"def note(number, frame): time.sleep(0.5); open({str(saved)!r}, 'w').close(); sys.exit(128 + number)\n"
        f"signal.signal({int(number)}, note)\n"
        f"os.kill(os.getppid(), {int(number)})\n"
        # a terminal sends Ctrl-C to both
        f"{'os.kill(os.getpid(), signal.SIGINT)' if number == signal.SIGINT else ''}\n"
        "time.sleep(60)"
    )
    config = dataclasses.replace(RECIPE, output_dir=str(tmp_path / "runs" / "x"))
    before = signal.getsignal(number)
    with pytest.raises(RunStopped, match=r"the fine-tuning .*runs/x is saved") as stopped:
        run_finetuning(start_of(code, tmp_path, monkeypatch), config)
    assert stopped.value.signal_number == number and saved.exists()
    assert signal.getsignal(number) == before
