"""The recipe, cut to a label set by arithmetic done here by hand, and a run that is read instead of repeated."""

import json
from pathlib import Path

import pytest

from mae_hf import cli
from mae_hf.config import DataConfig, FinetuneConfig, FinetuneTrainConfig, RunError
from mae_hf.few_labels.finetuning import finetune_config, run_finetuning
from mae_hf.few_labels.protocol import LabelSet

SHAPE = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
SHAPE |= {"intermediate_size": 96}
TRAIN = {"batch_size": 48, "epochs": 40.0, "warmup_epochs": 5.0, "eval_every_epochs": 2.0, "save_every_epochs": 20.0}
RECIPE = FinetuneConfig(train=FinetuneTrainConfig(**TRAIN, per_device_batch_size=24, trackers=("tensorboard",), seed=7))
SET = LabelSet("budget-0.1-draw-2", 0.1, 2, DataConfig(source="digits", label_fraction=0.1, label_seed=2))


def test_few_images_make_a_smaller_batch_and_longer_epochs_alike(tmp_path: Path):
    config = finetune_config(RECIPE, SET, "scratch", SHAPE, 20, 200, tmp_path / "run")
    # 20 images: a batch of 20, one step an epoch, 40 steps planned, so five times as long
    assert (config.train.batch_size, config.train.per_device_batch_size) == (20, None)
    durations = (config.train.epochs, config.train.warmup_epochs, config.train.eval_every_epochs)
    assert (*durations, config.train.save_every_epochs) == (200, 25, 10, 100)
    assert config.train.plan(20, 1).total_steps == 200
    assert config.train.seed == 9
    assert config.data == SET.data
    assert config.train.trackers == () and not config.hub.push
    assert (config.model.init, config.model.patch_size, config.model.drop_path) == (
        "scratch",
        8,
        RECIPE.model.drop_path,
    )


def test_enough_images_keep_the_recipe(tmp_path: Path):
    config = finetune_config(RECIPE, SET, "scratch", SHAPE, 240, 200, tmp_path / "run")
    assert (config.train.batch_size, config.train.per_device_batch_size, config.train.epochs) == (48, 24, 40)
    assert config.train.eval_every_epochs == 2


def test_a_finished_run_is_read_and_its_checkpoints_removed(tmp_path: Path):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    metrics = {"test/accuracy": 0.5, "test/f1": 0.4, "eval/accuracy": 0.6, "best_epoch": 12.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "run.json").write_text(json.dumps({"num_train_images": 20, "num_validation_images": 10}))
    config = finetune_config(RECIPE, SET, "scratch", SHAPE, 20, 200, folder)
    found = run_finetuning(tmp_path / "no_such_script.py", config)
    assert (found["accuracy"], found["f1"], found["validation_accuracy"], found["num_labels"]) == (0.5, 0.4, 0.6, 30)
    assert found["settings"] == {"best_epoch": 12.0, "epochs": 200.0, "seed": 9}
    assert not (folder / "checkpoints").exists()


def test_a_run_that_fails_is_named_with_its_last_words_and_its_log(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:]); sys.exit('error: no such thing')")
    config = finetune_config(RECIPE, SET, "scratch", SHAPE, 20, 200, tmp_path / "runs" / "budget-0.1-model")
    with pytest.raises(
        RunError, match=r"runs/budget-0\.1-model failed \(error: no such thing\): see .*/budget-0\.1-model\.log"
    ):
        run_finetuning(script, config)
    assert cli.load(FinetuneConfig, tmp_path / "runs" / "budget-0.1-model.yaml") == config
