"""The picture of few labels: what it draws is what was measured, with units and the word unofficial."""

from pathlib import Path

import pytest

from mae_hf.evaluation.few_labels.curves import few_labels_figure
from mae_hf.evaluation.few_labels.measurements import summarize
from mae_hf.figures import save


def lines(fractions: tuple, draws: int) -> list[dict]:
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
    measured = lines((0.05, 0.25, 1.0), 3)
    measured += [line | {"fraction": 0.01} for line in measured if line["fraction"] == 0.05]
    figure = few_labels_figure(summarize(measured), measured, "UNOFFICIAL label budgets")
    assert [axes.get_title() for axes in figure.axes][:2] == [
        "kNN on frozen features",
        "linear probe on frozen features",
    ]
    panel = figure.axes[0]
    assert panel.get_xscale() == "log" and "log scale" in panel.get_xlabel()
    assert panel.get_ylabel() == "test accuracy (%), mean ± standard deviation"
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
    measured = lines((None,), 5)
    figure = few_labels_figure(summarize(measured), measured, "official protocol")
    panel = figure.axes[0]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == [
        "pre-trained\nCLS", "pre-trained\nmean", "random start\nCLS", "random start\nmean"
    ]  # fmt: skip
    single = panel.lines[0]
    assert len(single.get_ydata()) == 5
    assert sorted(single.get_ydata())[0] == pytest.approx(100 * (0.5 + 0.06))
    assert panel.texts[0].get_text() == f"{100 * (0.5 + 0.06 + 0.04):.1f}"
    assert save(figure, tmp_path / "folds.png").stat().st_size > 10_000
