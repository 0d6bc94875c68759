"""Comparing runs: the numbers come from the files, and what cannot be compared is refused in one line."""

import json
from pathlib import Path

import pytest
from run_folders import write_run

from mae_hf.comparison import compare, read_run
from mae_hf.config import ConfigError

ALL, HALF = (True,) * 4, (True, True, False, False)
THREE = (True, True, True, False)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A pre-trained run of 75 % and a scratch run of 50 % test accuracy."""
    pretrained = write_run(tmp_path / "mae", "runs/pretrain/digits", THREE, curve=(0.6, 0.7, 0.9))
    return pretrained, write_run(tmp_path / "scratch", "scratch", HALF, curve=(0.3, 0.65, 0.6))


def test_the_answer_is_one_sentence_with_both_numbers(runs):
    comparison = compare([runs[0]], [runs[1]])
    assert comparison.answer() == (
        "With 270 labels, the MAE-pre-trained ViT reaches 75.0 % test accuracy, the same network from scratch 50.0 %: "
        "+25.0 points (1 run each)."
    )


def test_a_loss_against_scratch_is_said_plainly(tmp_path):
    worse = write_run(tmp_path / "mae", "encoder", HALF)
    better = write_run(tmp_path / "scratch", "scratch", ALL)
    assert "-50.0 points, so pre-training did not help here (1 run each)." in compare([worse], [better]).answer()


def test_equal_runs_are_not_called_a_gain(tmp_path):
    arms = [write_run(tmp_path / init, init, HALF) for init in ("encoder", "scratch")]
    assert "less than 0.1 points apart" in compare(arms[:1], arms[1:]).answer()


def test_the_baseline_is_the_recipe_that_is_best_on_validation_not_on_test(tmp_path, runs):
    lucky = write_run(tmp_path / "lucky", "scratch", ALL, curve=(0.2, 0.4))
    comparison = compare([runs[0]], [lucky, runs[1]])
    assert [run.path.name for run in comparison.scratch] == ["scratch", "lucky"]
    assert "+25.0 points (pre-trained: 1 run; scratch: best of 2 by validation accuracy)" in comparison.answer()
    assert [row["chosen"] for row in comparison.table()] == [True, True, False]


def test_epochs_to_the_scratch_models_best_are_counted_or_not_reached(tmp_path, runs):
    slow = write_run(tmp_path / "slow", "encoder", HALF, curve=(0.1, 0.2))
    rows = {Path(row["run"]).name: row for row in compare([runs[0], slow], [runs[1]]).table()}
    # Scratch's best is 0.65, at epoch 2; the pre-trained run has 0.6 after epoch 1 and 0.7 after epoch 2.
    assert {name: row["epochs_to_scratch_best"] for name, row in rows.items()} == {"mae": 2, "slow": None, "scratch": 2}
    assert rows["mae"]["best_epoch"] == 3 and rows["mae"]["num_parameters"] == 1234


def test_scores_come_from_the_predictions_in_whatever_order_they_are(tmp_path):
    run = read_run(write_run(tmp_path / "mae", "encoder", THREE, index=(3, 1, 0, 2)))
    assert run.index.tolist() == [0, 1, 2, 3] and run.labels.tolist() == [1, 0, 1, 0]
    assert run.scores["accuracy"] == 0.75
    assert run.scores["confusion_matrix"] == [[2, 0], [1, 1]]


def refuses(pretrained: list[Path], scratch: list[Path]) -> str:
    """The message with which these arms are refused, one line."""
    with pytest.raises(ConfigError) as error:
        compare(pretrained, scratch)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_that_is_no_run_is_named(tmp_path, runs):
    (tmp_path / "empty").mkdir()
    assert "nowhere is not a folder" in refuses([tmp_path / "nowhere"], [runs[1]])
    assert "empty has no config.yaml" in refuses([runs[0]], [tmp_path / "empty"])


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
def test_a_run_without_one_of_its_files_is_refused(runs, missing, message):
    (runs[1] / missing).unlink()
    assert message in refuses([runs[0]], [runs[1]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{", "metrics.json is not valid JSON"),
        ("metrics.json", "{}", "lacks test/accuracy, test/f1, eval/accuracy, best_epoch"),
        ("metrics.jsonl", '{"step": 1, "epoch": 1}\n{"st', "metrics.jsonl, line 2 is not valid JSON"),
        ("predictions.parquet", "not parquet", "predictions.parquet is not a readable parquet file"),
        ("model/config.json", "{}", "predictions.parquet: probabilities of shape (4, 2)"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(runs, name, content, message):
    (runs[1] / name).write_text(content)
    assert message in refuses([runs[0]], [runs[1]])


def test_scores_that_disagree_with_the_predictions_are_an_error(runs):
    path = runs[0] / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test/accuracy": 0.750002}))
    assert "metrics.json says test/accuracy 0.750002, predictions.parquet gives 0.750000" in refuses(
        *[[r] for r in runs]
    )


def test_a_run_in_the_wrong_arm_is_refused(runs):
    assert "was trained from scratch" in refuses([runs[1]], [runs[0]])
    assert "started from runs/pretrain/digits, not from scratch" in refuses([runs[0]], [runs[1], _copy(runs[0])])


def _copy(run: Path) -> Path:
    return write_run(run.with_name("again"), "runs/pretrain/digits", THREE)


def test_a_run_that_is_given_twice_is_refused(runs):
    assert "is given more than once" in refuses([runs[0], runs[0] / ".." / runs[0].name], [runs[1]])


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"class_names": ("cat", "cow")}, "has the classes cat, dog"),
        ({"labels": (0, 1, 0, 1)}, "were tested on different images or labels"),
        ({"index": (0, 1, 2, 4)}, "were tested on different images or labels"),
        ({"fingerprint": "another"}, "were trained on different images or labels"),
        ({"hidden_size": 16}, "are different networks: they differ in model.hidden_size"),
    ],
)
def test_runs_that_answer_different_questions_are_refused(tmp_path, runs, difference, message):
    other = write_run(tmp_path / "other", "scratch", HALF, **difference)
    assert message in refuses([runs[0]], [other])
