"""The page of a comparison: what it says first, that its numbers are those of the runs, that names stay text."""

import re
from html.parser import HTMLParser

import pytest
from report_pages import CLASS_NAMES, small_comparison, small_pictures, write_page
from run_folders import write_run

from mae_hf.report.comparison import compare
from mae_hf.report.page import page


class Parsed(HTMLParser):
    """What a browser would find: tags, addresses, alternative texts, and tables by their caption."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.ids: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset", "action")]
        self.ids += [value for key, value in attrs if key == "id"]
        if tag == "img":
            self.alts.append(dict(attrs).get("alt", ""))
        if tag == "caption":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if not data.strip():
            return
        self.texts.append((self._open[-1] if self._open else "", data.strip()))
        if "caption" in self._open:
            self.tables[data] = self._rows
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data.strip()

    def table(self, start: str) -> dict[str, list[str]]:
        """The rows, by their first cell, of the table whose caption starts so."""
        (rows,) = (rows for caption, rows in self.tables.items() if caption.startswith(start))
        return {row[0]: row[1:] for row in rows}


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
    assert parsed.alts == ["What the first picture shows.", "What the second picture shows."]


def test_names_from_outside_stay_text(html):
    parsed = Parsed(html)
    assert not {"b", "i"} & set(parsed.tags) and parsed.tags.count("img") == 2
    assert set(CLASS_NAMES) < set(parsed.table("Found:"))
    assert any(name.endswith("mae <b>0") for name in parsed.table("All runs"))
    assert "<i>a</i>" in parsed.table("The audit")


def test_the_table_of_arms_holds_means_spreads_intervals_and_their_difference(html, tmp_path):
    rows = Parsed(html).table("Both arms")
    # 11 and 8 of 12 right against 3 and 5; the sample standard deviation of two is their distance / sqrt(2).
    assert rows["test accuracy (%)"] == ["79.2 ± 17.7", "33.3 ± 11.8", "+45.8 points"]
    assert rows["seeds"] == ["0, 1", "0, 1", ""]
    results = small_comparison(tmp_path).results
    intervals = (results.pretrained.accuracy_interval, results.scratch.accuracy_interval, results.gain_interval)
    assert rows["its 95 % interval over 12 test images"] == [
        f"{100 * interval.low:{form}} to {100 * interval.high:{form}}"
        for interval, form in zip(intervals, (".1f", ".1f", "+.1f"), strict=True)
    ]
    assert rows["best validation accuracy (%)"] == ["65.0 ± 35.4", "55.0 ± 7.1", "+10.0"]
    areas = rows["mean height of the validation curve (%), epochs 1 to 2 (area / epochs)"]
    assert areas == ["52.5 ± 31.8", "35.0 ± 7.1", "+17.5"]
    (target,) = (key for key in rows if key.startswith("epochs of fine-tuning until validation accuracy is 55.0 %"))
    assert rows[target] == ["not reached", "not reached", ""]  # by half of the seeds, so the median is not


def test_the_interval_of_few_seeds_says_that_it_is_a_range(html):
    rows = Parsed(html).table("Both arms")
    area, epochs = (rows[name] for name in ("its interval over seeds", "interval of these epochs over seeds"))
    ranges = ("30.0 to 75.0", "30.0 to 40.0", "-10.0 to 45.0")
    assert area == [f"{text} (least to greatest of 2)" for text in ranges]
    assert epochs[0] == "1 to not reached (least to greatest of 2, reached by 1)"


def test_runs_of_equal_seed_are_in_the_table_of_pairs(html):
    rows = Parsed(html).table("Runs in pairs: test images that only one of the two has right, for runs of equal seed")
    assert [row[:3] for row in rows.values()] == [["seed", "only pre-trained right", "only scratch right"],
                                                  ["0", "8", "0"], ["1", "3", "0"]]  # fmt: skip
    assert [row[3] for row in list(rows.values())[1:]] == ["0.0078", "0.25"]  # 2 / 2^8, 2 / 2^3


def test_every_run_is_in_the_table_of_runs_with_its_recipe(html):
    rows = {name.rpartition("/")[2]: row for name, row in Parsed(html).table("All runs").items()}
    assert rows["flat"][:3] == ["scratch", "train.layer_decay 1.0", "75.00"]
    assert rows["scratch1"][1:3] == ["train.layer_decay 0.65", "41.67"] and len(rows) == 6


def test_a_class_without_test_images_has_no_numbers(html):
    rows = Parsed(html).table("Found:")
    assert rows["<script>hack()</script>"] == ["0", "–", "–", "–", "–", "–"]
    # dog: 4 images, of which the pre-trained runs find 4 and 3, without a false alarm: F1 is 1 and 6/7, 92.9 % in the
    # mean. From scratch none is found.
    assert rows['dog & "cat"'] == ["4", "87.5", "0.0", "92.9", "0.0", "+92.9"]


def test_what_could_not_be_drawn_and_what_to_bear_in_mind_is_said(html):
    items = [text for tag, text in Parsed(html).texts if tag == "li"]
    assert "No <map>: the images are gone" in items
    assert any(text.startswith("No test image is of <script>hack()</script>:") for text in items)


def test_single_runs_have_no_interval_over_seeds(tmp_path):
    arms = [write_run(tmp_path / init, init, (True, i == 0, False, False)) for i, init in enumerate(("mae", "scratch"))]
    rows = Parsed(page(compare(arms[:1], arms[1:]), small_pictures(tmp_path), "out")).table("Both arms")
    assert rows["its interval over seeds"] == ["unknown: one number"] * 3
    assert rows["interval of these epochs over seeds"] == ["unknown: one number", "unknown: one number", ""]


def test_both_arms_have_their_accuracy_on_images_that_pre_training_has_not_seen(tmp_path):
    ours = write_run(tmp_path / "mae", "mae", (True, True, False, False), seen=(True, False, False, False))
    other = write_run(tmp_path / "scratch", "scratch", (True, False, False, False), seen=(False,) * 4)
    rows = Parsed(page(compare([ours], [other]), small_pictures(tmp_path), "out")).table("Both arms")
    name = "accuracy on the 3 of them that pre-training has not seen (%)"
    assert rows[name] == ["33.3", "0.0", "+33.3 points"]
