"""Reading a run: scores come from its predictions; files that are missing or contradict each other are named."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folders import write_run

from mae_hf.config import parse
from mae_hf.config.commands import MACHINE_SETTINGS, FinetuneConfig, PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.errors import ConfigError
from mae_hf.training.finished_runs import read_run

THREE = (True, True, True, False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of 75 % test accuracy."""
    return write_run(tmp_path / "mae", "encoder", THREE, curve=(0.6, 0.7, 0.9))


def refuses(folder: Path) -> str:
    """The message with which this run is refused, one line."""
    with pytest.raises(ConfigError) as error:
        read_run(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_scores_come_from_the_predictions_in_whatever_order_they_are(tmp_path):
    run = read_run(write_run(tmp_path / "mae", "encoder", THREE, index=(3, 1, 0, 2)))
    assert run.index.tolist() == [0, 1, 2, 3] and run.labels.tolist() == [1, 0, 1, 0]
    assert run.scores["accuracy"] == 0.75
    assert run.scores["confusion_matrix"] == [[2, 0], [1, 1]]


def test_a_folder_that_is_no_run_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "nowhere is not a folder" in refuses(tmp_path / "nowhere")
    assert "empty has no config.yaml" in refuses(tmp_path / "empty")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("metrics.json", "is unfinished (no metrics.json): run its command again"),
        ("predictions.parquet", "give fine-tuning runs, not pre-training runs"),
        ("model/config.json", "no model/config.json"),
        ("metrics.jsonl", "metrics.jsonl is missing"),
        ("run.json", "run.json is missing"),
    ],
)
def test_a_run_without_one_of_its_files_is_refused(folder, missing, message):
    (folder / missing).unlink()
    assert message in refuses(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{", "metrics.json is not valid JSON"),
        ("metrics.json", "{}", "lacks test/accuracy, test/f1, eval/accuracy, best_epoch"),
        ("metrics.jsonl", '{"step": 1, "epoch": 1}\n{"st', "metrics.jsonl, line 2 is not valid JSON"),
        (
            "metrics.jsonl",
            '{"step": 1, "epoch": 2}\n{"step": 2, "epoch": 1}',
            "line 2 does not hold numbers and a rising",
        ),
        ("metrics.jsonl", '{"step": 1, "epoch": 1, "eval/accuracy": "x"}', "line 1 does not hold numbers"),
        ("metrics.jsonl", '{"step": 1}', "line 1 does not hold numbers and a rising epoch"),
        ("metrics.jsonl", "[1]", "line 1 does not hold numbers"),
        ("run.json", "[]", "run.json is not a JSON object"),
        ("model/config.json", '{"id2label": {"a": "cat"}}', "keys that are no class numbers, a"),
        ("predictions.parquet", "not parquet", "predictions.parquet is not a readable parquet file"),
        ("model/config.json", "{}", "predictions.parquet: probabilities of shape (4, 2)"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(folder, name, content, message):
    (folder / name).write_text(content)
    assert message in refuses(folder)


def test_scores_that_disagree_with_the_predictions_are_an_error(folder):
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test/accuracy": 0.750002}))
    assert "metrics.json says test/accuracy 0.750002, predictions.parquet gives 0.750000" in refuses(folder)


def test_a_metric_that_is_no_number_is_refused(folder):
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eval/accuracy": float("nan")}))
    assert "says eval/accuracy nan, which is no finite number" in refuses(folder)


def test_curves_of_another_run_are_refused(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert "says eval/accuracy 0.9000, the best of metrics.jsonl is 0.7000" in refuses(folder)
    (folder / "metrics.jsonl").write_text("")
    assert "the best of metrics.jsonl is nan" in refuses(folder)


def test_values_that_were_not_finite_are_left_out_of_the_curves(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "epoch": 9.0, "train/loss": null, "eval/accuracy": null, "eval/f1": NaN}\n')
    run = read_run(folder)
    assert run.history[-1] == {"step": 99, "epoch": 9.0}
    assert run.curve == ([1.0, 2.0, 3.0], [0.6, 0.7, 0.9]) and run.best_validation_accuracy == 0.9


def rewrite(folder: Path, **columns: list) -> None:
    """Replaces columns of predictions.parquet."""
    path = folder / "predictions.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"probabilities": [[0.9, 0.1], [0.9, 0.1], [0.1, float("nan")], [0.9, 0.1]]}, "not finite"),
        ({"probabilities": [[0.9, 0.1], [0.9, 0.1], [0.1, 0.7], [0.9, 0.1]]}, "row 2 add up to 0.8000, not to 1"),
        ({"probabilities": [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]}, "1 predictions are not the class of the"),
        ({"probabilities": [[0.9, 0.1], [1.0], [0.1, 0.9], [0.9, 0.1]]}, "rows of probabilities differ in length"),
        ({"prediction": [0, None, 1, 0]}, "has empty values in prediction"),
        ({"label": ["0", "0", "1", "1"]}, "has the types int64, string, int64, list"),
        ({"probabilities": [["a", "b"]] * 4}, "string>, bool in index, label, prediction, probabilities"),
        ({"probabilities": [0.5, 0.5, 0.5, 0.5]}, "whole numbers, lists of probabilities and true or false are"),
        ({"index": [0, 1, 2, 2]}, "names an image twice"),
        ({"seen": [True, None, False, False]}, "has empty values in seen"),
        ({"seen": [1, 0, 0, 0]}, "true or false are needed"),
        ({"seen": [True, False, False, False]}, "metrics.json says num_seen_test_images nan"),
        ({"label": [0, 0, 1, 2]}, "labels from 0 to 2: with 2 classes they must lie between 0 and 1"),
    ],
)
def test_predictions_that_cannot_be_right_are_refused(folder, columns, message):
    rewrite(folder, **columns)
    assert message in refuses(folder)


def test_seed_place_and_machine_are_no_part_of_the_recipe(tmp_path, folder):
    again = read_run(write_run(tmp_path / "again", "encoder", THREE, seed=7, source="elsewhere"))
    other = read_run(write_run(tmp_path / "other", "encoder", THREE, layer_decay=1.0))
    assert read_run(folder).recipe == again.recipe != other.recipe


def test_encoders_of_several_pre_training_seeds_are_one_recipe(tmp_path):
    inits = []
    pretrainings = [("one", 0, 5.0, "a"), ("two", 1, 5.0, "a"), ("longer", 2, 9.0, "a"), ("others", 3, 5.0, "b")]
    for name, seed, epochs, images in pretrainings:
        config = PretrainConfig(train=PretrainTrainConfig(seed=seed, epochs=epochs, warmup_ratio=0), output_dir=name)
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(json.dumps({"data_fingerprint": images}))
        (tmp_path / name / "config.yaml").write_text(parse.to_yaml(config))
        inits.append(tmp_path / name / "model")
    runs = [read_run(write_run(tmp_path / f"run {init.parent.name}", str(init), THREE)) for init in inits]
    assert runs[0].recipe == runs[1].recipe != runs[2].recipe
    assert set(runs[2].recipe) - set(runs[0].recipe) == {("pretraining.train.epochs", 9.0)}
    assert set(runs[3].recipe) - set(runs[0].recipe) == {("pretraining.images", "b")}


def test_settings_of_the_machine_are_no_part_of_a_recipe(folder):
    keys = {key for key, _ in read_run(folder).settings}
    assert not keys & MACHINE_SETTINGS and "train.layer_decay" in keys
    known = {key for config in (FinetuneConfig, PretrainConfig) for key, _ in parse.flatten(config())}
    assert known >= MACHINE_SETTINGS, "a setting that was renamed"
