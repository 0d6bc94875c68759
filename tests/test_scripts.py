"""Every command of the contract, typed as a user types it, on the embedded digits with few steps."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from forks import ROOT, run, succeed, typed
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTConfig, ViTModel

from mae_hf.config import parse
from mae_hf.config.data import DataConfig
from mae_hf.config.model import EncoderConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.data.dataset import load_pretraining_images
from mae_hf.models.io import open_encoder, weights_digest
from mae_hf.models.origin import keep_start

LAUNCH = ("accelerate", "launch", "--quiet")
SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TINY = tuple(word for name, value in SHAPE.items() for word in (f"--model.{name}", str(value)))
SMALL = (*TINY, "--train.warmup_ratio", "0", "--train.epochs", "2", "--train.eval_every_epochs", "1")


def launched(*words: object) -> str:
    """Types `accelerate launch WORDS`, which must succeed, and returns what it printed."""
    done = typed(*LAUNCH, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs pretrain, finetune and scratch, made by the README's commands, but smaller and shorter.

    The first is launched as users launch it.
    """
    folder = tmp_path_factory.mktemp("runs")
    pretrain = ("scripts/pretrain.py", "--config", "configs/pretrain/digits.yaml", *SMALL)
    launched(*pretrain, "--train.trackers", "[tensorboard]", "--output_dir", folder / "pretrain")
    finetune = ("scripts/finetune.py", "--config", "configs/finetune/digits.yaml", *SMALL)
    succeed(*finetune, "--model.init", folder / "pretrain", "--output_dir", folder / "finetune")
    succeed(*finetune, "--model.init", "scratch", "--output_dir", folder / "scratch")
    return folder


def test_a_run_folder_holds_what_the_contract_says(runs: Path):
    common = {".lock", "config.yaml", "run.json", "metrics.jsonl", "metrics.json", "checkpoints", "figures", "model"}
    assert {path.name for path in (runs / "pretrain").iterdir()} == common | {"trackers", "audit.json"}
    assert {path.name for path in (runs / "finetune").iterdir()} == common | {
        "predictions.parquet",
        "validation_predictions.parquet",
    }
    model = {"config.json", "model.safetensors", "preprocessor_config.json", "audit.json"}
    card = {"README.md", "curves.png"}
    pretrained = {"autoencoder", "reconstruction-over-time.png"}
    assert {path.name for path in (runs / "pretrain" / "model").iterdir()} == model | card | pretrained
    assert {path.name for path in (runs / "pretrain" / "model" / "autoencoder").iterdir()} == model
    assert {path.name for path in (runs / "finetune" / "model").iterdir()} == model | card | {"confusion.png"}
    assert list((runs / "pretrain" / "figures").glob("reconstruction-*.png"))
    (log,) = (runs / "pretrain" / "trackers" / "pretrain").glob("events.out.tfevents*")
    assert b"train/loss" in log.read_bytes() and b"reconstruction" in log.read_bytes()
    assert list((runs / "pretrain" / "checkpoints").glob("step-*"))


def test_the_resolved_config_is_itself_a_config(runs: Path):
    assert parse.read_file(PretrainConfig, runs / "pretrain" / "config.yaml").train.epochs == 2
    assert parse.read_file(FinetuneConfig, runs / "scratch" / "config.yaml").model.init == "scratch"


def test_metrics_have_a_line_per_logging_step_and_a_final_summary(runs: Path):
    lines = [json.loads(line) for line in (runs / "finetune" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval/accuracy" in line]
    assert [line["epoch"] for line in evaluated] == [1, 2]
    assert all(line["train/images_per_second"] > 0 and line["train/learning_rate"] >= 0 for line in lines)
    final = json.loads((runs / "finetune" / "metrics.json").read_text())
    assert final["eval/accuracy"] == max(line["eval/accuracy"] for line in evaluated)
    record = json.loads((runs / "finetune" / "run.json").read_text())
    assert record["num_train_images"] == 240
    assert record["start"] <= record["end"]
    encoder = open_encoder(str(runs / "pretrain"), "sdpa")
    assert record["init_digest"] == weights_digest(encoder) and record["init_revision"] is None
    assert json.loads((runs / "scratch" / "run.json").read_text())["init_digest"] is None


def test_pre_training_ends_with_a_probe_on_validation_images_and_what_to_type_next(runs: Path, tmp_path: Path):
    words = ("--config", "configs/pretrain/digits.yaml", *TINY, "--train.epochs", "0.1")
    words = (*words, "--train.probe_every_epochs", "0")
    printed = succeed("scripts/pretrain.py", *words, "--output_dir", tmp_path / "run")
    final = json.loads((tmp_path / "run" / "metrics.json").read_text())
    best = max(final["probe/linear_cls_accuracy"], final["probe/linear_mean_accuracy"])
    said = f"frozen encoder: linear probe {100 * best:.1f} % "
    assert said in printed and "on 60 validation images, from 240 labels, in " in printed
    *_, probe, finetune = printed.splitlines()
    assert f"scripts/evaluate.py --model {tmp_path / 'run'}" in probe
    assert f"--config few_labels --model.init {tmp_path / 'run'}" in finetune
    tuned = json.loads((runs / "finetune" / "metrics.json").read_text())
    assert tuned["probe/linear_cls_accuracy"] > 0
    assert "probe/linear_cls_accuracy" not in json.loads((runs / "scratch" / "metrics.json").read_text())


def test_fine_tuning_from_a_probe_on_few_labels_starts_where_the_probe_is(runs: Path, tmp_path: Path):
    # with a learning rate of almost 0 the classifier stays the linear probe of the encoder that it starts from
    still = (
        "--train.base_lr",
        "1e-9",
        "--train.min_steps",
        "3",
        "--model.head",
        "probe",
        "--data.label_fraction",
        "0.5",
    )
    words = ("--config", "configs/finetune/digits.yaml", *SMALL, *still, "--model.init", runs / "pretrain")
    printed = succeed("scripts/finetune.py", *words, "--output_dir", tmp_path / "run")
    final = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert final["eval/accuracy"] == pytest.approx(final["probe/linear_cls_accuracy"], abs=0.04)
    assert "validation (30 images): fine-tuned" in printed and "total steps     4" in printed


def test_predictions_give_the_reported_scores_again(runs: Path):
    table = pq.read_table(runs / "finetune" / "predictions.parquet").to_pydict()
    final = json.loads((runs / "finetune" / "metrics.json").read_text())
    assert table["index"] == list(range(497))
    chosen_on = pq.read_table(runs / "finetune" / "validation_predictions.parquet").to_pydict()
    assert chosen_on.keys() == table.keys() and chosen_on["index"] == list(range(60))
    assert np.mean(np.equal(chosen_on["label"], chosen_on["prediction"])) == pytest.approx(final["eval/accuracy"])
    assert np.mean(np.equal(table["label"], table["prediction"])) == pytest.approx(final["test/accuracy"])
    probabilities = np.array(table["probabilities"])
    assert probabilities.argmax(axis=1).tolist() == table["prediction"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_others_open_the_classifier_without_mae_hf(runs: Path):
    from transformers import AutoModelForImageClassification, pipeline

    model = AutoModelForImageClassification.from_pretrained(runs / "finetune" / "model")
    assert model.config.id2label == {i: str(i) for i in range(10)}
    classify = pipeline("image-classification", model=str(runs / "finetune" / "model"))
    answers = classify(Image.fromarray(np.zeros((20, 30), np.uint8)), top_k=10)
    assert {answer["label"] for answer in answers} == set("0123456789")
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-4)


def test_others_get_deterministic_unmasked_features_from_the_encoder(runs: Path):
    from transformers import AutoModel

    encoder, info = AutoModel.from_pretrained(runs / "pretrain" / "model", output_loading_info=True)
    assert not info["missing_keys"]
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        first, second = encoder(pixel_values), encoder(pixel_values)
    assert first.last_hidden_state.shape == (2, 1 + 64, 24)
    torch.testing.assert_close(first.last_hidden_state, second.last_hidden_state, rtol=0, atol=0)
    torch.testing.assert_close(first.pooler_output, first.last_hidden_state[:, 0])


def test_fine_tuning_starts_from_the_pretrained_weights_and_moves_them(runs: Path):
    before = load_file(runs / "pretrain" / "model" / "model.safetensors")
    after = load_file(runs / "finetune" / "model" / "model.safetensors")
    scratch = load_file(runs / "scratch" / "model" / "model.safetensors")
    key = "embeddings.patch_embeddings.projection.weight"
    moved, unrelated = ((before[key] - other[f"vit.{key}"]).abs().mean() for other in (after, scratch))
    assert 0 < moved < 0.1 * unrelated


def test_a_run_from_published_weights_resumes_and_ends_without_them(tmp_path: Path):
    published, run_folder = tmp_path / "published", tmp_path / "run"
    shape = {"image_size": 32, "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96}
    ViTModel(ViTConfig(patch_size=8, num_hidden_layers=2, **shape)).save_pretrained(published)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (published / "preprocessor_config.json").write_text(json.dumps(processor))
    null = [f"--data.image_{name}" for name in ("mean", "std")]
    null += [f"--model.{field.name}" for field in dataclasses.fields(EncoderConfig)]
    command = (
        "scripts/pretrain.py",
        "--config",
        "configs/pretrain/digits.yaml",
        *SMALL,
        "--train.save_every_epochs",
        1,
    )
    command += (*itertools.chain.from_iterable((flag, "null") for flag in null), "--model.image_size", 24)
    command += ("--model.init", published, "--output_dir", run_folder)
    assert f"from {published} with a new decoder, 2 of 9 patches visible" in succeed(*command)
    config = parse.read_file(PretrainConfig, run_folder / "config.yaml")
    assert (config.model.image_size, config.model.patch_size, config.data.image_mean) == (24, 8, (0.5, 0.4, 0.3))
    record, weights = (run_folder / "run.json").read_text(), load_file(run_folder / "model" / "model.safetensors")
    assert json.loads(record)["init_digest"] == weights_digest(open_encoder(str(published), "sdpa"))
    assert "starting from the encoder published" in (run_folder / "model" / "README.md").read_text()

    # as a run that was stopped after its first epoch, and whose checkpoint was removed since
    keep_start(config.model, run_folder)
    for path in (published, run_folder / "model", max((run_folder / "checkpoints").iterdir())):
        shutil.rmtree(path)
    (run_folder / "metrics.json").unlink()
    assert "from step 19" in succeed(*command)
    again = load_file(run_folder / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    for key in ("init", "init_digest", "init_has_decoder"):
        assert json.loads((run_folder / "run.json").read_text())[key] == json.loads(record)[key]
    assert not (run_folder / "init").exists()
    assert "is finished" in succeed(*command)


def test_a_finished_run_is_left_alone(runs: Path):
    before = (runs / "scratch" / "run.json").read_text()
    command = ("scripts/finetune.py", "--config", runs / "scratch" / "config.yaml")
    assert "is finished" in succeed(*command)
    assert (runs / "scratch" / "run.json").read_text() == before


def test_a_different_config_is_refused_with_the_difference(runs: Path):
    command = ("scripts/finetune.py", "--config", runs / "scratch" / "config.yaml")
    done = run(*command, "--train.seed", "7")
    assert done.returncode == 2
    assert "train.seed: 0 -> 7" in done.stderr


def test_an_unfinished_run_resumes_and_ends_like_an_uninterrupted_one(runs: Path, tmp_path: Path):
    script = ("scripts/pretrain.py", "--config", "configs/pretrain/digits.yaml", *SMALL)
    script = (*script, "--train.probe_every_epochs", "1")
    script = (*script, "--train.figure_every_epochs", "0.6")  # 11 steps; an epoch has 19
    script = (*script, "--train.save_every_epochs", "1")
    succeed(*script, "--output_dir", tmp_path / "whole")
    pictures = sorted(path.name for path in (tmp_path / "whole" / "figures").iterdir())
    numbered = [f"reconstruction-{step:08d}.{kind}" for step in (11, 22, 33, 38) for kind in ("npz", "png")]
    assert pictures == ["curves.png", *numbered, "reconstruction-over-time.png"]
    # as a crash after the first epoch leaves it: no later checkpoint, no model, no final metrics
    halves = tmp_path / "halves"
    shutil.copytree(tmp_path / "whole", halves)
    (last,) = sorted((halves / "checkpoints").glob("step-*"))[1:]
    shutil.rmtree(last)
    shutil.rmtree(halves / "model")
    (halves / "metrics.json").unlink()
    printed = succeed(*script, "--output_dir", halves)
    assert "from step 19" in printed
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    lines, expected = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (halves, tmp_path / "whole")
    )
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    for line, other in zip(lines, expected, strict=True):
        same = [key for key in other if key not in ("train/images_per_second", "probe/seconds")]
        assert [line[key] for key in same] == [other[key] for key in same]
    assert sum("probe/knn_cls_f1" in line for line in lines) == 2


def test_evaluating_the_saved_classifier_gives_the_same_scores(runs: Path, tmp_path: Path):
    data = ("--data.source", "digits", "--data.validation_fraction", "0.2")
    command = ("scripts/evaluate.py", "--model", runs / "finetune", *data, "--output_dir", tmp_path)
    succeed(*command)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    final = json.loads((runs / "finetune" / "metrics.json").read_text())
    assert metrics["test/accuracy"] == pytest.approx(final["test/accuracy"])
    assert pq.read_table(tmp_path / "predictions.parquet").num_rows == 497


def test_probes_of_the_encoder_beat_chance_and_their_predictions_give_the_numbers_again(runs: Path, tmp_path: Path):
    data = ("--data.source", "digits")
    probes = ("--model", runs / "pretrain", *data, "--probe", "knn,linear,head,rank")
    succeed("scripts/evaluate.py", *probes, "--output_dir", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [metrics[f"num_{role}_images"] for role in ("train", "validation", "test")] == [270, 30, 497]
    files = sorted((tmp_path / "predictions").iterdir())
    assert [file.stem for file in files] == [
        f"{probe}-{p}" for probe in ("head", "knn", "linear") for p in ("cls", "mean")
    ]
    for file in files:
        table = pq.read_table(file).to_pydict()
        accuracy = metrics[f"{file.stem.replace('-', '/')}/accuracy"]
        assert np.mean(np.equal(table["label"], table["prediction"])) == pytest.approx(accuracy)
        assert accuracy > 0.4
    assert 1 < metrics["rank/cls/rankme"] < 24


def test_the_encoder_is_probed_on_validation_while_it_learns(runs: Path):
    lines = [json.loads(line) for line in (runs / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    probed = [line for line in lines if "probe/knn_mean_accuracy" in line]
    assert [line["epoch"] for line in probed] == [2]  # every 10 epochs, and at the end
    assert 0.2 < probed[0]["probe/knn_mean_accuracy"] <= 1
    record = json.loads((runs / "pretrain" / "run.json").read_text())
    assert "validation images" in record["probe"] and "never test" in record["probe"]
    assert json.loads((runs / "pretrain" / "metrics.json").read_text())["probe/knn_mean_accuracy"] <= 1


def test_few_labels_resume_and_report_that_random_folds_are_unofficial(runs: Path, tmp_path: Path):
    script = ("scripts/few_labels.py", "--model", runs / "pretrain", "--data.source", "digits")
    script = (*script, "--method", "knn", "--scratch", "true", "--output_dir", tmp_path)
    printed = succeed(*script)
    assert "UNOFFICIAL folds" in printed and printed.count("pre-training has seen none of the test images") == 1
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 10 * 2 * 2  # folds, arms, poolings
    summary = json.loads((tmp_path / "summary.json").read_text())
    path.write_text("".join(lines[:25]) + lines[25][:20])  # as a kill leaves it
    printed = succeed(*script)
    assert "UNOFFICIAL folds" in printed.splitlines()[-2]
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(lines)
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again["results"] == summary["results"] and not again["official"] and "UNOFFICIAL" in again["protocol"]
    assert all("unofficial fold" in json.loads(line)["labels"] for line in lines)
    assert again["num_seen_test_images"] == 0
    of_model = [json.loads(line) for line in lines if '"model"' in line and '"cls"' in line]
    row = next(r for r in again["results"] if (r["arm"], r["pooling"]) == ("model", "cls"))
    assert (row["n"], row["num_labels"]) == (10, 60)
    assert row["accuracy_mean"] == pytest.approx(np.mean([line["accuracy"] for line in of_model]))
    assert row["accuracy_sd"] == pytest.approx(np.std([line["accuracy"] for line in of_model], ddof=1))
    for line in map(json.loads, lines):
        name = "-".join(line[key] for key in ("label_set", "arm", "method", "pooling"))
        table = pq.read_table(tmp_path / "predictions" / f"{name}.parquet").to_pydict()
        assert np.mean(np.equal(table["label"], table["prediction"])) == pytest.approx(line["accuracy"])
        assert line["unseen_accuracy"] == line["accuracy"] and not any(table["seen"])
    assert len(list((tmp_path / "predictions").iterdir())) == len(lines)
    with Image.open(tmp_path / "few_labels.png") as image:
        assert image.width > 500
    done = run(*script, "--model", runs / "scratch")
    assert done.returncode == 2 and "weights: " in done.stderr and "choose another --output_dir" in done.stderr


@pytest.mark.slow
def test_few_labels_fine_tunes_in_separate_runs(runs: Path, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    digits = (ROOT / "configs/finetune/digits.yaml").read_text().replace("epochs: 40", "epochs: 2\n  min_steps: 4")
    for name, value in SHAPE.items():
        digits = re.sub(rf"^  {name}: \d+", f"  {name}: {value}", digits, flags=re.M)
    recipe.write_text(digits)
    smallest = tmp_path / "smallest.py"  # the smallest budget alone: each fine-tuning is a process of ten seconds
    smallest.write_text(
        "import runpy\nfrom mae_hf.evaluation.few_labels import methods\nmethods.BUDGETS = (0.01,)\n"
        "runpy.run_path('scripts/few_labels.py', run_name='__main__')\n"
    )
    script = (smallest, "--model", runs / "pretrain", "--data.source", "digits")
    script = (*script, "--protocol", "budgets", "--draws", "1", "--method", "finetune")
    folder = tmp_path / "few"
    succeed(*script, "--finetune_config", recipe, "--output_dir", folder)
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(line["num_labels"], line["num_validation_labels"]) for line in lines] == [(20, 10)]
    for line in lines:
        run_folder = folder / "runs" / f"{line['label_set']}-model"
        assert json.loads((run_folder / "metrics.json").read_text())["test/accuracy"] == line["accuracy"]
        config = parse.read_file(FinetuneConfig, run_folder / "config.yaml")
        assert config.data.label_fraction == line["fraction"] and config.model.init == str(runs / "pretrain")
        assert line["labels"] == json.loads((run_folder / "run.json").read_text())["labels"]
        table, own = (
            pq.read_table(path).to_pydict()
            for path in (
                folder / f"predictions/{line['label_set']}-model-finetune.parquet",
                run_folder / "predictions.parquet",
            )
        )
        assert table == own
    inputs = json.loads((folder / "inputs.json").read_text())
    assert inputs["recipe.train.epochs"] == "2.0" and inputs["recipe.train.min_steps"] == "4"
    assert inputs.keys() > {"weights", "data", "seen"} and inputs["mixed_precision"] == "no"
    (folder / "results.jsonl").unlink()
    recipe.write_text(recipe.read_text().replace("min_steps: 4", "min_steps: 5"))
    done = run(*script, "--finetune_config", recipe, "--output_dir", folder)
    assert done.returncode == 2 and "runs/budget-0.01-draw-0-model holds a run with a different config" in done.stderr
    assert not (folder / "results.jsonl").exists()


def test_a_comparison_has_probes_of_the_encoder_beside_its_fine_tuning(runs: Path, tmp_path: Path):
    data = ("--data.source", "digits", "--data.validation_fraction", "0.2")
    probes = ("--model", runs / "pretrain", *data, "--probe", "knn,linear,rank", "--output_dir", tmp_path / "probes")
    for _ in range(2):  # an older evaluation may be replaced
        succeed("scripts/evaluate.py", *probes)
    arms = {"tuned": runs / "finetune", "probes": tmp_path / "probes", "new": runs / "scratch"}
    words = [f"--arm={name}={folder}" for name, folder in arms.items()]
    printed = succeed("scripts/compare.py", *words, "--output_dir", tmp_path / "report")
    assert "is the best of 3 arms on validation images" in printed and "linear-cls" in printed
    assert str(tmp_path / "report" / "index.html") in printed
    assert {"index.html", "comparison.json"} <= {path.name for path in (tmp_path / "report").iterdir()}
    assert len(list((tmp_path / "report").glob("*.png"))) >= 4


def test_reconstructions_are_drawn_for_a_source_and_for_files(runs: Path, tmp_path: Path):
    script = ("scripts/reconstruct.py", "--model", runs / "pretrain")
    succeed(*script, "--data.source", "digits", "--output", tmp_path / "digits.png")
    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40)).save(tmp_path / "grey.png")
    succeed(*script, "--data.source", tmp_path / "grey.png", "--output", tmp_path / "file.png")
    succeed(*script, "--data.source", tmp_path / "grey.png", "--output", tmp_path / "file.svg")
    assert "<svg" in (tmp_path / "file.svg").read_text()
    for name in ("digits.png", "file.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 100


def test_features_are_written_once_and_drawn(runs: Path, tmp_path: Path):
    words = ("--data.source", "digits", "--split", "test", "--output", tmp_path / "digits.parquet")
    script = ("scripts/embed.py", "--model", runs / "pretrain", *words)
    printed = succeed(*script)
    assert printed == f"497 images in {tmp_path / 'digits.parquet'}\n"
    table = pq.read_table(tmp_path / "digits.parquet")
    assert len(table) == 497 and set(table["split"].to_pylist()) == {"test"}
    before = (tmp_path / "digits.parquet").stat()
    assert succeed(*script, "--neighbours", "2", "--map", "--pooling", "mean").startswith(printed)
    assert (tmp_path / "digits.parquet").stat() == before
    for name in ("digits-neighbours.png", "digits-map.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 500
    succeed(*script, "--map", "--figures.format", "svg")
    assert "<svg" in (tmp_path / "digits-map.svg").read_text()
    refused = run("scripts/embed.py", "--model", runs / "finetune", *words)
    assert refused.returncode == 2 and "holds something else than the features" in refused.stderr


def test_predictions_of_a_folder_need_no_labels_and_equal_those_of_the_run(runs: Path, tmp_path: Path):
    script = ("scripts/predict.py", "--model", runs / "finetune", "--data.source")
    printed = succeed(*script, "digits", "--output", tmp_path / "digits.parquet")
    table = pq.read_table(tmp_path / "digits.parquet").to_pylist()
    test = [row for row in table if row["split"] == "test"]
    expected = pq.read_table(runs / "finetune" / "predictions.parquet").to_pylist()
    assert [row["prediction"] for row in test] == [str(row["prediction"]) for row in expected]
    for ours, theirs in zip(test, expected, strict=True):
        ours_by_class = [ours[f"probability_{digit}"] for digit in range(10)]
        np.testing.assert_allclose(ours_by_class, theirs["probabilities"], atol=1e-5)
    assert printed == f"1797 images in {tmp_path / 'digits.parquet'}; 0 could not be decoded\n"
    assert [row["label"] for row in test] == [str(row["label"]) for row in expected]

    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40)).save(tmp_path / "grey.png")
    (tmp_path / "bad.png").write_text("no image")
    printed = succeed(*script, tmp_path / "grey.png", tmp_path / "bad.png", "--output", tmp_path / "out.csv")
    assert printed == f"2 images in {tmp_path / 'out.csv'}; 1 could not be decoded, see the column error\n"
    refused = run("scripts/predict.py", "--model", runs / "pretrain", "--data.source", "digits", "--output", "x.csv")
    assert refused.returncode == 2 and "not a classifier" in refused.stderr


def test_prepare_data_prints_path_and_size_and_whether_images_were_decoded_before(tmp_path: Path):
    data = ("--data.source", "digits", "--data.cache_dir", tmp_path / "cache", "--image_size", "32")
    first, second = (succeed("scripts/prepare_data.py", *data) for _ in range(2))
    files = sorted((tmp_path / "cache").glob("*.npy"))
    for role, num, file in zip(("test", "train", "unlabeled"), (497, 300, 1000), files, strict=True):
        (line,) = (line for line in first.splitlines() if line.split()[0] == role)
        assert line.split()[1:3] == [str(num), "images,"]
        assert line.endswith(f"{file.stat().st_size / 2**20:.1f} MiB in {file}")
        assert f"{line}, decoded before\n" in second
    size = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert f"{tmp_path / 'cache'} holds {size / 2**20:.1f} MiB in 6 files" in second


def test_prepare_data_measures_the_channels_of_the_pretraining_images(tmp_path: Path):
    images = np.random.default_rng(0).integers([0, 50, 100], [256, 150, 120], (20, 5, 5, 3)).astype(np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    printed = succeed("scripts/prepare_data.py", "--data.source", tmp_path, "--image_size", "5")
    mean, std = (json.loads(word) for word in printed.split()[-3::2])
    config = DataConfig(source=str(tmp_path))
    kept, _ = load_pretraining_images(config, 5)
    pixels = kept.batch(range(18)).numpy().reshape(-1, 3) / 255
    np.testing.assert_allclose([mean, std], [pixels.mean(axis=0), pixels.std(axis=0)], atol=5.1e-5)


def test_a_held_out_loss_that_is_not_finite_does_not_break_the_end_of_a_run(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import mae_hf.__main__, mae_hf.commands.pretrain\n"
        "mae_hf.commands.pretrain.held_out_loss = lambda *words: float('nan')\n"
        "mae_hf.__main__.main('pretrain')\n"
    )
    words = ("--config", "configs/pretrain/digits.yaml", *TINY, "--train.epochs", "0.1")
    words = (*words, "--train.probe_every_epochs", "0")
    printed = succeed(script, *words, "--output_dir", tmp_path / "run")
    assert "held-out loss not finite; encoder and autoencoder are in" in printed
    assert "eval/loss" not in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_a_missing_encoder_is_an_error_that_says_what_to_type(tmp_path: Path):
    script = ("scripts/finetune.py", "--config", "configs/finetune/digits.yaml")
    done = run(*script, "--model.init", tmp_path / "nothing", "--output_dir", tmp_path / "run")
    assert done.returncode == 2
    assert "pre-train first (" in done.stderr and "pretrain --config digits" in done.stderr
    assert not (tmp_path / "run").exists()


def test_uniformity_is_refused_where_a_batch_is_accumulated(tmp_path: Path):
    words = ("--config", "configs/pretrain/digits.yaml", *TINY, "--model.uniformity", "0.01")
    done = run("scripts/pretrain.py", *words, "--train.per_device_batch_size", "16", "--output_dir", tmp_path / "run")
    assert done.returncode == 2 and "a batch of 64 is computed in 4 accumulation steps" in done.stderr


def test_an_encoder_with_different_normalisation_is_refused_with_the_flags(runs: Path, tmp_path: Path):
    script = ("scripts/finetune.py", "--config", "configs/finetune/digits.yaml")
    other = ("--data.image_mean", "[0.5, 0.5, 0.5]", "--model.init", runs / "pretrain")
    done = run(*script, *other, "--output_dir", tmp_path / "run")
    assert done.returncode == 2
    assert "data.image_mean is [0.309, 0.309, 0.309] there and [0.5, 0.5, 0.5] here" in done.stderr
    assert "--data.image_mean null" in done.stderr


def test_evaluation_does_not_write_into_a_run_folder(runs: Path):
    command = ("scripts/evaluate.py", "--model", runs / "finetune", "--data.source", "digits")
    done = run(*command, "--output_dir", runs / "finetune")
    assert done.returncode == 2
    assert "choose another --output_dir" in done.stderr


def test_a_finished_run_may_change_where_it_is_uploaded_and_cached(runs: Path):
    command = ("scripts/finetune.py", "--config", runs / "scratch" / "config.yaml")
    assert "is finished" in succeed(*command, "--hub.repo_id", "me/other", "--data.cache_dir", "elsewhere")
