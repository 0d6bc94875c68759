"""Real trackers receive values, pictures and the config. The run continues without a tracker that fails."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from matplotlib.figure import Figure
from PIL import Image

from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig, Tracker
from mae_hf.errors import ConfigError, RunError
from mae_hf.training.run_folder import RunLog, inspect_run, read_metrics

RED = (255, 0, 0)


def config_for(folder: Path, *trackers: Tracker, **train) -> PretrainConfig:
    return PretrainConfig(output_dir=str(folder), train=PretrainTrainConfig(trackers=trackers, **train))


def start(config: PretrainConfig, step: int = 0) -> RunLog:
    folder = Path(config.output_dir) / "trackers"
    return RunLog(Accelerator(cpu=True, log_with=list(config.train.trackers), project_dir=folder), config, step, {})


def red_figure() -> Figure:
    return Figure(figsize=(2, 1), facecolor="red")


# ---- which trackers a run may have ----


def test_every_tracker_of_accelerate_can_be_chosen():
    assert set(get_args(Tracker)) == set(LoggerType.list()) - {"all"}


def test_a_tracker_that_is_not_installed_is_refused_with_its_installation(tmp_path):
    missing = set(get_args(Tracker)) - {str(name) for name in get_available_trackers()}
    assert missing, "every tracker is installed here: nothing to test"
    for name in missing:
        with pytest.raises(ConfigError) as caught:
            inspect_run(config_for(tmp_path, name))
        fix = f"pip install {name}, or leave it out (--train.trackers)"
        assert str(caught.value) == f"tracker {name} is not installed: {fix}"


def test_an_unfinished_run_may_leave_its_tracker_out(tmp_path):
    start(config_for(tmp_path / "run", "tensorboard"))
    assert inspect_run(config_for(tmp_path / "run")) == "unfinished"


# ---- TensorBoard ----


def read_events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, bytes]]]]:
    """The values and the encoded pictures of a TensorBoard log, by their names."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    values = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    return values, {tag: [(it.step, it.encoded_image_string) for it in events.Images(tag)] for tag in tags["images"]}


def test_tensorboard_gets_values_pictures_and_the_config_in_a_folder_of_the_run(tmp_path):
    log = start(config_for(tmp_path / "run", "tensorboard", seed=4))
    log.metrics(20, 1.0, {"train/loss": 0.5, "train/learning_rate": 1e-3})
    log.picture("reconstruction", red_figure(), 40)
    log.metrics(40, 2.0, {"train/loss": 0.25, "eval/loss": 0.125})
    log.finish({})

    folder = tmp_path / "run" / "trackers" / "run"
    values, pictures = read_events(folder)
    assert values["train/loss"] == [(20, 0.5), (40, 0.25)]
    assert values["train/learning_rate"] == [(20, pytest.approx(1e-3))]
    assert values["eval/loss"] == [(40, 0.125)]
    ((step, encoded),) = pictures["reconstruction"]
    (tmp_path / "picture.png").write_bytes(encoded)
    assert step == 40
    assert_red(tmp_path / "picture.png")
    assert any("train.seed: '4'" in path.read_text() for path in folder.rglob("hparams.yml"))
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [20, 40]


def test_tensorboard_removes_what_came_after_the_step_of_the_resume(tmp_path):
    config = config_for(tmp_path / "run", "tensorboard")
    log = start(config)
    for step in (20, 40, 60):
        log.metrics(step, 1.0, {"train/loss": step / 100})
    log = start(config, step=20)
    log.metrics(40, 1.0, {"train/loss": 0.25})
    log.finish({})
    values, _ = read_events(tmp_path / "run" / "trackers" / "run")
    assert values["train/loss"] == [(20, pytest.approx(0.2)), (40, 0.25)]


def assert_red(path: Path) -> None:
    with Image.open(path) as image:
        assert image.width == 2 * image.height
        assert (np.asarray(image.convert("RGB")) == RED).all()


# ---- trackers that fail ----


def test_a_run_continues_without_a_tracker_that_fails(tmp_path):
    log = start(config_for(tmp_path / "run", "tensorboard"))
    log.metrics(20, 1.0, {"train/loss": 0.5})
    (tracker,) = log._accelerator.trackers
    tracker.writer.add_scalar = tracker.writer.add_scalars = lambda *_, **__: os.stat(tmp_path / "gone")
    with pytest.warns(UserWarning, match=r"tensorboard failed \(FileNotFoundError: .*gone.* metrics.jsonl has all"):
        log.metrics(40, 2.0, {"train/loss": 0.25})
    log.metrics(60, 3.0, {"train/loss": 0.125})  # without another warning
    log.picture("reconstruction", red_figure(), 60)
    log.finish({})
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [20, 40, 60]
    assert inspect_run(config_for(tmp_path / "run")) == "finished"


def test_a_tracker_that_cannot_be_closed_leaves_the_run_finished(tmp_path):
    log = start(config_for(tmp_path / "run", "tensorboard"))
    (tracker,) = log._accelerator.trackers
    tracker.writer.close = lambda: os.stat(tmp_path / "gone")
    with pytest.warns(UserWarning, match="the tracker tensorboard failed"):
        log.finish({})
    assert inspect_run(config_for(tmp_path / "run")) == "finished"


def test_a_tracker_that_cannot_start_ends_the_run_with_what_to_type(tmp_path, monkeypatch):
    class Refusing:
        requires_logging_directory = False

        def __init__(self, name: str) -> None:
            raise OSError("no account")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Refusing)
    fix = r"mend it, or leave the trackers out \(--train.trackers \[\]\)"
    with pytest.raises(RunError, match=rf"the trackers cannot start \(TypeError: .*\): {fix}"):
        start(config_for(tmp_path / "run", "tensorboard"))


# ---- wandb and trackio, each in a process that writes only to its folder ----

RUN = """
import sys
from accelerate import Accelerator
from matplotlib.figure import Figure
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.training.run_folder import RunLog
from mae_hf.training.trackers import tell_trackers

name, folder = sys.argv[1:]
config = PretrainConfig(output_dir=folder, train=PretrainTrainConfig(trackers=(name,)))

def start(step):
    return RunLog(Accelerator(cpu=True, log_with=[name]), config, step, {})

log = start(0)
log.metrics(20, 1.0, {"train/loss": 0.5})
log.picture("reconstruction", Figure(figsize=(2, 1), facecolor="red"), 40)
log.metrics(40, 2.0, {"train/loss": 0.25, "eval/loss": 0.125})
tell_trackers(log._accelerator, lambda tracker: tracker.finish())
log = start(20)
log.metrics(40, 2.0, {"train/loss": 0.375})
log.finish({})
"""


def run_with(tracker: str, tmp_path: Path) -> None:
    own = {
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", RUN, tracker, str(tmp_path / "my-run")]
    done = subprocess.run(command, env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed: pip install mae_hf[wandb]")
def test_wandb_gets_values_and_pictures_offline_in_a_folder_of_the_run(tmp_path):
    run_with("wandb", tmp_path)
    first, second = sorted((tmp_path / "my-run" / "trackers" / "wandb").glob("offline-run-*"))
    logs = [path.read_bytes() for run in (first, second) for path in run.glob("run-*.wandb")]
    before, after = (set(re.findall(rb"((?:train|eval)/loss)\W+([\d.]+)", log)) for log in logs)
    assert before == {(b"train/loss", b"0.5"), (b"train/loss", b"0.25"), (b"eval/loss", b"0.125")}
    assert after == {(b"train/loss", b"0.375")}
    assert b"train.base_lr" in logs[0]
    (picture,) = first.rglob("*.png")
    assert_red(picture)


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed: pip install mae_hf[trackio]")
def test_trackio_gets_values_and_pictures_in_its_local_database_and_a_new_run_after_a_resume(tmp_path):
    run_with("trackio", tmp_path)
    (database,) = (tmp_path / "trackio").glob("my-run*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    names = list(dict.fromkeys(name for name, *_ in rows))
    found = [(names.index(name), step, json.loads(metrics)) for name, step, metrics in rows]
    picture = found.pop(1)
    assert found == [
        (0, 20, {"train/loss": 0.5}),
        (0, 40, {"train/loss": 0.25, "eval/loss": 0.125}),
        (1, 40, {"train/loss": 0.375}),
    ]
    assert (picture[1], picture[2]["reconstruction"]["_type"]) == (40, "trackio.image")
    (path,) = (tmp_path / "trackio").rglob("*.png")
    assert_red(path)
