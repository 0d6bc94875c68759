"""Means and deviations by hand, and the files that hold them."""

import json
import statistics
from pathlib import Path

import pytest

from mae_hf.evaluation.few_labels.summary import summarize, table, write_summary


def line(label_set: str, accuracy: float, **fields) -> dict:
    common = {"fraction": None, "draw": 0, "arm": "model", "method": "knn", "pooling": "cls", "num_labels": 60}
    return {"label_set": label_set, **common, "accuracy": accuracy, "f1": accuracy / 2, **fields}


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


def test_scores_without_what_was_seen_are_summarised_and_shown_where_something_was_seen():
    lines = [line(f"fold-{i}", 0.5, unseen_accuracy=v, unseen_f1=v / 2) for i, v in enumerate((0.3, 0.5))]
    (row,) = summarize(lines)
    assert row["unseen_accuracy_mean"] == pytest.approx(0.4)
    assert row["unseen_accuracy_sd"] == pytest.approx(statistics.stdev([0.3, 0.5]))
    assert row["unseen_f1_mean"] == pytest.approx(0.2)
    title, shown = table([row]).splitlines()
    assert "acc. unseen" in title and "40.00 ± 14.14" in shown
    nothing_seen = [line("fold-0", 0.5, unseen_accuracy=0.5, unseen_f1=0.25)]
    assert "unseen" not in table(summarize(nothing_seen))
    (mixed,) = summarize([*lines, line("fold-2", 0.5)])  # a line of another version: no mean over a part of the sets
    assert "unseen_accuracy_mean" not in mixed and mixed["n"] == 3


def test_the_summary_is_written_with_what_it_is_about(tmp_path: Path):
    lines = [line(f"fold-{i}", 0.5 + i / 10) for i in range(3)]
    printed = write_summary(tmp_path, lines, {"protocol": "UNOFFICIAL folds", "num_seen_test_images": 2})
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == {"protocol": "UNOFFICIAL folds", "num_seen_test_images": 2, "results": summarize(lines)}
    assert (tmp_path / "few_labels.png").stat().st_size > 5_000
    assert "60.00 ± 10.00" in printed and printed.endswith("UNOFFICIAL folds")
