"""Pieces of HTML: whatever comes in stays text, and cells carry what they are sorted by."""

import math

import pytest

from mae_hf.report import markup
from mae_hf.report.markup import Cell

EVIL = "\"><script>alert('x')</script>&amp;"
SAFE = "&quot;&gt;&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;amp;"


@pytest.mark.parametrize(
    "html",
    [
        markup.table(EVIL, [EVIL, EVIL], [[EVIL, Cell(EVIL, marked=True)]], sortable=True),
        markup.table(EVIL, [EVIL], [[EVIL]]),
        markup.section(EVIL, EVIL),
        markup.paragraphs(EVIL),
        markup.items([EVIL]),
        markup.commands([EVIL]),
        markup.picture(EVIL, "", EVIL),
        markup.contents({EVIL: EVIL}),
    ],
)
def test_every_text_is_escaped(html):
    assert "<script>" not in html and '"">' not in html and SAFE in html


def test_cells_are_sorted_by_their_number_and_unknown_ones_by_none():
    html = markup.table("t", ["name", "n"], [["a", Cell("1,234", 1234)], ["b", Cell("–", math.nan)]], sortable=True)
    assert '<td class="number" data-value="1234">1,234</td>' in html and 'data-value="">–</td>' in html
    assert html.count("<button") == 2 and '<th scope="row">a</th>' in html


def test_marked_rows_and_cells_stand_out():
    html = markup.table("t", ["a", "b"], [["x", Cell("y", marked=True)], ["z", "w"]], marked=[False, True])
    assert "<mark>≠ y</mark>" in html and "<tr class=chosen><th" in html and "<button" not in html


def test_an_empty_list_is_nothing():
    assert markup.items([]) == ""
