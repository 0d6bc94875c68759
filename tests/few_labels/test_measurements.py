"""Lines that survive a kill, a folder that takes results of one kind only, and means and deviations by hand."""

import json
import statistics

import pytest

from mae_hf.config import ConfigError
from mae_hf.few_labels.measurements import Results, check_inputs, summarize, table


def line(label_set: str, accuracy: float, **fields) -> dict:
    common = {"fraction": None, "draw": 0, "arm": "model", "method": "knn", "pooling": "cls", "num_labels": 60}
    return {"label_set": label_set, **common, "accuracy": accuracy, "f1": accuracy / 2, **fields}


def test_what_is_measured_is_known_to_the_next_run(tmp_path):
    path = tmp_path / "results.jsonl"
    first = Results(path)
    assert not first.has("fold-0", "model", "knn", "cls")
    first.add(line("fold-0", 0.5))
    first.add(line("fold-0", 0.5, method="finetune", pooling=None))
    again = Results(path)
    assert again.lines == first.lines
    assert again.has("fold-0", "model", "knn", "cls") and again.has("fold-0", "model", "finetune", None)
    assert not again.has("fold-0", "scratch", "knn", "cls") and not again.has("fold-0", "model", "knn", "mean")
    assert not again.has("fold-1", "model", "knn", "cls")


@pytest.mark.parametrize("rest", ['{"label_set": "fo', '{"label_set": "fold-1"}'])
def test_the_line_that_a_killed_run_was_writing_is_dropped_and_written_anew(tmp_path, rest: str):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(line("fold-0", 0.5)) + "\n" + rest)
    results = Results(path)
    assert len(results.lines) == 1
    results.add(line("fold-1", 0.7))
    assert [json.loads(text)["accuracy"] for text in path.read_text().splitlines()] == [0.5, 0.7]


def test_results_of_another_model_are_not_mixed_in_but_a_recipe_may_come_later(tmp_path):
    path = tmp_path / "inputs.json"
    check_inputs(path, {"weights": "aa", "data": "1"})
    check_inputs(path, {"weights": "aa", "data": "1", "recipe": "r"})
    check_inputs(path, {"weights": "aa", "data": "1"})
    with pytest.raises(ConfigError, match=r"other inputs \(weights: aa -> bb\): choose another --output_dir"):
        check_inputs(path, {"weights": "bb", "data": "1"})
    with pytest.raises(ConfigError, match="recipe: r -> s"):
        check_inputs(path, {"weights": "aa", "data": "1", "recipe": "s"})


def test_the_summary_has_mean_and_sample_deviation_of_each_group():
    values = [0.5, 0.6, 0.9]
    lines = [line(f"budget-0.05-draw-{i}", v, fraction=0.05, num_labels=20) for i, v in enumerate(values)]
    lines += [line("budget-1-draw-0", 0.95, fraction=1.0, num_labels=300)]
    lines += [line(f"budget-0.05-draw-{i}", v, fraction=0.05, arm="scratch") for i, v in enumerate((0.1, 0.2))]
    rows = summarize(lines)
    assert [(row["fraction"], row["arm"], row["n"]) for row in rows] == [
        (0.05, "model", 3), (0.05, "scratch", 2), (1.0, "model", 1)
    ]  # fmt: skip
    assert rows[0]["accuracy_mean"] == pytest.approx(2 / 3)
    assert rows[0]["accuracy_sd"] == pytest.approx(statistics.stdev(values))
    assert rows[0]["f1_mean"] == pytest.approx(1 / 3)
    assert rows[2]["accuracy_sd"] is None
    printed = table(rows).splitlines()
    assert "66.67 ± 20.82" in printed[1] and printed[1].split()[0] == "20" and printed[1].endswith("3")
    assert "95.00 " in printed[3] and printed[3].count("±") == 0
