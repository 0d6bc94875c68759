"""The tables of the page hold the numbers of the runs, computed by hand here."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from report_pages import small_comparison
from run_folders import write_run

from mae_hf.report.comparison import Comparison, compare_runs
from mae_hf.report.tables import Table, arms_table, choices_table, classes_table, pairs_table, runs_table


def rows(table: Table | None) -> dict[str, Sequence[str]]:
    """The texts of a table, by the first cell of each row."""
    assert table is not None
    texts = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    assert all(len(row) == len(table.head) for row in texts)
    return {first: rest for first, *rest in texts}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Five runs: two fine-tuning seeds of one encoder; two recipes from scratch, one with two seeds."""
    return small_comparison(tmp_path_factory.mktemp("runs"))


def test_the_table_of_arms_holds_means_spreads_intervals_and_their_difference(comparison):
    arms = rows(arms_table(comparison))
    # 11 and 8 of 12 right against 3 and 5; the sample standard deviation of two is their distance / sqrt(2).
    assert arms["test accuracy (%)"] == ["79.2 ± 17.7", "33.3 ± 11.8", "+45.8 points"]
    assert arms["± is the standard deviation over"] == ["2 fine-tuning seeds of one encoder", "2 seeds", ""]
    assert arms["seeds"] == ["0, 1", "0, 1", ""]
    results = comparison.results
    intervals = (results.pretrained.accuracy_interval, results.scratch.accuracy_interval, results.gain_interval)
    assert arms["its 95 % interval over 12 test images"] == [
        f"{100 * interval.low:{form}} to {100 * interval.high:{form}}"
        for interval, form in zip(intervals, (".1f", ".1f", "+.1f"), strict=True)
    ]
    # t of 1 degree of freedom is 12.71, times half the distance of the two
    assert arms["its 95 % interval over runs (Student's t)"] == ["-79.7 to 238.0", "-72.6 to 139.2", "–"]
    assert arms["best validation accuracy (%)"] == ["65.0 ± 35.4", "55.0 ± 7.1", "+10.0"]
    area = arms["mean height of the validation curve (%), epochs 1 to 2"]
    assert area == ["52.5 ± 31.8", "35.0 ± 7.1", "+17.5"]
    # reached by half of the seeds, so the median is not
    reach = "median epoch at which validation accuracy reaches 55.0 %, scratch's best"
    assert arms[reach] == ["not reached", "not reached", ""]
    spread = "1 to not reached, reached by 1 of 2", "2 to not reached, reached by 1 of 2", ""
    assert arms["its smallest and largest value over runs"] == list(spread)


def test_single_runs_have_no_interval_over_runs(tmp_path):
    ours, scratch = (write_run(tmp_path / init, init, (True, False, False, False)) for init in ("mae", "scratch"))
    arms = rows(arms_table(compare_runs([ours], [scratch])))
    assert arms["its 95 % interval over runs (Student's t)"] == ["unknown: one number", "unknown: one number", "–"]
    assert arms["its smallest and largest value over runs"] == ["unknown: one number", "unknown: one number", ""]


def test_both_arms_have_their_accuracy_on_images_that_pre_training_has_not_seen(tmp_path):
    ours = write_run(tmp_path / "mae", "mae", (True, True, False, False), seen=(True, False, False, False))
    other = write_run(tmp_path / "scratch", "scratch", (True, False, False, False), seen=(False,) * 4)
    arms = rows(arms_table(compare_runs([ours], [other])))
    name = "accuracy on the 3 of them that pre-training has not seen (%)"
    assert arms[name] == ["33.3", "0.0", "+33.3 points"]


def test_each_recipe_says_what_it_would_give_and_how_often_it_is_chosen(comparison):
    table = choices_table(comparison)
    texts = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    assert texts == [
        ["MAE pre-trained", "the only one", "2", "65.0", "100", "79.2", "+45.8"],
        ["from scratch", "train.layer_decay 0.65", "2", "55.0", "100", "33.3", "+45.8"],
        ["from scratch", "train.layer_decay 1.0", "1", "30.0", "0", "75.0", "+4.2"],
    ]
    assert table.marked == [True, True, False]


def test_without_a_choice_no_table_of_recipes(tmp_path):
    ours, scratch = (write_run(tmp_path / init, init, (True, False, False, False)) for init in ("mae", "scratch"))
    assert choices_table(compare_runs([ours], [scratch])) is None


def test_runs_of_equal_seed_are_in_the_table_of_pairs(comparison):
    table = pairs_table(comparison)
    assert table.caption.endswith("for runs of equal seed")
    # 2 / 2^8, 2 / 2^3
    assert list(rows(table).values()) == [["0", "8", "0", "0.0078"], ["1", "3", "0", "0.25"]]


def test_every_run_is_in_the_table_of_runs_with_its_recipe(comparison):
    runs = {Path(name).name: row for name, row in rows(runs_table(comparison)).items()}
    assert runs["flat"][:3] == ["scratch", "train.layer_decay 1.0", "75.00"]
    assert runs["scratch1"][1:3] == ["train.layer_decay 0.65", "41.67"] and len(runs) == 5


def test_a_class_without_test_images_has_no_numbers(comparison):
    classes = rows(classes_table(comparison))
    assert classes["<script>hack()</script>"] == ["0", "–", "–", "–", "–", "–"]
    # dog: 4 images, of which the pre-trained runs find 4 and 3, without a false alarm: F1 is 1 and 6/7, 92.9 % in the
    # mean. The runs from scratch find no dog.
    assert classes['dog & "cat"'] == ["4", "87.5", "0.0", "92.9", "0.0", "+92.9"]
