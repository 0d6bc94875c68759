"""The pickles of a sharded checkpoint are checked before torch would run their code."""

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as torch_checkpoint

from mae_hf.training.pickles import check_shards

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
VALUES = {"weight": torch.ones(2, 3), "step": torch.tensor(3.0), "lr": 0.1, "betas": (0.9, 0.95), "fused": None}


class Payload:
    """A pickle that runs code when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def save(folder: Path, **values: object) -> Path:
    torch_checkpoint.save(VALUES | values, storage_writer=torch_checkpoint.FileSystemWriter(folder / "shards"))
    return folder / "shards"


def load(shards: Path) -> None:
    torch_checkpoint.load(dict(VALUES), storage_reader=torch_checkpoint.FileSystemReader(shards))


def test_shards_that_torch_saved_are_accepted(tmp_path):
    save(tmp_path)
    check_shards(tmp_path)


def test_code_in_a_value_is_refused_and_not_run(tmp_path):
    shards = save(tmp_path, lr=Payload(tmp_path / "it ran"))
    with pytest.raises(pickle.UnpicklingError):
        check_shards(tmp_path)
    assert not (tmp_path / "it ran").exists()
    load(shards)
    assert (tmp_path / "it ran").exists(), "it would have"


def test_code_in_the_description_of_the_shards_is_refused_and_not_run(tmp_path):
    shards = save(tmp_path)
    description = pickle.loads((shards / ".metadata").read_bytes())
    tampered = dataclasses.replace(description, planner_data=Payload(tmp_path / "it ran"))
    (shards / ".metadata").write_bytes(pickle.dumps(tampered))
    with pytest.raises(pickle.UnpicklingError, match="has no part in a description of shards"):
        check_shards(tmp_path)
    assert not (tmp_path / "it ran").exists()
    load(shards)
    assert (tmp_path / "it ran").exists(), "it would have"


@pytest.mark.parametrize("name", ["os.system", "pickle", "__builtins__", "TypeVar", "load"])
def test_other_names_of_the_accepted_modules_are_refused(tmp_path, name):
    for module in ("torch", "torch.distributed.checkpoint.metadata", "pathlib", "torch.serialization"):
        words = "".join(f"\x8c{chr(len(word))}{word}" for word in (module, name))
        (tmp_path / ".metadata").write_bytes(f"\x80\x04{words}\x93.".encode("latin-1"))
        with pytest.raises(pickle.UnpicklingError, match="has no part"):
            check_shards(tmp_path)
