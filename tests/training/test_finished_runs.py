"""Reading a run: files that are missing, malformed or from different runs are named in one line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folders import write_probes, write_run

from mae_hf.config import parse
from mae_hf.config.runs import MACHINE_SETTINGS, FinetuneConfig, PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.errors import ConfigError
from mae_hf.training.finished_runs import read_run, read_runs

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


def test_predictions_are_read_in_the_order_of_their_index(tmp_path):
    test = read_run(write_run(tmp_path / "mae", "encoder", THREE, index=(3, 1, 0, 2), seen=(True, *[False] * 3))).test
    assert test.index.tolist() == [0, 1, 2, 3] and test.labels.tolist() == [1, 0, 1, 0]
    assert test.predictions.tolist() == [1, 0, 0, 0] and test.correct.tolist() == [True, True, False, True]
    assert test.probabilities[2] == pytest.approx([0.9, 0.1]) and test.seen.tolist() == [False, False, False, True]


def test_a_folder_that_is_no_run_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "nowhere is not a folder" in refuses(tmp_path / "nowhere")
    assert "empty has no config.yaml" in refuses(tmp_path / "empty")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("metrics.json", "mae has no metrics.json: the run is unfinished. Run its command again"),
        ("predictions.parquet", "give fine-tuning runs, not pre-training runs"),
        ("validation_predictions.parquet", "validation_predictions.parquet is missing: run finetune again"),
        ("model/config.json", "config.json cannot be read (No such file or directory)"),
        ("metrics.jsonl", "mae has no metrics.jsonl: the curves are drawn from it"),
        ("run.json", "run.json cannot be read (No such file or directory)"),
    ],
)
def test_a_run_without_one_of_its_files_is_refused(folder, missing, message):
    (folder / missing).unlink()
    assert message in refuses(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1, "epoch": 1}\n{"st', "metrics.jsonl, line 2 cannot be read (Unterminated"),
        ("metrics.jsonl", '{"epoch": 2}\n{"epoch": 1}', "line 2 has no epoch, or a smaller one than the line above"),
        ("metrics.jsonl", '{"step": 1}', "line 1 has no epoch"),
        ("metrics.jsonl", "[1]", "line 1 cannot be read (the file is '[1]', not of type dict"),
        ("run.json", "[]", "run.json cannot be read (the file is not a JSON object)"),
        ("run.json", '{"num_machines": "x"}', "run.json cannot be read (num_machines is 'x', not of type int)"),
        ("model/config.json", '{"id2label": {"a": "cat"}}', "keys of id2label are not the class numbers"),
        (
            "model/config.json",
            '{"id2label": {"0": 1}}',
            "cannot be read (0 is '1', not of type str",
        ),
        ("model/config.json", '{"id2label": {"0": "a"}}', "a row has not one probability for each of the 1 classes"),
        ("model/config.json", "{}", "config.json cannot be read (id2label is missing)"),
        ("predictions.parquet", "not parquet", "predictions.parquet cannot be read ("),
    ],
)
def test_a_file_that_cannot_be_read_is_named(folder, name, content, message):
    (folder / name).write_text(content)
    assert message in refuses(folder)


def test_curves_of_a_different_run_are_refused(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert "eval/accuracy 0.700000, validation_predictions.parquet has 0.900000. The files are" in refuses(folder)
    (folder / "metrics.jsonl").write_text("")
    assert "metrics.jsonl has eval/accuracy nan" in refuses(folder)


def test_values_that_were_not_finite_are_left_out_of_the_curves(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "epoch": 9.0, "train/loss": null, "eval/accuracy": null, "eval/f1": NaN}\n')
    run = read_run(folder)
    assert run.history[-1] == {"step": 99, "epoch": 9.0}
    assert run.curve == ([1.0, 2.0, 3.0], [0.6, 0.7, 0.9]) and run.best_validation_accuracy == 0.9
    assert run.best_epoch == 3


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
        ({"probabilities": [[0.9, 0.1], [0.9, 0.1], [0.1, float("nan")], [0.9, 0.1]]}, "below 0 or not finite"),
        ({"probabilities": [[0.9, 0.1], [0.9, 0.1], [0.1, 0.7], [0.9, 0.1]]}, "probabilities do not add up to 1"),
        ({"probabilities": [[0.9, 0.1]] * 4}, "a prediction is not the class of the greatest probability"),
        ({"probabilities": [[0.9, 0.1], [1.0], [0.1, 0.9], [0.9, 0.1]]}, "a row has not one probability for each"),
        ({"prediction": [0, None, 1, 0]}, "has empty values in prediction"),
        ({"label": ["a", "0", "1", "1"]}, "predictions.parquet cannot be read (Failed to parse string: 'a'"),
        ({"probabilities": [["a", "b"]] * 4}, "predictions.parquet cannot be read ("),
        ({"probabilities": [0.5, 0.5, 0.5, 0.5]}, "predictions.parquet cannot be read ("),
        ({"index": [0, 1, 2, 2]}, "an image has several rows"),
        ({"seen": [True, None, False, False]}, "has empty values in seen"),
        ({"label": [0, 0, 1, 2]}, "a class is not one of 0 to 1"),
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
    known = parse.flatten(FinetuneConfig()).keys() | parse.flatten(PretrainConfig()).keys()
    assert known >= MACHINE_SETTINGS, "a setting that was renamed"


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    """Two probes of an encoder, each on two poolings."""
    return write_probes(tmp_path / "probes", "encoder", {"knn": (THREE, 0.6), "linear": (THREE, 0.7)})


def test_every_probe_of_a_folder_is_a_run(probes, folder):
    runs = read_runs(probes)
    assert [run.probe for run in runs] == ["knn-cls", "knn-mean", "linear-cls", "linear-mean"]
    assert [run.best_validation_accuracy for run in runs] == [0.6, 0.59, 0.7, 0.69]
    assert {(run.init, run.seed, run.from_scratch) for run in runs} == {("encoder", None, False)}
    assert runs[0].shape["hidden_size"] == 8 and runs[0].name == f"{probes} knn-cls"
    assert [run.path for run in read_runs(folder)] == [folder]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.yaml", None, "has predictions, but no config.yaml: run evaluate again"),
        ("run.json", {"class_names": None}, "lacks class_names, or the encoder_shape of an encoder"),
        ("run.json", {"encoder_shape": {"image_size": 4}}, "lacks class_names, or the encoder_shape"),
        ("run.json", {"class_names": ["cat", "d\x1bog"]}, "has a class name of 4 characters"),
        ("metrics.json", {"linear/mean/accuracy": 0.5}, "linear/mean/accuracy 0.5, its predictions have 0.750000"),
        ("metrics.json", {"linear/cls/validation_accuracy": "x"}, "from different evaluations: run evaluate"),
        ("validation_predictions/knn-cls.parquet", None, "knn-cls.parquet is missing"),
    ],
)
def test_probes_whose_files_are_missing_or_mixed_are_refused(probes, file, change, message):
    path = probes / file
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError) as error:
        read_runs(probes)
    assert message in str(error.value) and "\n" not in str(error.value)
