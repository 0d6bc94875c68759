"""Cause a fault of each kind in fine-tuning, and two kills; `make chaos` causes all, also with several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A separate process, because the forks must not inherit the state of Accelerate from other tests.
FEW = """
import sys
from pathlib import Path
sys.path[:0] = [str(Path("tests").resolve()), str(Path.cwd())]
import chaos
rows = chaos.run(Path(sys.argv[1]), kills=2, saves=1, stages=("finetune",), launcher=False, variants=1)
print(chaos.table(rows))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_runs_survive_faults_and_end_as_if_nothing_had_happened(tmp_path):
    done = subprocess.run([sys.executable, "-c", FEW, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line][2:]
    assert len(rows) in (7, 9), "a row for each fault and their sum; two faults need root"
    for fault, tried, survived, lost, damaged, note in rows:
        assert survived == tried, (fault, note)
        assert damaged == "0", (fault, note)
        if fault == "damaged checkpoint":
            assert int(lost.split(", ")[1]) > 0, "the kill came in the middle of a run"
    assert int(rows[-1][1]) == len(rows), "one of each, and a second kill"
