"""Summarize the turns of a measure: a record for the JSON file, and a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measures import Contenders
from benchmarks.turns import Result

Record = Mapping[str, Mapping[str, Any]]


def summarize(contenders: Contenders, results: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
    """Return the JSON record of each contender.

    `rounds` has the units per second of each turn, and `median`, `min` and `max` summarize them. `ratio_to` compares
    the median with each baseline. `per_cent_of_peak` compares its GFLOP with matrix products in the same precision.
    Memory is in MiB.
    """
    rates = {name: [turn.amount / turn.seconds for turn in result.turns] for name, result in results.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    baselines = [name for name, contender in contenders.items() if contender.is_baseline]
    record = {}
    for name, contender in contenders.items():
        peak = medians[f"{contender.precision} GEMM"]
        turns = results[name].turns
        record[name] = {
            "unit": f"{contender.unit}/s",
            "precision": contender.precision,
            "gflop_per_image": contender.gflop,
            "median": medians[name],
            "min": min(rates[name]),
            "max": max(rates[name]),
            "rounds": rates[name],
            "turns": [{"amount": turn.amount, "seconds": turn.seconds} for turn in turns],
            "ratio_to": {base: medians[name] / medians[base] for base in baselines if contender.is_whole},
            "per_cent_of_peak": 100 * medians[name] * contender.gflop / peak if contender.gflop else None,
            "threads": turns[-1].threads,
            "own_mib": results[name].own_mib,
            "mapped_mib": results[name].mapped_mib,
            "device_mib": turns[-1].device_mib,
        }
    return record


def table(record: Record) -> str:
    """Return the record of a measure as a table, a line for each contender."""
    baselines = list(dict.fromkeys(base for row in record.values() for base in row["ratio_to"]))
    on_device = any(row["device_mib"] is not None for row in record.values())
    head = ["", "median", "min", "max", "", *(f"to {base}" for base in baselines), "% of peak", "own MiB", "mapped MiB"]
    lines = [head + ["device MiB"] * on_device + ["threads"]]
    for name, row in record.items():
        cells = [name, *(f"{row[key]:.1f}" for key in ("median", "min", "max")), row["unit"]]
        cells += [_number(row["ratio_to"].get(base), 2) for base in baselines]
        cells += [_number(row["per_cent_of_peak"], 1), _number(row["own_mib"], 0), _number(row["mapped_mib"], 0)]
        cells += [_number(row["device_mib"], 0)] * on_device
        lines.append([*cells, str(row["threads"])])
    return _aligned(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Align cells in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(row))
        for row in (list(zip(line, widths, strict=True)) for line in lines)
    )
