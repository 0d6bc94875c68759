"""The page of a comparison opens with the answer, requests nothing, and shows names as text."""

import re
from html.parser import HTMLParser

import pytest
from report_pages import CLASS_NAMES, small_comparison, write_page


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
    assert set(CLASS_NAMES) < set(parsed.table("Recall"))
    assert any(name.endswith("mae <b>0") for name in parsed.table("All runs"))
    assert "<i>a</i>" in parsed.table("The audit")


def test_a_table_of_numbers_can_be_sorted_and_cells_that_differ_are_marked(html):
    assert re.search(r'<th scope="col" class="number"><button type="button">seed</button></th>', html)
    assert 'data-value="">not reached</td>' in html and 'class="number" data-value="0.75">75.00</td>' in html
    assert html.count('<tr class="chosen">') == 4 + 2  # runs and recipes
    assert "<mark>≠ scratch</mark>" in html and "train.<wbr>layer_<wbr>decay 1.0" in html


def test_what_could_not_be_drawn_and_what_to_bear_in_mind_is_said(html):
    items = [text for tag, text in Parsed(html).texts if tag == "li"]
    assert "No <map>: the images are gone" in items
    assert any(text.startswith("No test image belongs to <script>hack()</script>.") for text in items)
