"""The page opens with the answer, requests nothing, shows names as text, and holds numbers computed by hand here."""

import re
from pathlib import Path

import pytest
from report_pages import CLASS_NAMES, Parsed, page_of, small_comparison, write_page
from run_folders import write_run

from mae_hf.report.comparison import Comparison, compare_runs


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a comparison of five runs."""
    return write_page(tmp_path_factory.mktemp("page")).read_text(encoding="utf-8")


def test_the_page_opens_with_the_answer(html, tmp_path):
    first = next(text for tag, text in Parsed(html).texts if tag in ("h1", "h2", "p", "td"))
    assert first == small_comparison(tmp_path).answer()
    assert first.startswith("With 270 labels") and "95 % interval" in first


def test_the_page_needs_nothing_outside_of_itself(html):
    parsed = Parsed(html)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in parsed.addresses)
    assert {address[1:] for address in parsed.addresses if address[0] == "#"} == set(parsed.ids)
    assert "default-src 'none'" in html and not re.search(r"https?:|@import|url\(", html)
    assert parsed.tags.count("script") == parsed.tags.count("main") == parsed.tags.count("h1") == 1
    assert parsed.alts == [text for tag, text in parsed.texts if tag == "figcaption"]
    assert [text.split(",")[0] for text in parsed.alts] == [
        "A bar ends at the mean of an arm. Points are its runs",
        "Up to 9 misclassified test images of each arm",
        "Held-out images",
    ]


def test_names_from_outside_stay_text(html):
    parsed = Parsed(html)
    assert not {"b", "i"} & set(parsed.tags) and parsed.tags.count("img") == 3
    assert set(CLASS_NAMES) < set(parsed.table("Recall"))
    assert any(name.endswith("mae <b>0") for name in parsed.table("All runs"))
    assert "<i>a</i>" in parsed.table("The audit")
    assert "(<i>.png of the pre-training run)" in parsed.alts[2]


def test_a_table_of_numbers_can_be_sorted_and_cells_that_differ_are_marked(html):
    assert re.search(r'<th scope="col" class="number"><button type="button">seed</button></th>', html)
    assert 'data-value="">not reached</td>' in html
    assert '<td class="number" data-title="test accuracy (%)" data-value="0.75">75.00</td>' in html
    assert html.count('<tr class="chosen">') == 4 + 2  # runs and recipes
    assert "<mark>≠ scratch</mark>" in html and "train.<wbr>layer_<wbr>decay 1.0" in html


def test_what_could_not_be_drawn_and_what_to_bear_in_mind_is_said(html):
    items = [text for tag, text in Parsed(html).texts if tag == "li"]
    assert "No <map>: the images are gone" in items
    assert any(text.startswith("No test image belongs to <script>hack()</script>.") for text in items)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Five runs: two fine-tuning seeds of one encoder; two recipes from scratch, one with two seeds."""
    return small_comparison(tmp_path_factory.mktemp("runs"))


def test_the_table_of_arms_holds_means_spreads_intervals_and_their_difference(comparison):
    arms = page_of(comparison).table("Both arms")
    # 11 and 8 of 12 right against 3 and 5; the sample standard deviation of two is their distance / sqrt(2).
    assert arms["test accuracy (%)"] == ["79.2 ± 17.7", "33.3 ± 11.8", "+45.8 points"]
    assert arms["± is the standard deviation over"] == ["2 fine-tuning seeds of one encoder", "2 seeds", ""]
    assert arms["seeds"] == ["0, 1", "0, 1", ""]
    results = comparison.results
    intervals = (
        results.arms["MAE pre-trained"].accuracy_interval,
        results.arms["from scratch"].accuracy_interval,
        results.gain_interval,
    )
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


def test_rows_without_a_number_are_left_out(tmp_path):
    ours, scratch = (write_run(tmp_path / init, init, (True, False, False, False)) for init in ("mae", "scratch"))
    arms = page_of(compare_runs([ours], [scratch])).table("Both arms")
    assert "its 95 % interval over 4 test images" in arms
    assert not {"its 95 % interval over runs (Student's t)", "its smallest and largest value over runs"} & set(arms)


def test_the_accuracies_come_first_and_recipe_and_environment_are_folded(html):
    parsed = Parsed(html)
    assert parsed.tags.index("img") < parsed.tags.index("nav") < parsed.tags.index("table")
    folded = re.findall(r'<section id="(\w+)"><details><summary><h2>', html)
    assert folded == ["recipe", "environment"] and parsed.tags.count("details") == 2


def test_both_arms_have_their_accuracy_on_images_that_pre_training_has_not_seen(tmp_path):
    ours = write_run(tmp_path / "mae", "mae", (True, True, False, False), seen=(True, False, False, False))
    other = write_run(tmp_path / "scratch", "scratch", (True, False, False, False), seen=(False,) * 4)
    arms = page_of(compare_runs([ours], [other])).table("Both arms")
    name = "accuracy on the 3 of them that pre-training has not seen (%)"
    assert arms[name] == ["33.3", "0.0", "+33.3 points"]


def test_each_recipe_says_what_it_would_give_and_how_often_it_is_chosen(comparison):
    (rows,) = (rows for caption, rows in page_of(comparison).tables.items() if caption.startswith("Recipes"))
    assert rows[1:] == [
        ["MAE pre-trained", "the only one", "2", "65.0", "100", "79.2", "+45.8"],
        ["from scratch", "train.layer_decay 0.65", "2", "55.0", "100", "33.3", "+45.8"],
        ["from scratch", "train.layer_decay 1.0", "1", "30.0", "0", "75.0", "+4.2"],
    ]


def test_without_a_choice_no_table_of_recipes(tmp_path):
    ours, scratch = (write_run(tmp_path / init, init, (True, False, False, False)) for init in ("mae", "scratch"))
    page = page_of(compare_runs([ours], [scratch]))
    assert not any(caption.startswith("Recipes") for caption in page.tables)


def test_runs_of_equal_seed_are_in_the_table_of_pairs(comparison):
    table = page_of(comparison).table(
        "Pairs: test images that only one of the two classifies correctly, for runs of equal"
    )
    # 2 / 2^8, 2 / 2^3
    assert list(table.values())[1:] == [["0", "8", "0", "0.0078"], ["1", "3", "0", "0.25"]]


def test_every_run_is_in_the_table_of_runs_with_its_recipe(comparison):
    runs = {Path(name).name: row for name, row in page_of(comparison).table("All runs").items()}
    assert runs["flat"][:3] == ["scratch", "train.layer_decay 1.0", "75.00"]
    assert runs["scratch1"][1:3] == ["train.layer_decay 0.65", "41.67"] and len(runs) == 1 + 5


def test_a_class_without_test_images_has_no_numbers(comparison):
    classes = page_of(comparison).table("Recall")
    assert classes["<script>hack()</script>"] == ["0", "–", "–", "–", "–", "–"]
    # dog: 4 images, of which the pre-trained runs find 4 and 3, without a false alarm: F1 is 1 and 6/7, 92.9 % in the
    # mean. The runs from scratch find no dog.
    assert classes['dog & "cat"'] == ["4", "87.5", "0.0", "92.9", "0.0", "+92.9"]
