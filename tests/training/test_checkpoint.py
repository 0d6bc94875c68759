"""Checkpoints are whole or missing, rotate, and restore exactly what was saved."""

import dataclasses
import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch import nn
from torch.distributed import checkpoint as torch_checkpoint

from mae_hf.errors import ConfigError, RunError
from mae_hf.training.checkpoint import Checkpoints, TrainState, check_shards
from mae_hf.training.distributed import prepare
from mae_hf.training.optim import WeightAverage

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """The folder of the checkpoints, in a run folder."""
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


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
    checkpoints = Checkpoints(accelerator, tmp_path / "checkpoints", keep=2)
    state = TrainState(step=7, best_step=5, best_value=0.25)
    checkpoints.save(state)
    step(model, optimizer)
    expected = {name: value.clone() for name, value in model.state_dict().items()}

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    step(model, optimizer)
    loaded = checkpoints.load(checkpoints.latest())
    assert loaded == state
    assert [group["lr_scale"] for group in optimizer.param_groups] == [0.5, 1.0]
    step(model, optimizer)  # equal only if the moments were restored, too
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_state_is_readable_json(training, tmp_path):
    checkpoints = Checkpoints(training[0], tmp_path, keep=1)
    checkpoints.save(TrainState(step=3))
    content = json.loads((tmp_path / "step-00000003" / "train_state.json").read_text())
    assert content == {
        "step": 3,
        "best_step": None,
        "best_value": None,
        "loss_sum": 0.0,
        "loss_steps": 0,
        "launch": "whole weights and mixed_precision no",
    }


def test_shards_are_not_read_into_whole_weights(training, tmp_path):
    checkpoints, _ = save_steps(training, tmp_path, TrainState(step=1))
    folder = tmp_path / "step-00000001"
    content = json.loads((folder / "train_state.json").read_text())
    (folder / "train_state.json").write_text(json.dumps(content | {"launch": "sharded weights and mixed_precision no"}))
    mend_digest(folder / "train_state.json")
    with pytest.raises(
        ConfigError, match=r"step-00000001 was saved with sharded weights and .*, this run has whole weights"
    ):
        checkpoints.resume()


def test_a_run_cannot_resume_in_a_different_precision(training, tmp_path, monkeypatch):
    """Otherwise the losses would silently change, and fp16 would lack the state of its gradient scaler."""
    checkpoints, _ = save_steps(training, tmp_path, TrainState(step=1))
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "bf16")
    with pytest.raises(
        ConfigError, match=r"mixed_precision no, this run has .* mixed_precision bf16: .*accelerate launch"
    ):
        checkpoints.resume()
    assert names(tmp_path) == ["step-00000001"], "it is not damaged"


def test_rotation_keeps_the_newest(training, tmp_path):
    checkpoints = Checkpoints(training[0], tmp_path, keep=2)
    for number in (9, 10, 100, 1000):
        checkpoints.save(TrainState(step=number))
    assert names(tmp_path) == ["step-00000100", "step-00001000"]
    assert checkpoints.latest() == tmp_path / "step-00001000" == checkpoints.path(1000)


def test_rotation_keeps_the_best_until_a_new_best_is_saved(training, tmp_path):
    checkpoints = Checkpoints(training[0], tmp_path, keep=1)
    for number in (1, 2, 3):
        checkpoints.save(TrainState(step=number, best_step=1, best_value=0.9))
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    checkpoints.save(TrainState(step=4, best_step=4, best_value=0.95))
    assert names(tmp_path) == ["step-00000004"]


def test_rotation_keeps_the_best_of_every_retained_checkpoint(training, tmp_path):
    checkpoints = Checkpoints(training[0], tmp_path, keep=2)
    for number, best in ((10, 10), (20, 10), (30, 30)):
        checkpoints.save(TrainState(number, best_step=best, best_value=0.5))
    flip_a_bit(tmp_path / "step-00000030" / "model.safetensors")
    with pytest.warns(UserWarning, match="step-00000030 is damaged") as caught:
        assert checkpoints.resume().step == 20
    assert len(caught) == 1
    for number in (30, 40):
        checkpoints.save(TrainState(number, best_step=30, best_value=0.6))
    assert names(tmp_path) == ["step-00000030", "step-00000030.damaged", "step-00000040"]


def test_a_damaged_checkpoint_does_not_prevent_the_next_save(training, tmp_path):
    checkpoints = Checkpoints(training[0], tmp_path, keep=2)
    checkpoints.save(TrainState(step=1))
    (tmp_path / "step-00000001" / "train_state.json").write_text('["torn')
    checkpoints.save(TrainState(step=2))
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_without_checkpoints_there_is_no_latest(training, tmp_path):
    assert Checkpoints(training[0], tmp_path / "none", keep=1).latest() is None


@pytest.mark.parametrize("name", ["step-9", "step-00000009.damaged", "notes"])
def test_other_folders_are_neither_listed_nor_removed(training, tmp_path, name):
    (tmp_path / name).mkdir()
    checkpoints = Checkpoints(training[0], tmp_path, keep=1)
    assert checkpoints.latest() is None
    checkpoints.save(TrainState(step=1))
    checkpoints.save(TrainState(step=2))
    assert names(tmp_path) == sorted([name, "step-00000002"])


def test_the_next_save_removes_what_a_killed_save_left(training, tmp_path):
    (tmp_path / ".step-00000009.partial").mkdir()
    checkpoints = Checkpoints(training[0], tmp_path, keep=1)
    assert checkpoints.latest() is None
    checkpoints.save(TrainState(step=10))
    assert names(tmp_path) == ["step-00000010"]


def test_after_a_failed_save_the_last_checkpoint_is_still_the_newest(training, tmp_path):
    accelerator, model, _ = training
    checkpoints = Checkpoints(accelerator, tmp_path, keep=1)
    checkpoints.save(TrainState(step=1))
    weights = accelerator.unwrap_model(model).state_dict()

    class Broken:
        """Saved along with the rest, and fails once the weights are on the disk."""

        def state_dict(self):
            raise OSError("disk full")

        def load_state_dict(self, state):
            pass

    broken = Broken()
    accelerator.register_for_checkpointing(broken)
    with pytest.raises(
        RunError,
        match=r"cannot write \S*step-00000002 \(disk full; \d+\.\d MiB free\): make room, .*step-00000001",
    ):
        checkpoints.save(TrainState(step=2))
    assert names(tmp_path) == ["step-00000001"], "the space of the failed save is freed"

    accelerator._custom_objects.remove(broken)
    assert checkpoints.resume() == TrainState(step=1)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    checkpoints.save(TrainState(step=2))
    assert names(tmp_path) == ["step-00000002"]


def test_shards_that_cannot_be_written_fail_like_any_other_file(training, tmp_path):
    """torch reports the text of the process that failed, in an error that is no Exception."""

    class InShards:
        def state_dict(self):
            torch_checkpoint.save(
                {"weight": torch.ones(2)},
                storage_writer=torch_checkpoint.FileSystemWriter("/dev/null/shards"),
            )

        def load_state_dict(self, state):
            pass

    in_shards = InShards()
    training[0].register_for_checkpointing(in_shards)
    try:
        with pytest.raises(
            RunError, match=r"cannot write \S*step-00000001 \(\[Errno 20\] Not a directory[^\n]*make room"
        ):
            Checkpoints(training[0], tmp_path, keep=1).save(TrainState(step=1))
    finally:
        training[0]._custom_objects.remove(in_shards)
    assert names(tmp_path) == [], "the space of the failed save is freed"


# ---- damage ----

FILES = ["model.safetensors", "optimizer.bin", "train_state.json", "digests.json"]


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "a bit is flipped": flip_a_bit,
    "the end is missing": lambda file: os.truncate(file, file.stat().st_size // 2),
    "nothing is left": lambda file: os.truncate(file, 0),
    "it is gone": Path.unlink,
}


def save_steps(training, folder: Path, *states: TrainState) -> tuple[Checkpoints, list[dict[str, torch.Tensor]]]:
    """Save checkpoints of these states, with different weights in each."""
    accelerator, model, optimizer = training
    checkpoints, weights = Checkpoints(accelerator, folder, keep=9), []
    for state in states:
        step(model, optimizer)
        checkpoints.save(state)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
    return checkpoints, weights


def test_a_checkpoint_is_tensors_and_json_and_no_pickle_of_random_states(training, tmp_path):
    save_steps(training, tmp_path, TrainState(step=1))
    assert names(tmp_path / "step-00000001") == sorted(FILES)
    digests = json.loads((tmp_path / "step-00000001" / "digests.json").read_text())
    for name in FILES[:3]:
        assert digests.pop(name) == hashlib.sha256((tmp_path / "step-00000001" / name).read_bytes()).hexdigest()
    assert not digests


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_renamed_and_the_one_before_it_is_loaded(training, tmp_path, name, damage):
    model = training[1]
    checkpoints, weights = save_steps(training, tmp_path, TrainState(step=1), TrainState(step=2))
    DAMAGE[damage](tmp_path / "step-00000002" / name)
    with pytest.warns(
        UserWarning, match=rf"step-00000002 is damaged \(.*{name}.*\): .*step-00000002.damaged"
    ) as caught:
        assert checkpoints.resume() == TrainState(step=1)
    assert len(caught) == 1
    assert all(torch.equal(weights[0][key], value) for key, value in model.state_dict().items())
    assert names(tmp_path) == ["step-00000001", "step-00000002.damaged"]
    checkpoints.save(TrainState(step=2))
    assert checkpoints.resume() == TrainState(step=2)


def test_without_a_whole_checkpoint_a_run_starts_again_and_removes_nothing(training, tmp_path):
    checkpoints, _ = save_steps(training, tmp_path, TrainState(step=1), TrainState(step=2))
    for path in tmp_path.iterdir():
        flip_a_bit(path / "optimizer.bin")
    with pytest.warns(UserWarning, match="damaged") as caught:
        assert checkpoints.resume() == TrainState()
    assert len(caught) == 2
    assert names(tmp_path) == ["step-00000001.damaged", "step-00000002.damaged"]


def test_a_checkpoint_with_a_damaged_best_checkpoint_is_not_resumed(training, tmp_path):
    states = [TrainState(step=1), TrainState(3, best_step=2, best_value=0.5)]
    checkpoints, _ = save_steps(training, tmp_path, states[0], TrainState(2, best_step=2, best_value=0.5), states[1])
    flip_a_bit(tmp_path / "step-00000002" / "model.safetensors")
    with pytest.raises(
        RunError, match=r"step-00000002 is damaged \(the sha256 of model.safetensors .* the same command"
    ):
        checkpoints.load(checkpoints.path(2))
    with pytest.warns(UserWarning, match="is damaged") as caught:
        assert checkpoints.resume() == states[0]
    assert "its best checkpoint, step-00000002: the sha256 of model.safetensors" in str(caught[0].message)
    assert len(caught) == 2


def mend_digest(file: Path, name: str = "") -> None:
    """Write the right digest of a changed file, as an attacker would."""
    name = name or file.name
    digests_file = file.parents[name.count("/")] / "digests.json"
    digests = json.loads(digests_file.read_text())
    digests[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    digests_file.write_text(json.dumps(digests))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin"])
def test_a_checkpoint_of_a_different_network_is_refused_in_one_line(training, tmp_path, file):
    checkpoints, _ = save_steps(training, tmp_path, TrainState(step=1))
    if file == "model.safetensors":
        save_file({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, tmp_path / "step-00000001" / file)
    else:
        torch.save({"state": {}, "param_groups": [{"params": [0, 1]}]}, tmp_path / "step-00000001" / file)
    mend_digest(tmp_path / "step-00000001" / file)
    with pytest.raises(RunError, match=r"step-00000001 belongs to a different network \(.*--model.init"):
        checkpoints.resume()


def test_a_checkpoint_that_was_moved_and_linked_to_is_read_and_rotated(training, tmp_path):
    checkpoints, _ = save_steps(training, tmp_path / "run", TrainState(step=1))
    (tmp_path / "run" / "step-00000001").rename(tmp_path / "large disk")
    (tmp_path / "run" / "step-00000001").symlink_to(tmp_path / "large disk")
    assert checkpoints.resume() == TrainState(step=1)
    checkpoints.keep = 1
    checkpoints.save(TrainState(step=2))
    assert names(tmp_path / "run") == ["step-00000002"]
    assert names(tmp_path / "large disk") == sorted(FILES)


class Payload:
    """A pickle that runs code when it is opened without `weights_only`."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("name", ["optimizer.bin", "custom_checkpoint_0.pkl"])
def test_a_tampered_checkpoint_runs_no_code_even_with_the_right_digest(training, average, tmp_path, name):
    checkpoints, _ = save_steps(training, tmp_path, TrainState(step=1))
    file = tmp_path / "step-00000001" / name
    torch.save({"state": {}, "param_groups": Payload(tmp_path / "it ran")}, file)
    mend_digest(file)
    with pytest.raises(RunError, match=r"step-00000001 cannot be read \(Weights only load failed"):
        checkpoints.resume()
    assert not (tmp_path / "it ran").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "it ran").exists(), "it would have"


def test_a_checkpoint_with_a_tampered_description_of_shards_is_refused(training, tmp_path):
    checkpoints, _ = save_steps(training, tmp_path, TrainState(step=1))
    shards = tmp_path / "step-00000001" / "optimizer_0"
    shards.mkdir()
    (shards / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "it ran")))
    mend_digest(shards / ".metadata", "optimizer_0/.metadata")
    with pytest.raises(RunError, match=r"cannot be read \(pathlib.* has no part"):
        checkpoints.resume()


def test_a_file_server_that_does_not_answer_is_no_damage(training, tmp_path, monkeypatch):
    checkpoints, _ = save_steps(training, tmp_path, TrainState(step=1))

    def no_answer(*_):
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(hashlib, "file_digest", no_answer)
    with pytest.raises(OSError, match="Connection timed out"):
        checkpoints.resume()
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("is_linked", [False, True])
def test_everything_and_the_log_are_on_the_disk_before_the_checkpoint_has_its_name(
    training, tmp_path, monkeypatch, is_linked
):
    run, checkpoints, disk = tmp_path / "run", tmp_path / "run" / "checkpoints", tmp_path / "disk"
    for folder in (run, disk if is_linked else checkpoints):
        folder.mkdir()
    if is_linked:
        checkpoints.symlink_to(disk)
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def spy_replace(old: Path, new: Path) -> None:
        calls.append(("replace", str(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    (run / "metrics.jsonl").touch()
    save_steps(training, checkpoints, TrainState(step=1))
    beside = checkpoints.resolve() / ".step-00000001.partial"
    files = {str(path) for path in (run, run / "metrics.jsonl", beside, *(beside / name for name in FILES))}
    named = calls.index(("replace", str(checkpoints / "step-00000001")))
    assert files <= {path for call, path in calls[:named] if call == "fsync"}
    assert calls[named + 1 :] == [("fsync", str(checkpoints.resolve()))]


def test_a_save_does_not_create_a_moved_run_folder_again(training, tmp_path):
    checkpoints = Checkpoints(training[0], tmp_path / "moved" / "checkpoints", keep=1)
    with pytest.raises(RunError, match="No such file or directory"):
        checkpoints.save(TrainState(step=1))
    assert not (tmp_path / "moved").exists()


@pytest.fixture
def average(training):
    """The average of the weights of `training`, all 3."""
    accelerator, model, optimizer = training
    average = WeightAverage(accelerator.unwrap_model(model), 0.5, accelerator.device)
    prepare(accelerator, model, optimizer, average)
    with torch.no_grad():
        average.module.weight.fill_(3.0)
    yield average
    accelerator._custom_objects.clear()


def test_the_average_of_the_weights_is_restored(training, average, tmp_path):
    checkpoints = Checkpoints(training[0], tmp_path, keep=2)
    checkpoints.save(TrainState(step=1))
    with torch.no_grad():
        average.module.weight.fill_(7.0)
    checkpoints.load(checkpoints.path(1))
    assert (average.module.weight == 3).all()
    assert "custom_checkpoint_0.pkl" in json.loads((checkpoints.path(1) / "digests.json").read_text())


def test_a_run_with_an_average_does_not_resume_without_it(training, average, tmp_path):
    checkpoints, _ = save_steps(training, tmp_path, TrainState(step=1))
    training[0]._custom_objects.clear()
    with pytest.raises(RunError, match=r"step-00000001 belongs to a different network \(Number of custom checkpoints"):
        checkpoints.resume()


# ---- pickles of a sharded checkpoint, checked before torch would run their code ----

VALUES = {"weight": torch.ones(2, 3), "step": torch.tensor(3.0), "lr": 0.1, "betas": (0.9, 0.95), "fused": None}


def save_shards(folder: Path, **values: object) -> Path:
    torch_checkpoint.save(VALUES | values, storage_writer=torch_checkpoint.FileSystemWriter(folder / "shards"))
    return folder / "shards"


def load_shards(shards: Path) -> None:
    torch_checkpoint.load(dict(VALUES), storage_reader=torch_checkpoint.FileSystemReader(shards))


def test_shards_that_torch_saved_are_accepted(tmp_path):
    save_shards(tmp_path)
    check_shards(tmp_path)


def test_code_in_a_value_is_refused_and_not_run(training, tmp_path):
    shards = save_shards(tmp_path, lr=Payload(tmp_path / "it ran"))
    checkpoints, _ = save_steps(training, tmp_path, TrainState(step=1))
    training[0].register_load_state_pre_hook(lambda models, folder: load_shards(shards))
    with pytest.raises(RunError, match=r"step-00000001 cannot be read \(Weights only load failed"):
        checkpoints.resume()
    assert not (tmp_path / "it ran").exists()
    load_shards(shards)
    assert (tmp_path / "it ran").exists(), "it would have"


def test_code_in_the_description_of_the_shards_is_refused_and_not_run(tmp_path):
    shards = save_shards(tmp_path)
    description = pickle.loads((shards / ".metadata").read_bytes())
    tampered = dataclasses.replace(description, planner_data=Payload(tmp_path / "it ran"))
    (shards / ".metadata").write_bytes(pickle.dumps(tampered))
    with pytest.raises(pickle.UnpicklingError, match="has no part in a description of shards"):
        check_shards(tmp_path)
    assert not (tmp_path / "it ran").exists()
    load_shards(shards)
    assert (tmp_path / "it ran").exists(), "it would have"


@pytest.mark.parametrize("name", ["os.system", "pickle", "__builtins__", "TypeVar", "load"])
def test_other_names_of_the_accepted_modules_are_refused(tmp_path, name):
    for module in ("torch", "torch.distributed.checkpoint.metadata", "pathlib", "torch.serialization"):
        words = "".join(f"\x8c{chr(len(word))}{word}" for word in (module, name))
        (tmp_path / ".metadata").write_bytes(f"\x80\x04{words}\x93.".encode("latin-1"))
        with pytest.raises(pickle.UnpicklingError, match="has no part"):
            check_shards(tmp_path)
