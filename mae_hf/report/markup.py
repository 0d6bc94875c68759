"""Pieces of HTML. Every text that comes in is escaped here, so that no other module has to remember it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: what is shown.
        value: the number that it is sorted by; None sorts by the text, NaN comes last.
        marked: shown as one that stands out, with a sign of its own as well as a colour.
    """

    text: str
    value: float | None = None
    marked: bool = False


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    marked: Sequence[bool] = (),
    sortable: bool = False,
) -> str:
    """A table that scrolls by itself where the page is narrow; the first cell of a row is its heading.

    Args:
        caption: what it shows, above it.
        head: titles of the columns.
        rows: cells, as many as titles in each row.
        marked: whether each row is marked; left out, none is.
        sortable: titles are buttons that sort; the script of the page listens to them.
    """
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    numeric = [any(row[column].value is not None for row in cells) for column in range(len(head))]
    titles = "".join(
        f'<th scope="col"{_number(is_number)}>{_button(title) if sortable else escape(title)}</th>'
        for title, is_number in zip(head, numeric, strict=True)
    )
    body = "".join(
        f"<tr{' class=chosen' if row_marked else ''}>{_row(row, numeric)}</tr>"
        for row, row_marked in zip(cells, marked or [False] * len(cells), strict=True)
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table{' class=sortable' if sortable else ''}><caption><span>{escape(caption)}</span></caption>"
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _button(title: str) -> str:
    return f'<button type="button">{escape(title)}</button>'


def _row(cells: Sequence[Cell], numeric: Sequence[bool]) -> str:
    parts = []
    for column, (cell, is_number) in enumerate(zip(cells, numeric, strict=True)):
        value = "" if cell.value is None else f' data-value="{"" if math.isnan(cell.value) else repr(cell.value)}"'
        shown = _breakable(cell.text)
        text = f"<mark>≠ {shown}</mark>" if cell.marked else shown
        tag, scope = ("th", ' scope="row"') if column == 0 else ("td", "")
        parts.append(f"<{tag}{scope}{_number(is_number)}{value}>{text}</{tag}>")
    return "".join(parts)


def _breakable(text: str) -> str:
    """The text with places where a long path or name of a setting may go on in the next line."""
    return re.sub(r"(?<=[/._])(?=[^\W\d])", "<wbr>", escape(text))


def section(identifier: str, heading: str, *content: str) -> str:
    """A part of the page with its heading, which `identifier` leads to."""
    return f'<section id="{escape(identifier)}"><h2>{escape(heading)}</h2>{"".join(content)}</section>'


def paragraphs(*texts: str) -> str:
    """Each text as a paragraph."""
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def items(texts: Sequence[str]) -> str:
    """The texts as a list; nothing where there are none."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def commands(lines: Sequence[str]) -> str:
    """Command lines in their order, to copy."""
    return f"<ol>{''.join(f'<li><code>{escape(line)}</code></li>' for line in lines)}</ol>"


def picture(heading: str, png: str, caption: str) -> str:
    """A picture inside of the page.

    Args:
        heading: above it.
        png: the file in base64.
        caption: below it, and read out where it cannot be seen.
    """
    return (
        f'<h3>{escape(heading)}</h3><figure><img alt="{escape(caption)}" src="data:image/png;base64,{png}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def contents(headings: dict[str, str]) -> str:
    """Links to the sections of the page, by their identifiers."""
    links = "".join(f'<li><a href="#{escape(key)}">{escape(text)}</a></li>' for key, text in headings.items())
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
