"""What the measurements come to: mean and standard deviation, as JSON, picture and table."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mae_hf import figures
from mae_hf.evaluation.few_labels.curves import few_labels_figure
from mae_hf.files import write_text

GROUP = ("fraction", "arm", "method", "pooling")
SCORES = ("accuracy", "f1", "unseen_accuracy", "unseen_f1")  # the last two where it is known what was seen


def write_summary(folder: Path, lines: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """Writes summary.json and few_labels.png.

    Args:
        folder: where to.
        lines: the measurements.
        about: what summary.json says besides `results`; its `protocol` is written over the picture, too.

    Returns:
        The table for the console, and what it shows.
    """
    rows = summarize(lines)
    write_text(folder / "summary.json", json.dumps({**about, "results": rows}, indent=2) + "\n")
    figures.save(few_labels_figure(rows, lines, about["protocol"]), folder / "few_labels.png")
    return f"{table(rows)}\nmean ± standard deviation over the label sets, in per cent; {about['protocol']}"


def summarize(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the label sets of each budget (or of all folds), arm, method and pooling.

    Returns:
        A group a row, budgets ascending: `n` label sets, `num_labels` (mean), and for `accuracy` and `f1` on test,
        `unseen_accuracy` and `unseen_f1` where they are known, `NAME_mean` and `NAME_sd`, the sample standard
        deviation, None for a single set.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in GROUP), []).append(line)
    rows = []
    for key, members in sorted(groups.items(), key=lambda item: tuple(str(part) for part in item[0][1:])):
        row = dict(zip(GROUP, key, strict=True))
        row |= {"n": len(members), "num_labels": statistics.fmean(member["num_labels"] for member in members)}
        for name in (name for name in SCORES if all(name in member for member in members)):
            values = [member[name] for member in members]
            row[f"{name}_mean"] = statistics.fmean(values)
            row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return sorted(rows, key=lambda row: row["fraction"] or 0.0)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The summary for the console, in per cent."""
    has_seen = any(row.get("unseen_accuracy_mean", row["accuracy_mean"]) != row["accuracy_mean"] for row in rows)
    names = {"accuracy": "accuracy", "f1": "macro-F1"} | ({"unseen_accuracy": "acc. unseen"} if has_seen else {})
    titles = " ".join(f"{title:>15}" for title in names.values())
    lines = [f"{'labels':>8} {'part':>6} {'arm':8} {'method':9} {'pooling':8} {titles}  sets"]
    for row in rows:
        scores = " ".join(f"{_percent(row[f'{name}_mean'], row[f'{name}_sd']):>15}" for name in names)
        part = "fold" if row["fraction"] is None else f"{100 * row['fraction']:g} %"
        lines.append(
            f"{row['num_labels']:8.0f} {part:>6} {row['arm']:8} {row['method']:9} {row['pooling'] or '-':8} "
            f"{scores}  {row['n']}"
        )
    return "\n".join(lines)


def _percent(mean: float, sd: float | None) -> str:
    return f"{100 * mean:.2f}" + (f" ± {100 * sd:.2f}" if sd is not None else "")
