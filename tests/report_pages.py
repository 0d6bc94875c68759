"""Reports of small drawn runs, for tests of the page: several seeds, names that try to break out of the HTML."""

import dataclasses
import json
from pathlib import Path

from PIL import Image
from run_folders import write_run

from mae_hf.leakage.record import NOT_PRETRAINED, AuditedSplit, audit_json
from mae_hf.report.comparison import Comparison, compare_runs
from mae_hf.report.page import page
from mae_hf.report.pictures import Picture, Pictures

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
    """Two pictures, and a note on one that could not be drawn."""
    paths = [folder / f"{name}.png" for name in ("first", "second")]
    for number, path in enumerate(paths):
        Image.new("RGB", (900, 200), (60 * number, 90, 120)).save(path)
    empty = {field.name: {} for field in dataclasses.fields(Pictures)}
    pictures = [Picture(path, f"The <{path.stem}>", f"What the {path.stem} picture shows.") for path in paths]
    return Pictures(**empty | {"pictures": pictures, "notes": ["No <map>: the images are gone"]})


def write_page(folder: Path) -> Path:
    """The page of `small_comparison`."""
    pretraining = folder / "pretraining"
    (pretraining / "model").mkdir(parents=True)
    (pretraining / "run.json").write_text(
        json.dumps({"num_train_images": 1240, "command": "scripts/pretrain.py --x 1"})
    )
    audit = dataclasses.replace(NOT_PRETRAINED, pretrained=True, audited=(AuditedSplit("<i>a</i>", "test", 4, "f"),))
    (pretraining / "model" / "audit.json").write_text(audit_json(audit))
    path = folder / "index.html"
    comparison = small_comparison(folder)
    html = page(comparison, small_pictures(folder), comparison.notes(), "runs/compare/small")
    path.write_text(html, encoding="utf-8")
    return path
