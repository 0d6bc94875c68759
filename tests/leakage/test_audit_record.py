"""audit.json can be read from a run and from a model, and malformed files are refused in one line."""

import dataclasses
import json
from pathlib import Path

import pytest

from mae_hf.config.model import MAEConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.errors import ConfigError
from mae_hf.files import read_json
from mae_hf.hub import save_model
from mae_hf.leakage.audit import (
    NOT_PRETRAINED,
    Audit,
    AuditedSplit,
    continue_audit,
    describe_audit,
    read_model_audit,
)
from mae_hf.leakage.matches import DuplicatePair
from mae_hf.models.mae import build_mae

TEST = AuditedSplit("me/data", "test", 1234, "abc", num_duplicated=2, num_seen=2)
VALIDATION = AuditedSplit("me/data", "validation", 50, "def", num_duplicated=1, num_seen=1)
PAIR = DuplicatePair("me/data", "train", 3, "me/data", "test", 7, "near", 0.91, held_out=True)
AUDIT = Audit(True, False, 3, 1, (TEST, VALIDATION), ("00ff",), (PAIR,))

SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
CONFIG = PretrainConfig(model=MAEConfig(**SHAPE, **DECODER, intermediate_size=32, decoder_intermediate_size=32))


def test_a_written_audit_can_be_read(tmp_path: Path):
    for audit in (AUDIT, NOT_PRETRAINED, dataclasses.replace(AUDIT, streamed=True, num_test_duplicates=None)):
        (tmp_path / "audit.json").write_text(json.dumps(dataclasses.asdict(audit)))
        assert read_json(tmp_path / "audit.json", Audit) == audit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pretrained": 1}, "pretrained is '1', not of type bool"),
        ({"left_out": ...}, "left_out is missing"),
        ({"num_test_duplicates": -1}, "num_test_duplicates is '-1', not of type int"),
        ({"num_test_duplicates": True}, "num_test_duplicates is 'True', not of type int"),
        ({"audited": {}}, "audited is '{}', not of type tuple"),
        ({"audited": [3]}, "audited is not a JSON object"),
        ({"audited": [dataclasses.asdict(TEST) | {"split": "train"}]}, "split is 'train', not of type"),
        ({"pairs": [dataclasses.asdict(PAIR) | {"score": float("nan")}]}, "score is 'nan', not of type float"),
        ({"pairs": [dataclasses.asdict(PAIR) | {"row": 2**63}]}, "row is '9223372036854775808', not of type int"),
        ({"seen": ["00", 3]}, "seen is '3', not of type str"),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, change: dict, message: str):
    content = {key: value for key, value in (dataclasses.asdict(AUDIT) | change).items() if value is not ...}
    (tmp_path / "audit.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"audit\.json cannot be read \(") as error:
        read_json(tmp_path / "audit.json", Audit)
    assert message in str(error.value)


def test_the_audit_travels_with_the_model_and_its_encoder_without_pairs(tmp_path: Path):
    mae = build_mae(CONFIG.model, "sdpa")
    run = tmp_path / "run"
    save_model(run / "model", mae, CONFIG, {}, audit=AUDIT)
    for name in (run, run / "model" / "autoencoder"):
        assert read_model_audit(str(name)) == dataclasses.replace(AUDIT, pairs=())
    save_model(tmp_path / "model", mae, CONFIG, {})
    assert read_model_audit(str(tmp_path)) is None
    for content in ("", "[]", '{"pretrained": true}', "[" * 100_000):
        (tmp_path / "model" / "autoencoder" / "audit.json").write_text(content)
        with pytest.raises(ConfigError, match=r"audit\.json cannot be read \(.*: restore it"):
            read_model_audit(str(tmp_path))


def test_the_result_is_described_in_a_line():
    for audit, line in (
        (
            AUDIT,
            "3 images duplicate 2 of the 1,234 test images (kept); "
            "1 image duplicates 1 of the 50 validation images (kept)",
        ),
        (
            dataclasses.replace(AUDIT, num_test_duplicates=0, num_validation_duplicates=0),
            "no image duplicates any of the 1,234 test images; no image duplicates any of the 50 validation images",
        ),
        (
            dataclasses.replace(AUDIT, audited=(VALIDATION,), left_out=True, seen=()),
            "no test images to search for: name a source that has some (--audit.sources); "
            "1 image duplicates 1 of the 50 validation images (left out)",
        ),
        (
            dataclasses.replace(
                AUDIT, audited=(TEST,), num_test_duplicates=None, streamed=True, left_out=True, seen=()
            ),
            "streamed images that are equal to one of the 1,234 test images are left out; "
            "near-duplicates are not searched for in a stream",
        ),
        (NOT_PRETRAINED, "trained from scratch: no test image was seen without its label"),
    ):
        assert describe_audit(audit) == line


CLEAN = dataclasses.replace(AUDIT, left_out=True, audited=(dataclasses.replace(TEST, num_seen=0), VALIDATION), seen=())


@pytest.mark.parametrize(
    "before",
    [
        None,
        dataclasses.replace(AUDIT, streamed=True),
        dataclasses.replace(AUDIT, is_complete=False),
        dataclasses.replace(AUDIT, audited=(dataclasses.replace(TEST, fingerprint="other"),)),
    ],
)
def test_what_a_continued_model_has_seen_is_unknown_where_its_first_weights_have_no_such_audit(before):
    audit = continue_audit(CLEAN, before)
    assert audit == dataclasses.replace(CLEAN, is_complete=False)
    assert describe_audit(audit).endswith("; the images that its first weights were trained on are unknown")


def test_a_continued_model_has_seen_what_its_first_weights_have_seen():
    audit = continue_audit(CLEAN, AUDIT)
    assert (audit.seen, audit.tests[0].num_seen, audit.is_complete) == (("00ff",), 2, True)
    assert describe_audit(audit).endswith("; test images that its first weights have seen: 1")
    assert continue_audit(dataclasses.replace(CLEAN, seen=("0a",)), AUDIT).seen == ("00ff", "0a")
    assert continue_audit(CLEAN, CLEAN) == CLEAN
