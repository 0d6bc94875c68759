"""Reports of small drawn runs, for tests of the page: several seeds, names that try to break out of the HTML."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image
from run_folders import write_run

from mae_hf.leakage.audit import NOT_PRETRAINED, AuditedSplit
from mae_hf.report.comparison import Comparison, compare_runs
from mae_hf.report.page import page
from mae_hf.report.pictures import Pictures

CLASS_NAMES = ("<img src=x onerror=hack()>", 'dog & "cat"', "$answer ${x}", "<script>hack()</script>")
LABELS = (0,) * 5 + (1,) * 4 + (2,) * 3  # none of the last class


def small_comparison(folder: Path) -> Comparison:
    """Two seeds pre-trained, one that never reaches the target; two recipes from scratch, one with two seeds."""
    common = {"labels": LABELS, "class_names": CLASS_NAMES}

    def first(count: int) -> tuple[bool, ...]:
        return tuple(i < count for i in range(len(LABELS)))

    ours = [
        write_run(folder / "mae <b>0", str(folder / "pretraining"), first(11), curve=(0.6, 0.9), **common),
        write_run(folder / "mae1", str(folder / "pretraining"), first(8), curve=(0.2, 0.4), seed=1, **common),
    ]
    scratch = [
        write_run(folder / "scratch0", "scratch", first(3), curve=(0.1, 0.5), **common),
        write_run(folder / "scratch1", "scratch", first(5), curve=(0.2, 0.6), seed=1, **common),
        write_run(folder / "flat", "scratch", first(9), curve=(0.2, 0.3), layer_decay=1.0, **common),
    ]
    return compare_runs(ours, scratch)


def small_pictures(folder: Path) -> Pictures:
    """Three pictures, and a note on one that could not be drawn."""
    captions: dict[str, dict] = {"intervals": {}, "mistakes": {"most": 9}}
    captions["reconstruction"] = {"file": "<i>.png", "is_over_time": True, "is_normalised": False}
    for number, name in enumerate(captions):
        Image.new("RGB", (900, 200), (60 * number, 90, 120)).save(folder / f"{name}.png")
        captions[name] |= {"path": folder / f"{name}.png", "inches": 3.3 if name == "intervals" else 6.9}
    return Pictures(folder, captions=captions, notes=["No <map>: the images are gone"])


def write_page(folder: Path) -> Path:
    """The page of `small_comparison`."""
    pretraining = folder / "pretraining"
    (pretraining / "model").mkdir(parents=True)
    (pretraining / "run.json").write_text(
        json.dumps({"num_train_images": 1240, "command": "scripts/pretrain.py --x 1"})
    )
    audit = dataclasses.replace(NOT_PRETRAINED, pretrained=True, audited=(AuditedSplit("<i>a</i>", "test", 4, "f"),))
    (pretraining / "model" / "audit.json").write_text(json.dumps(dataclasses.asdict(audit)))
    path = folder / "index.html"
    comparison = small_comparison(folder)
    html = page(comparison, small_pictures(folder), comparison.notes())
    path.write_text(html, encoding="utf-8")
    return path


def page_of(comparison: Comparison) -> "Parsed":
    """What a browser finds on the page of a comparison without pictures."""
    return Parsed(page(comparison, Pictures(Path("out dir")), comparison.notes()))


def captions_of(comparison: Comparison, drawn: Pictures) -> dict[str, str]:
    """Heading -> caption of each picture, which is also its alternative text."""
    parsed = Parsed(page(comparison, drawn, []))
    headings = [text for tag, text in parsed.texts if tag == "h3" and text != "How to read this"]
    captions = [text for tag, text in parsed.texts if tag == "figcaption"]
    assert parsed.alts == captions
    return dict(zip(headings, captions, strict=True))


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
