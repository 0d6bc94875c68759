"""Lines that survive a kill, scores counted by hand, a folder for results of one kind, and the picture of them."""

import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from mae_hf.errors import ConfigError
from mae_hf.evaluation.few_labels.results import (
    Measurements,
    few_labels_figure,
    summarize,
    summary_text,
    write_summary,
)
from mae_hf.figures import save

LABELS = np.array([0, 0, 1, 1])
HALF = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])  # right, wrong, right, wrong


def line(label_set: str, **fields) -> dict:
    common = {"fraction": None, "draw": 0, "arm": "model", "method": "knn", "pooling": "cls", "num_labels": 60}
    return {"label_set": label_set, **common, **fields}


def results_in(folder: Path, seen: np.ndarray | None = None, inputs: dict | None = None) -> Measurements:
    images = SimpleNamespace(labels=LABELS, class_names=("cat", "dog"), file_names=lambda: [None] * 4)
    return Measurements(folder, images, seen, inputs or {})


def test_what_is_measured_is_known_to_the_next_run(tmp_path):
    first = results_in(tmp_path)
    assert not first.has(line("fold-0"))
    first.add(line("fold-0"), HALF)
    first.add(line("fold-0", method="finetune", pooling=None), HALF)
    again = results_in(tmp_path)
    assert again.lines == first.lines
    assert again.has(line("fold-0")) and again.has(line("fold-0", method="finetune", pooling=None))
    assert not again.has(line("fold-0", arm="scratch")) and not again.has(line("fold-0", pooling="mean"))
    assert not again.has(line("fold-1"))


@pytest.mark.parametrize("rest", ['{"label_set": "fo', '{"label_set": "fold-1"}'])
def test_the_line_that_a_killed_run_was_writing_is_dropped_and_written_anew(tmp_path, rest: str):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(line("fold-0", accuracy=0.25)) + "\n" + rest)
    results = results_in(tmp_path)
    assert len(results.lines) == 1
    results.add(line("fold-1"), HALF)
    assert [json.loads(text)["accuracy"] for text in path.read_text().splitlines()] == [0.25, 0.5]


def test_two_commands_add_to_one_folder(tmp_path):
    first, second = results_in(tmp_path), results_in(tmp_path)
    first.add(line("fold-0"), HALF)
    second.add(line("fold-1"), HALF)
    first.add(line("fold-2"), HALF)
    assert [found["label_set"] for found in results_in(tmp_path).lines] == ["fold-0", "fold-1", "fold-2"]


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


def test_results_of_another_model_are_not_mixed_in(tmp_path):
    for _ in range(2):
        results_in(tmp_path, inputs={"weights": "aa", "data": "1"})
    with pytest.raises(ConfigError, match=r"other inputs \(weights: aa -> bb\): choose another --output_dir"):
        results_in(tmp_path, inputs={"weights": "bb", "data": "1"})
    with pytest.raises(ConfigError, match="weights: aa -> bb; data: 1 -> 2"):
        results_in(tmp_path, inputs={"weights": "bb", "data": "2"})


def scored(label_set: str, accuracy: float, **fields) -> dict:
    return line(label_set, accuracy=accuracy, f1=accuracy / 2, **fields)


def test_the_summary_has_mean_and_sample_deviation_of_each_group():
    values = [0.5, 0.6, 0.9]
    lines = [scored(f"budget-0.05-draw-{i}", v, fraction=0.05, num_labels=20) for i, v in enumerate(values)]
    lines += [scored("budget-1-draw-0", 0.95, fraction=1.0, num_labels=300)]
    lines += [scored(f"budget-0.05-draw-{i}", v, fraction=0.05, arm="scratch") for i, v in enumerate((0.1, 0.2))]
    rows = summarize(lines)
    assert [(row["fraction"], row["arm"], row["n"]) for row in rows] == [
        (0.05, "model", 3), (0.05, "scratch", 2), (1.0, "model", 1)
    ]  # fmt: skip
    assert rows[0]["accuracy_mean"] == pytest.approx(2 / 3)
    assert rows[0]["accuracy_sd"] == pytest.approx(statistics.stdev(values))
    assert rows[0]["f1_mean"] == pytest.approx(1 / 3)
    assert rows[2]["accuracy_sd"] is None
    printed = summary_text(rows).splitlines()
    assert "66.67 ± 20.82" in printed[1] and printed[1].split()[0] == "20" and printed[1].endswith("3")
    assert "95.00 " in printed[3] and printed[3].count("±") == 0


def test_scores_without_what_was_seen_are_summarised_and_shown_where_something_was_seen():
    lines = [scored(f"fold-{i}", 0.5, unseen_accuracy=v, unseen_f1=v / 2) for i, v in enumerate((0.3, 0.5))]
    (row,) = summarize(lines)
    assert row["unseen_accuracy_mean"] == pytest.approx(0.4)
    assert row["unseen_accuracy_sd"] == pytest.approx(statistics.stdev([0.3, 0.5]))
    assert row["unseen_f1_mean"] == pytest.approx(0.2)
    title, shown = summary_text([row]).splitlines()
    assert "acc. unseen" in title and "40.00 ± 14.14" in shown
    nothing_seen = [scored("fold-0", 0.5, unseen_accuracy=0.5, unseen_f1=0.25)]
    assert "unseen" not in summary_text(summarize(nothing_seen))
    (mixed,) = summarize([*lines, scored("fold-2", 0.5)])  # a line of another version: no mean over a part of the sets
    assert "unseen_accuracy_mean" not in mixed and mixed["n"] == 3


def test_the_summary_is_written_with_what_it_is_about(tmp_path: Path):
    lines = [scored(f"fold-{i}", 0.5 + i / 10) for i in range(3)]
    printed = write_summary(tmp_path, lines, {"protocol": "UNOFFICIAL folds", "num_seen_test_images": 2})
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == {"protocol": "UNOFFICIAL folds", "num_seen_test_images": 2, "results": summarize(lines)}
    assert (tmp_path / "few_labels.png").stat().st_size > 5_000
    assert "60.00 ± 10.00" in printed and printed.endswith("UNOFFICIAL folds")


def measured_lines(fractions: tuple, draws: int) -> list[dict]:
    """Accuracies that rise with the labels and differ by arm, method and draw."""
    found = []
    for fraction in fractions:
        for draw in range(draws):
            for arm, plus in (("model", 0.2), ("scratch", 0.0)):
                for method, pooling in (("knn", "cls"), ("knn", "mean"), ("linear", "cls"), ("finetune", None)):
                    accuracy = 0.3 + plus + 0.3 * (fraction or 0.2) + 0.02 * draw
                    line = {"label_set": f"{fraction}-{draw}", "fraction": fraction, "arm": arm, "method": method}
                    line |= {"pooling": pooling, "accuracy": accuracy, "f1": accuracy}
                    found.append(line | {"num_labels": round(300 * (fraction or 0.2))})
    return found


def test_budgets_are_on_a_log_axis_with_numbers_parts_and_error_bars(tmp_path: Path):
    measured = measured_lines((0.05, 0.25, 1.0), 3)
    measured += [line | {"fraction": 0.01} for line in measured if line["fraction"] == 0.05]
    figure = few_labels_figure(summarize(measured), measured, "UNOFFICIAL label budgets")
    assert [axes.get_title() for axes in figure.axes][:2] == [
        "kNN on frozen features",
        "linear probe on frozen features",
    ]
    panel = figure.axes[0]
    assert panel.get_xscale() == "log" and "log scale" in panel.get_xlabel()
    assert panel.get_ylabel() == "test accuracy (%), mean ± sd"
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["15\n1, 5 %", "75\n25 %", "300\n100 %"]
    line, _, (bars,) = panel.containers[0]
    assert line.get_xdata().tolist() == [15, 15, 75, 300]
    assert line.get_ydata()[0] == pytest.approx(100 * (0.5 + 0.3 * 0.05 + 0.02))
    low, high = bars.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(2)  # the sample deviation of 0, 2 and 4 points
    styles = {(c[0].get_marker(), c[0].get_linestyle(), c[0].get_markerfacecolor()) for c in panel.containers}
    assert len(styles) == 4  # told apart without colour, too
    assert len({style[:2] for style in styles}) == 4
    assert "UNOFFICIAL" in figure.get_suptitle()
    assert save(figure, tmp_path / "budgets.png").stat().st_size > 10_000


def test_folds_are_drawn_one_by_one_beside_their_mean(tmp_path: Path):
    measured = measured_lines((None,), 5)
    figure = few_labels_figure(summarize(measured), measured, "official protocol")
    panel = figure.axes[0]
    labels = [tick.get_text().replace("\n", " ") for tick in panel.get_yticklabels()]
    assert labels[1:4] == ["knn, pre-trained, CLS", "knn, pre-trained, mean", "linear, pre-trained, CLS"]
    bar, (singles, line) = panel.patches[1], panel.lines[2:4]
    assert sorted(singles.get_xdata()) == pytest.approx([56, 58, 60, 62, 64])
    assert bar.get_width() == pytest.approx(60) and panel.texts[1].get_text() == "60.0\n(56.8 to 63.2)"
    assert line.get_xdata() == pytest.approx([60 - 10**0.5, 60 + 10**0.5])  # the sample deviation of 0, 2, 4, 6, 8
    assert save(figure, tmp_path / "folds.png").stat().st_size > 10_000
