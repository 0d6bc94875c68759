"""Checkpoints are whole or not there, rotate, and give back what was saved."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mae_hf.checkpoint import Checkpoints, TrainState, write_folder, write_text


@pytest.fixture
def training():
    """An accelerator with a prepared model and AdamW that have made one step, so that the optimizer has a state."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(
        [{"params": [model.weight], "weight_decay": 0.1, "lr_scale": 0.5}, {"params": [model.bias], "lr_scale": 1.0}]
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    step(model, optimizer)
    return accelerator, model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_saving_and_loading_gives_back_model_optimizer_and_state(training, tmp_path):
    accelerator, model, optimizer = training
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    state = TrainState(step=7, best_step=5, best_value=0.25)
    checkpoints.save(accelerator, state)
    step(model, optimizer)
    expected = {name: value.clone() for name, value in model.state_dict().items()}

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    step(model, optimizer)
    loaded = checkpoints.load(accelerator, checkpoints.latest())
    assert loaded == state
    assert [group["lr_scale"] for group in optimizer.param_groups] == [0.5, 1.0]
    step(model, optimizer)  # the same only if the moments came back too
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_state_is_readable_json(training, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(training[0], TrainState(step=3))
    content = json.loads((tmp_path / "step-00000003" / "train_state.json").read_text())
    assert content == {"step": 3, "best_step": None, "best_value": None}


def test_rotation_keeps_the_newest(training, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in (9, 10, 100, 1000):
        checkpoints.save(training[0], TrainState(step=number))
    assert names(tmp_path) == ["step-00000100", "step-00001000"]
    assert checkpoints.latest() == tmp_path / "step-00001000" == checkpoints.path(1000)


def test_rotation_keeps_the_best_however_old_until_another_one_is_best(training, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for number in (1, 2, 3):
        checkpoints.save(training[0], TrainState(step=number, best_step=1, best_value=0.9))
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    checkpoints.save(training[0], TrainState(step=4, best_step=4, best_value=0.95))
    assert names(tmp_path) == ["step-00000004"]


def test_without_checkpoints_there_is_no_latest(tmp_path):
    assert Checkpoints(tmp_path / "none", keep=1).latest() is None


@pytest.mark.parametrize("name", [".step-00000009.partial", "step-9", "step-00000009.old", "notes"])
def test_what_is_not_a_whole_checkpoint_is_neither_listed_nor_removed(training, tmp_path, name):
    (tmp_path / name).mkdir()
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.latest() is None
    checkpoints.save(training[0], TrainState(step=1))
    checkpoints.save(training[0], TrainState(step=2))
    assert names(tmp_path) == sorted([name, "step-00000002"])


def test_a_save_that_fails_leaves_the_last_checkpoint_in_charge(training, tmp_path):
    accelerator, model, _ = training
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(accelerator, TrainState(step=1))
    weights = accelerator.unwrap_model(model).state_dict()

    class Broken:
        """Saved along with the rest, and fails once the weights are on the disk."""

        def state_dict(self):
            raise OSError("disk full")

        def load_state_dict(self, state):
            pass

    broken = Broken()
    accelerator.register_for_checkpointing(broken)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(accelerator, TrainState(step=2))
    assert checkpoints.latest() == checkpoints.path(1)

    accelerator._custom_objects.remove(broken)
    assert checkpoints.load(accelerator, checkpoints.latest()) == TrainState(step=1)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    checkpoints.save(accelerator, TrainState(step=2))  # what the failed one left does not stand in the way
    assert names(tmp_path) == ["step-00000002"]


def test_a_folder_is_filled_beside_and_then_renamed(tmp_path):
    def write(folder: Path) -> None:
        assert not (tmp_path / "model").exists()
        (folder / "config.json").write_text("new")

    write_folder(tmp_path / "model", write)
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "new"


def test_a_writer_that_fails_leaves_the_old_folder_whole(tmp_path):
    write_folder(tmp_path / "model", lambda folder: (folder / "config.json").write_text("old"))

    def write(folder: Path) -> None:
        (folder / "config.json").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "model", write)
    assert names(tmp_path / "model") == ["config.json"]
    assert (tmp_path / "model" / "config.json").read_text() == "old"

    write_folder(tmp_path / "model", lambda folder: (folder / "README.md").write_text("later"))
    assert names(tmp_path / "model") == ["README.md"], "nothing of the old folder, nor of the failed one"
    assert names(tmp_path) == ["model"]


def test_a_text_is_replaced_whole(tmp_path):
    path = tmp_path / "run.json"
    write_text(path, "old")
    write_text(path, "new")
    assert (path.read_text(), names(tmp_path)) == ("new", ["run.json"])
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half\ud800")
    assert path.read_text() == "new"
