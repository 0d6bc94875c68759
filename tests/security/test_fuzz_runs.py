"""A stranger's run given to compare.py: a comparison, or one line that names the file; nothing in the page is run."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import examples
from hypothesis import given
from hypothesis import strategies as st
from run_folders import HALF, THREE, write_run

from mae_hf.errors import ConfigError
from mae_hf.leakage.audit import Audit, AuditedSplit, read_model_audit
from mae_hf.leakage.matches import DuplicatePair
from mae_hf.report.comparison import compare_runs
from mae_hf.report.page import page, text_table
from mae_hf.report.pictures import Pictures

PREDICTIONS = "validation_predictions.parquet"
NUMBERS = st.integers() | st.integers(10**300, 10**400) | st.floats() | st.sampled_from([0, -1, 1e308, 2**63, 2**64])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | st.sampled_from(["", "<script>alert(1)</script>", "\x1b[2J", "x" * 3000, "1"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "0", "1", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
FIELDS = {
    "metrics.json": ["test/accuracy", "test/f1", "eval/accuracy", "best_epoch", "test_unseen/accuracy", "x"],
    "run.json": ["command", "versions", "device", "start", "end", "num_parameters", "num_processes", "x"],
    "./run.json": ["mixed_precision", "git_commit", "data_fingerprint", "num_train_images", "num_machines"],
    "../ours/run.json": ["strategy", "test_fingerprint", "validation_fingerprint", "init_digest"],
    "model/config.json": ["id2label", "x"],
    "audit.json": ["pretrained", "left_out", "num_test_duplicates", "audited", "seen", "pairs", "streamed"],
}
PAIR = DuplicatePair("digits", "train", 0, "digits", "test", 0, "near", 0.9)
PART = AuditedSplit("x", "test", 4, "f", num_duplicated=1, num_seen=1)
AUDIT = json.loads(json.dumps(dataclasses.asdict(Audit(True, False, 1, 0, (PART,), ("00ff",), (PAIR,)))))


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arms")
    (folder / "mae").mkdir()
    (folder / "mae" / "run.json").write_text("{}")
    (folder / "mae" / "audit.json").write_text(json.dumps(AUDIT))
    few = {"curve": (0.5, 0.75), "validation": THREE}
    write_run(folder / "ours", str(folder / "mae"), THREE, **few)
    write_run(folder / "scratch", "scratch", HALF, **few)
    return folder


def copy(arms: Path, tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "arms", ignore_errors=True)
    shutil.copytree(arms, tmp_path / "arms")
    config = tmp_path / "arms" / "ours" / "config.yaml"
    config.write_text(config.read_text().replace(str(arms), str(tmp_path / "arms")))  # the copy of the encoder, too
    return tmp_path / "arms"


def look(folder: Path) -> None:
    """Compare the two runs, and check the page and what is printed; or the error."""
    try:
        comparison = compare_runs([folder / "ours"], [folder / "scratch"])
        html = page(comparison, Pictures(folder), comparison.notes())
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    json.dumps(comparison.table())
    assert "<script>alert" not in html
    assert "\x1b" not in f"{comparison.answer()} {comparison.details()} {text_table(comparison)}"


@examples(15)
@given(data=st.data())
def test_any_value_in_a_json_file_of_a_run_ends_in_a_comparison_or_one_line(
    arms: Path, tmp_path: Path, data: st.DataObject
):
    folder = copy(arms, tmp_path)
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    file = folder / ("mae" if name == "audit.json" else data.draw(st.sampled_from(["ours", "scratch"]))) / name
    content = json.loads(file.read_text())
    new = data.draw(JSON | st.dictionaries(st.sampled_from(FIELDS[name]), JSON, min_size=1, max_size=3))
    file.write_text(json.dumps(content | new if isinstance(new, dict) else new))
    look(folder)


@examples(8)
@given(st.dictionaries(st.sampled_from(["step", "epoch", "eval/accuracy", "train/loss", "x"]), JSON, max_size=3))
def test_any_line_in_metrics_jsonl_ends_in_a_comparison_or_one_line(arms: Path, tmp_path: Path, line: dict):
    folder = copy(arms, tmp_path)
    with (folder / "ours" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    look(folder)


COLUMNS = {
    "index": st.sampled_from(
        [[0, 1, 2, 3], [-1, 0, 1, 2], [0, 0, 0, 0], [2**62, 1, 2, 3], ["a"] * 4, [None] * 4, [0.5] * 4]
    ),
    "label": st.sampled_from([[0, 0, 1, 1], [-1, 0, 1, 1], [0, 0, 1, 2**40], [True] * 4, [None] * 4, [[0]] * 4]),
    "prediction": st.sampled_from([[0, 0, 1, 1], [5, 0, 1, 1], [-1, 0, 1, 0], ["<b>"] * 4, [2**40] * 4]),
    "probabilities": st.sampled_from(
        [
            *([row] * 4 for row in ([0.5, 0.5], [], [math.nan, 1.0], [math.inf] * 2, [-1.0, 2.0], ["a", "b"])),
            *([row] * 4 for row in ([None, 1.0], 0.5, [[0.5]], [1.0])),
            [[0.5, 0.5], [1.0], [0.5, 0.5], [1.0]],
        ]
    ),
    "seen": st.sampled_from([[True] * 4, [None] * 4, [True, None, False, True], [1] * 4, ["x"] * 4]),
}


@examples(15)
@given(st.fixed_dictionaries({}, optional=COLUMNS), st.sampled_from(["predictions.parquet", PREDICTIONS]))
def test_any_columns_in_predictions_end_in_a_comparison_or_one_line(
    arms: Path, tmp_path: Path, columns: dict, name: str
):
    folder = copy(arms, tmp_path)
    file = folder / "ours" / name
    pq.write_table(pa.table(pq.read_table(file).to_pydict() | columns), file)
    look(folder)


@examples(8)
@given(
    st.binary(max_size=30),
    st.sampled_from([*FIELDS, "metrics.jsonl", "predictions.parquet", "config.yaml", PREDICTIONS]),
)
def test_any_bytes_in_a_file_of_a_run_end_in_one_line(arms: Path, tmp_path: Path, content: bytes, name: str):
    folder = copy(arms, tmp_path)
    (folder / ("mae" if name == "audit.json" else "ours") / name).write_bytes(content)
    look(folder)


@examples(8)
@given(st.dictionaries(st.sampled_from(FIELDS["audit.json"]), JSON, max_size=3))
def test_any_audit_of_a_model_is_read_or_refused(arms: Path, tmp_path: Path, values: dict):
    folder = copy(arms, tmp_path) / "ours" / "model"
    (folder / "audit.json").write_text(json.dumps(AUDIT | values))
    try:
        read_model_audit(str(folder))
    except ConfigError as error:
        assert len(str(error)) < 2100  # noqa: PT017
