"""What has been measured: a line of results.jsonl for each, read again by a later run, and their summary."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mae_hf.config import require

KEY = ("label_set", "arm", "method", "pooling")
GROUP = ("fraction", "arm", "method", "pooling")


class Results:
    """The lines of a results.jsonl; a line is one label set, arm, method and pooling.

    Args:
        path: the file; a last line that a killed run has not finished is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text() if path.exists() else ""
        if not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            if path.exists():
                path.write_text(text)
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        self._keys = {_key(line) for line in self.lines}

    def has(self, label_set: str, arm: str, method: str, pooling: str | None) -> bool:
        """Whether this has been measured."""
        return (label_set, arm, method, pooling) in self._keys

    def add(self, line: dict[str, Any]) -> None:
        """Writes one finished measurement."""
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self._keys.add(_key(line))


def check_inputs(path: Path, inputs: dict[str, Any]) -> None:
    """Sees to it that a folder's results all come from one model, one set of images and one recipe.

    Args:
        path: the JSON file that holds the inputs of the folder; written if it is not there.
        inputs: what the results depend on, by name; a name that either side lacks is not compared.

    Raises:
        ConfigError: an input has changed; it is named.
    """
    known = json.loads(path.read_text()) if path.exists() else {}
    changed = [f"{name}: {known[name]} -> {value}" for name, value in inputs.items() if known.get(name, value) != value]
    require(
        not changed,
        f"{path.parent} holds results of other inputs ({'; '.join(changed)}): choose another --output_dir",
    )
    path.write_text(json.dumps(known | inputs, indent=2) + "\n")


def summarize(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the label sets of each budget (or of all folds), arm, method and pooling.

    Returns:
        A group a row, budgets ascending: `n` label sets, `num_labels` (mean), and for `accuracy` and `f1` on test
        `NAME_mean` and `NAME_sd`, the sample standard deviation, None for a single set.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in GROUP), []).append(line)
    rows = []
    for key, members in sorted(groups.items(), key=lambda item: tuple(str(part) for part in item[0][1:])):
        row = dict(zip(GROUP, key, strict=True))
        row |= {"n": len(members), "num_labels": statistics.fmean(member["num_labels"] for member in members)}
        for name in ("accuracy", "f1"):
            values = [member[name] for member in members]
            row[f"{name}_mean"] = statistics.fmean(values)
            row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return sorted(rows, key=lambda row: row["fraction"] or 0.0)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The summary for the console, in per cent."""
    lines = [f"{'labels':>8} {'part':>6} {'arm':8} {'method':9} {'pooling':8} {'accuracy':>15} {'macro-F1':>15}  sets"]
    for row in rows:
        accuracy, f1 = (_percent(row[f"{name}_mean"], row[f"{name}_sd"]) for name in ("accuracy", "f1"))
        part = "fold" if row["fraction"] is None else f"{100 * row['fraction']:g} %"
        lines.append(
            f"{row['num_labels']:8.0f} {part:>6} {row['arm']:8} {row['method']:9} {row['pooling'] or '-':8} "
            f"{accuracy:>15} {f1:>15}  {row['n']}"
        )
    return "\n".join(lines)


def _percent(mean: float, sd: float | None) -> str:
    return f"{100 * mean:.2f}" + (f" ± {100 * sd:.2f}" if sd is not None else "")


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[key] for key in KEY)
