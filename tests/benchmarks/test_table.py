"""The table shows the ratios and percentages of the rounds; the script runs from end to end."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.measures import Contender
from benchmarks.table import summarize, table
from benchmarks.turns import Result, Turn

ROOT = Path(__file__).parents[2]
# One of the measures, since all take minutes: test_ours.py and test_stock.py try the contenders of the others.
RUN = ("features",)
PRESET = """
model: {image_size: 32, patch_size: 8, hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 2,
  intermediate_size: 48, decoder_hidden_size: 16, decoder_num_hidden_layers: 1, decoder_num_attention_heads: 2,
  decoder_intermediate_size: 32}
train: {batch_size: 16}
output_dir: runs/none
"""


def result(*rates: float, own_mib: float | None = 100.4) -> Result:
    return Result([Turn(rate * 2.5, 2.5, threads=2, device_mib=None) for rate in rates], own_mib, mapped_mib=50.0)


CONTENDERS = {
    "stock fp32": Contender(print, "fp32", 2.0, is_baseline=True),
    "mae_hf": Contender(print, "bf16", 2.0),
    "preparation": Contender(print, "bf16", None, is_whole=False),
    "bf16 GEMM": Contender(print, "bf16", None, unit="GFLOP", is_whole=False),
    "fp32 GEMM": Contender(print, "fp32", None, unit="GFLOP", is_whole=False),
}
RESULTS = {
    "stock fp32": result(50, 40, 60),
    "mae_hf": result(100, 140, 90),
    "preparation": result(5000, 4000, 6000, own_mib=None),
    "bf16 GEMM": result(400, 380, 500),
    "fp32 GEMM": result(200, 210, 190),
}


def test_ratios_compare_medians_and_percentages_the_peak_of_the_same_precision():
    record = summarize(CONTENDERS, RESULTS)
    assert {name: row["median"] for name, row in record.items()} == pytest.approx(
        {"stock fp32": 50, "mae_hf": 100, "preparation": 5000, "bf16 GEMM": 400, "fp32 GEMM": 200}
    )
    assert record["mae_hf"]["rounds"] == pytest.approx([100, 140, 90])
    assert (record["mae_hf"]["min"], record["mae_hf"]["max"]) == pytest.approx((90, 140))
    assert record["mae_hf"]["ratio_to"] == pytest.approx({"stock fp32": 2})
    assert record["mae_hf"]["per_cent_of_peak"] == pytest.approx(50)  # 100 images/s x 2 GFLOP of 400
    assert record["stock fp32"]["per_cent_of_peak"] == pytest.approx(50)  # 50 x 2 of 200
    assert record["preparation"]["per_cent_of_peak"] is None
    assert record["bf16 GEMM"]["ratio_to"] == {}


def test_the_table_has_a_line_per_contender_and_a_dash_for_missing_values():
    head, *lines = table(summarize(CONTENDERS, RESULTS)).splitlines()
    assert head.split("  ")[-1].strip() == "threads"
    rows = {line.split("  ")[0]: line.split()[len(line.split("  ")[0].split()) :] for line in lines}
    assert rows["mae_hf"] == ["100.0", "90.0", "140.0", "images/s", "2.00", "50.0", "100", "50", "2"]
    assert rows["preparation"] == ["5000.0", "4000.0", "6000.0", "images/s", "-", "-", "-", "50", "2"]
    assert rows["fp32 GEMM"] == ["200.0", "190.0", "210.0", "GFLOP/s", "-", "-", "100", "50", "2"]
    assert len({len(line) for line in (head, *lines)}) == 1


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """What `benchmarks/speed.py` prints and writes about its measures, in short turns."""
    folder = tmp_path_factory.mktemp("benchmark")
    preset, output = folder / "preset.yaml", folder / "new" / "benchmark.json"
    preset.write_text(PRESET)
    words = ["--preset", str(preset), "--measure", ",".join(RUN), "--mixed_precision", "bf16"]
    words += ["--rounds", "2", "--seconds", "0.1", "--output", str(output)]
    command = [sys.executable, "-m", "benchmarks.speed", *words]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text())


@pytest.mark.slow
def test_the_script_writes_its_measurements_and_the_machine(benchmark: tuple[str, dict]):
    printed, record = benchmark
    assert record["preset"].endswith("preset.yaml")
    assert record["config"]["model.hidden_size"] == 24
    assert (record["rounds"], record["seconds"], record["mixed_precision"]) == (2, 0.1, "bf16")
    assert record["versions"]["torch"] == torch.__version__
    assert record["threads"] >= 1
    assert list(record["measures"]) == list(RUN)
    assert all(word in printed for word in ("bf16", record["device"], "ratios of medians", *RUN))


@pytest.mark.slow
@pytest.mark.parametrize("measure", RUN)
def test_the_table_shows_the_rounds_of_the_json(benchmark: tuple[str, dict], measure: str):
    printed, record = benchmark
    rows = record["measures"][measure]
    for name, row in rows.items():
        assert len(row["rounds"]) == 2
        for rate, turn in zip(row["rounds"], row["turns"], strict=True):
            assert rate == pytest.approx(turn["amount"] / turn["seconds"])
            assert turn["seconds"] >= 0.1
        median = statistics.median(row["rounds"])
        ratios = {base: median / statistics.median(rows[base]["rounds"]) for base in row["ratio_to"]}
        assert row["ratio_to"] == pytest.approx(ratios)
        if row["gflop_per_image"]:
            peak = statistics.median(rows[f"{row['precision']} GEMM"]["rounds"])
            assert row["per_cent_of_peak"] == pytest.approx(100 * median * row["gflop_per_image"] / peak)
        section = printed.split(f"\n{measure}\n")[1]
        line = next(line for line in section.splitlines() if line.startswith(f"{name}  "))
        cells = line.removeprefix(name).split()
        assert cells[:3] == [f"{value:.1f}" for value in (median, min(row["rounds"]), max(row["rounds"]))]
        assert all(f"{ratio:.2f}" in cells for ratio in ratios.values())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "Start with python -m benchmarks.speed"),
        ({"OMP_NUM_THREADS": "1"}, "stock uses 1 thread but mae_hf [0-9]+: unset OMP_NUM_THREADS"),
    ],
)
def test_settings_that_would_slow_stock_down_are_refused(setting: dict[str, str], message: str):
    if "OMP_NUM_THREADS" in setting and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("one core is one thread for all")
    command = [sys.executable, "-m", "benchmarks.speed", "--preset", "configs/pretrain/digits.yaml"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **setting}, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
