"""Lines that survive a kill, scores counted by hand, and a folder that takes results of one kind only."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mae_hf.errors import ConfigError
from mae_hf.evaluation.few_labels.measurements import Results, check_inputs

LABELS = np.array([0, 0, 1, 1])
HALF = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])  # right, wrong, right, wrong


def line(label_set: str, **fields) -> dict:
    common = {"fraction": None, "draw": 0, "arm": "model", "method": "knn", "pooling": "cls", "num_labels": 60}
    return {"label_set": label_set, **common, **fields}


def results_in(folder: Path, seen: np.ndarray | None = None) -> Results:
    return Results(folder, LABELS, ("cat", "dog"), seen)


def test_what_is_measured_is_known_to_the_next_run(tmp_path):
    first = results_in(tmp_path)
    assert not first.has("fold-0", "model", "knn", "cls")
    first.add(line("fold-0"), HALF)
    first.add(line("fold-0", method="finetune", pooling=None), HALF)
    again = results_in(tmp_path)
    assert again.lines == first.lines
    assert again.has("fold-0", "model", "knn", "cls") and again.has("fold-0", "model", "finetune", None)
    assert not again.has("fold-0", "scratch", "knn", "cls") and not again.has("fold-0", "model", "knn", "mean")
    assert not again.has("fold-1", "model", "knn", "cls")


@pytest.mark.parametrize("rest", ['{"label_set": "fo', '{"label_set": "fold-1"}'])
def test_the_line_that_a_killed_run_was_writing_is_dropped_and_written_anew(tmp_path, rest: str):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(line("fold-0", accuracy=0.25)) + "\n" + rest)
    results = results_in(tmp_path)
    assert len(results.lines) == 1
    results.add(line("fold-1"), HALF)
    assert [json.loads(text)["accuracy"] for text in path.read_text().splitlines()] == [0.25, 0.5]


def test_a_line_has_the_scores_of_its_predictions_with_and_without_what_was_seen(tmp_path):
    results = results_in(tmp_path, seen=np.array([False, True, False, False]))
    results.add(line("fold-0"), HALF)
    results.add(line("fold-1", method="finetune", pooling=None), HALF)
    for found in results.lines:
        assert (found["accuracy"], found["f1"]) == (0.5, 0.5)
        assert found["unseen_accuracy"] == pytest.approx(2 / 3)
        assert found["unseen_f1"] == pytest.approx(2 / 3)  # of the cats 1 of 1, and one dog taken for a cat
    names = ["fold-0-model-knn-cls", "fold-1-model-finetune"]
    assert sorted(file.stem for file in (tmp_path / "predictions").iterdir()) == names
    table = pq.read_table(tmp_path / "predictions" / "fold-0-model-knn-cls.parquet").to_pydict()
    assert table["label"] == LABELS.tolist() and table["prediction"] == [0, 1, 1, 0]
    assert table["seen"] == [False, True, False, False]
    np.testing.assert_allclose(table["probabilities"], HALF, atol=1e-7)


@pytest.mark.parametrize("seen", [None, np.full(4, True)])
def test_where_nothing_is_known_to_be_unseen_there_is_no_score_of_it(tmp_path, seen: np.ndarray | None):
    results = results_in(tmp_path, seen)
    results.add(line("fold-0"), HALF)
    assert not [key for key in results.lines[0] if "unseen" in key]


def test_results_of_another_model_are_not_mixed_in_but_a_recipe_may_come_later(tmp_path):
    path = tmp_path / "inputs.json"
    check_inputs(path, {"weights": "aa", "data": "1"})
    check_inputs(path, {"weights": "aa", "data": "1", "recipe": "r"})
    check_inputs(path, {"weights": "aa", "data": "1"})
    with pytest.raises(ConfigError, match=r"other inputs \(weights: aa -> bb\): choose another --output_dir"):
        check_inputs(path, {"weights": "bb", "data": "1"})
    with pytest.raises(ConfigError, match="recipe: r -> s"):
        check_inputs(path, {"weights": "aa", "data": "1", "recipe": "s"})
