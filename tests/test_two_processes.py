"""Two processes on a CPU, as `torchrun` starts them: the same losses as one, and every image once."""

import json
from pathlib import Path

import pytest
import small_training
from forks import run
from safetensors.torch import load_file

from mae_hf.training.run_folder import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What `small_training.py` writes on two processes."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.raises(small_training.Interrupted):
        small_training.run(folder / "begun on one", stop_at=12)
    done = run(small_training.__file__, folder, processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    small_training.run(folder / "begun on two")  # one process resumes where two were stopped
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same run on one process."""
    folder = tmp_path_factory.mktemp("alone")
    small_training.run(folder)
    return folder


def seen_by(folder: Path) -> list[dict]:
    return [json.loads((folder / f"process-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_ran(folder):
    assert [seen["num_processes"] for seen in seen_by(folder)] == [2, 2]
    assert json.loads((folder / "whole" / "run.json").read_text())["num_processes"] == 2


@pytest.mark.parametrize("name", ["whole", "accumulated", "resumed", "begun on one", "begun on two"])
def test_two_processes_train_like_one(folder, alone, name):
    for key, tolerance in {"step": 0, "epoch": 0, "train/loss": 1e-5, "train/grad_norm": 1e-4}.items():
        found, wanted = ([line[key] for line in read_metrics(path)] for path in (folder / name, alone))
        assert len(found) == 7
        assert found == pytest.approx(wanted, abs=tolerance), key
    found, wanted = (
        load_file(path / "checkpoints" / "step-00000020" / "model.safetensors") for path in (folder / name, alone)
    )
    assert found.keys() == wanted.keys()
    assert all((found[key] - wanted[key]).abs().max() < 1e-4 for key in wanted)


def test_a_signal_to_one_process_stops_both_after_the_same_step(folder):
    for seen in seen_by(folder):
        assert seen["stopped"] == f"SIGTERM: saved as {folder / 'begun on two'}/checkpoints/step-00000010"


def test_a_loss_that_is_not_finite_on_one_process_stops_all_of_them_at_the_same_step(folder):
    for seen in seen_by(folder):
        assert "of step 9 is not finite" in seen["error"]
        assert "step-00000007" in seen["error"]


@pytest.mark.parametrize("num_images", [1, 2, 3, 8, 13])
def test_every_image_is_counted_once_on_any_number_of_processes(folder, num_images):
    first, second = seen_by(folder)
    expected = [[row, row**2] for row in range(num_images)]
    assert first[f"values of {num_images}"] == second[f"values of {num_images}"] == expected
    computed = [seen[f"computed of {num_images}"] for seen in (first, second)]
    assert computed[0] == list(range(0, num_images, 2))
    filler = [0] if num_images in (1, 13) else []
    assert computed[1] == list(range(1, num_images, 2)) + filler, (
        "as many batches as the other one, filled with image 0"
    )
