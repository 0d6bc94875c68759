"""Where an encoder comes from: found from whatever model.init names, and said where it cannot be read."""

import dataclasses
import json
from pathlib import Path

import pytest

from mae_hf.leakage.audit import NOT_PRETRAINED
from mae_hf.training.provenance import Provenance, RunRecord, find_provenance

AUDIT = json.dumps(dataclasses.asdict(NOT_PRETRAINED))


@pytest.fixture
def pretraining(tmp_path: Path) -> Path:
    """A pre-training run folder."""
    folder = tmp_path / "pretraining"
    (folder / "model" / "autoencoder").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"num_train_images": 1240}))
    return folder


@pytest.mark.parametrize("init", [".", "model", "model/autoencoder"])
@pytest.mark.parametrize("audit", [".", "model"])
def test_the_audit_and_record_are_found_from_the_run_its_model_or_its_autoencoder(pretraining, init, audit):
    (pretraining / audit / "audit.json").write_text(AUDIT)
    found = find_provenance(str(pretraining / init))
    assert (found.record, found.audit, found.problem) == (RunRecord(num_train_images=1240), NOT_PRETRAINED, None)
    assert found.folder is not None and found.folder.samefile(pretraining)


def test_a_model_without_a_run_or_an_audit_has_none(tmp_path):
    for init in ("user/name", str(tmp_path)):
        assert find_provenance(init) == Provenance(init)


def test_a_model_folder_that_was_moved_away_from_its_run_still_has_its_audit(pretraining, tmp_path):
    (pretraining / "model" / "audit.json").write_text(AUDIT)
    (tmp_path / "audit.json").write_text("that of another model")
    moved = (pretraining / "model").rename(tmp_path / "model")
    assert find_provenance(str(moved)) == Provenance(str(moved), audit=NOT_PRETRAINED)
    assert find_provenance(str(pretraining)).audit is None


@pytest.mark.parametrize(("content", "message"), [("{", "audit.json cannot be read ("), ("[1]", "not a JSON object")])
def test_an_audit_that_cannot_be_read_is_named(pretraining, content, message):
    (pretraining / "audit.json").write_text(content)
    provenance = find_provenance(str(pretraining))
    assert provenance.audit is None and message in str(provenance.problem)
    assert provenance.record == RunRecord(num_train_images=1240)
