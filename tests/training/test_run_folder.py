"""A run folder: which ones are accepted, their lock, and what is written when."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest
from accelerate import Accelerator

from mae_hf.config import parse
from mae_hf.config.data import DataConfig
from mae_hf.config.model import MAEConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.config.train import FinetuneTrainConfig, PretrainTrainConfig
from mae_hf.errors import ConfigError, RunError
from mae_hf.training import provenance
from mae_hf.training.run_folder import RunLog, inspect_run, lock_folder, read_metrics

FACTS = {"num_train_images": 1240, "data_fingerprint": "abc"}


def config_for(folder: Path, **train) -> PretrainConfig:
    return PretrainConfig(output_dir=str(folder), train=PretrainTrainConfig(**train))


def start(config: PretrainConfig, step: int = 0, facts: dict | None = None) -> RunLog:
    return RunLog(Accelerator(cpu=True), config, step, FACTS if facts is None else facts)


def refusal(config) -> str:
    with pytest.raises(ConfigError) as caught:
        inspect_run(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- which folder may be used ----


def test_a_folder_that_is_missing_or_empty_is_new(tmp_path):
    assert inspect_run(config_for(tmp_path / "run")) == "new"
    assert not (tmp_path / "run").exists(), "inspecting writes nothing"
    assert inspect_run(config_for(tmp_path)) == "new"


def test_a_run_is_unfinished_until_its_final_metrics_are_written(tmp_path):
    config = config_for(tmp_path / "run")
    log = start(config)
    assert inspect_run(config) == "unfinished"
    log.finish({"eval/loss": 0.5})
    assert inspect_run(config) == "finished"


def test_a_run_does_not_resume_with_different_images(tmp_path):
    config = config_for(tmp_path / "run")
    start(config)
    with pytest.raises(
        ConfigError, match=r"run started with different training images \(data_fingerprint abc, now xyz\)"
    ):
        start(config, step=3, facts=FACTS | {"data_fingerprint": "xyz"})
    start(config, step=0, facts=FACTS | {"data_fingerprint": "xyz"})  # it starts again, since nothing was trained


def test_a_different_config_is_refused_with_every_difference(tmp_path):
    config = config_for(tmp_path / "run")
    start(config).finish({})
    other = dataclasses.replace(config_for(tmp_path / "run", seed=3), data=DataConfig(source="digits"))
    message = refusal(other)
    assert "data.source: jxie/stl10 -> digits; train.seed: 0 -> 3)" in message
    assert str(tmp_path / "run") in message
    assert "--output_dir" in message


def test_settings_without_effect_on_the_result_may_change_between_two_starts(tmp_path):
    start(config_for(tmp_path / "run"))
    elsewhere = DataConfig(cache_dir="elsewhere", on_device="never")
    machine = {"compile": "never", "timeout_minutes": 5.0, "per_device_batch_size": 16}
    other = dataclasses.replace(config_for(tmp_path / "run", **machine), data=elsewhere)
    assert inspect_run(other) == "unfinished"
    averaged = FinetuneConfig(output_dir=str(tmp_path / "averaged"), train=FinetuneTrainConfig(ema_decay=0.9))
    start(FinetuneConfig(output_dir=averaged.output_dir))
    assert "(train.ema_decay: 0.0 -> 0.9)" in refusal(averaged)
    half = dataclasses.replace(other, model=MAEConfig(decode_ratio=0.5))
    assert "(model.decode_ratio: 1.0 -> 0.5)" in refusal(half)


def test_a_run_of_the_other_stage_is_refused(tmp_path):
    start(config_for(tmp_path / "run"))
    message = refusal(FinetuneConfig(output_dir=str(tmp_path / "run")))
    assert f"{tmp_path / 'run'} holds a different kind of run, or its config.yaml is damaged (" in message
    assert message.endswith("choose another --output_dir")


def test_the_same_folder_under_another_name_is_the_same_run(tmp_path, monkeypatch):
    start(config_for(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    assert inspect_run(config_for("run/")) == "unfinished"
    (tmp_path / "run").rename(tmp_path / "moved")
    assert inspect_run(config_for(tmp_path / "moved")) == "unfinished"


def test_a_folder_with_other_files_is_refused_and_they_are_named(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    message = refusal(config_for(tmp_path))
    assert f"{tmp_path} is not a run folder but contains thesis.tex: choose another --output_dir" == message


def test_a_partly_written_config_does_not_make_a_folder_foreign(tmp_path):
    (tmp_path / ".config.yaml.partial").write_text("model: {ima")
    assert inspect_run(config_for(tmp_path)) == "new"
    start(config_for(tmp_path))
    assert not (tmp_path / ".config.yaml.partial").exists()
    assert inspect_run(config_for(tmp_path)) == "unfinished"


# ---- the lock ----

HOLD = """
import sys, time
from pathlib import Path
from accelerate import Accelerator
from mae_hf.training.run_folder import lock_folder
lock = lock_folder(Accelerator(cpu=True), Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the lock of the folder `run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_with_the_name_of_the_first_until_that_is_killed(accelerator, holder, tmp_path):
    with pytest.raises(ConfigError) as caught:
        lock_folder(accelerator, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'run'} is in use by process {holder.pid} on {platform.node()}, since 20")
    assert message.endswith(": wait until it ends, or choose another --output_dir")
    lock_folder(accelerator, tmp_path / "other").close()

    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists(), "the file alone locks nothing"
    lock = lock_folder(accelerator, tmp_path / "run")
    assert f"process {os.getpid()} on" in (tmp_path / "run" / ".lock").read_text()
    lock.close()


def test_a_closed_lock_can_be_taken_again(accelerator, tmp_path):
    for _ in range(2):
        lock = lock_folder(accelerator, tmp_path / "run")
        with pytest.raises(ConfigError, match="is in use by process"):
            lock_folder(accelerator, tmp_path / "run")
        lock.close()


def test_a_lock_is_free_after_its_holder_is_deleted(accelerator, tmp_path):
    lock = lock_folder(accelerator, tmp_path)
    del lock
    lock_folder(accelerator, tmp_path).close()


def test_a_folder_that_cannot_be_created_is_refused_with_the_cause(accelerator, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write to \S*file/run \(Not a directory\): choose another --output"):
        lock_folder(accelerator, tmp_path / "file" / "run")


def test_a_read_only_folder_is_refused_with_the_cause(accelerator, tmp_path):
    (tmp_path / "run").mkdir()
    if os.geteuid() == 0:  # permissions do not stop root
        mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path / "run")]
        if subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("root may not mount a read-only file system here")
    else:
        (tmp_path / "run").chmod(0o555)
    try:
        with pytest.raises(ConfigError, match=r"cannot write to \S*run \((Read-only file system|Permission denied)\)"):
            lock_folder(accelerator, tmp_path / "run")
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(tmp_path / "run")], check=True)


# ---- what is written ----


def test_the_config_that_is_written_is_the_config_of_the_run(tmp_path):
    config = config_for(tmp_path / "run", seed=4)
    start(config)
    assert parse.read_file(PretrainConfig, tmp_path / "run" / "config.yaml") == config


def test_run_json_says_what_ran_where_with_which_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/pretrain.py", "--output_dir", "a b"])
    log = start(config_for(tmp_path / "run"))
    path = tmp_path / "run" / "run.json"
    run = json.loads(path.read_text())
    assert run.keys() == {
        *(
            "command",
            "git_commit",
            "versions",
            "device",
            "num_processes",
            "num_machines",
            "strategy",
            "mixed_precision",
        ),
        *("start", "end", *FACTS),
    }
    assert run["command"] == "scripts/pretrain.py --output_dir 'a b'"
    assert run["versions"]["transformers"] == version("transformers")
    assert run["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert run["device"].startswith("cpu: ")
    assert (run["num_processes"], run["mixed_precision"], run["end"]) == (1, "no", None)
    assert {key: run[key] for key in FACTS} == FACTS

    log.finish({"eval/loss": 0.5})
    finished = json.loads(path.read_text())
    assert datetime.fromisoformat(finished["end"]) >= datetime.fromisoformat(finished["start"])
    assert {**finished, "end": None} == run
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == {"eval/loss": 0.5}


def test_the_git_commit_is_that_of_the_code(tmp_path):
    start(config_for(tmp_path / "run"))
    folder = Path(provenance.__file__).parent
    head = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    commit = json.loads((tmp_path / "run" / "run.json").read_text())["git_commit"]
    if head.returncode == 0:
        assert commit.removesuffix("-dirty") == head.stdout.strip()
    else:
        assert commit is None


def test_metrics_are_a_line_each(tmp_path):
    log = start(config_for(tmp_path / "run"))
    log.metrics(20, 1.23456, {"train/loss": 0.5})
    log.metrics(40, 2.5, {"train/loss": 0.25, "eval/loss": 0.3})
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 20, "epoch": 1.2346, "train/loss": 0.5}',
        '{"step": 40, "epoch": 2.5, "train/loss": 0.25, "eval/loss": 0.3}',
    ]
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [20, 40]


def test_a_resumed_run_removes_the_lines_after_its_checkpoint_and_keeps_its_start(tmp_path):
    config = config_for(tmp_path / "run")
    log = start(config)
    for step in (10, 20, 30):
        log.metrics(step, step / 10, {"train/loss": 1 / step})
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "start": "2020-01-01T00:00:00+00:00"}))

    log = start(config, step=20)
    log.metrics(30, 3.0, {"train/loss": 0.5})
    assert [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path / "run")] == [
        *((10, 0.1), (20, 0.05), (30, 0.5))
    ]
    assert json.loads(path.read_text())["start"] == "2020-01-01T00:00:00+00:00"


def test_a_half_written_line_is_removed(tmp_path):
    config = config_for(tmp_path / "run")
    start(config).metrics(10, 1.0, {"train/loss": 0.5})
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "epo')
    log = start(config, step=20)
    log.metrics(30, 3.0, {"train/loss": 0.25})
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [10, 30]


def test_damaged_lines_are_removed_with_a_warning(tmp_path):
    config = config_for(tmp_path / "run")
    start(config).metrics(10, 1.0, {"train/loss": 0.5})
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b"\0\0\xff\n[]\n")  # as a power cut may leave it
    with pytest.warns(UserWarning, match=r"removed 2 damaged lines from .*metrics.jsonl"):
        start(config, step=20)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [10]


@pytest.mark.parametrize("content", ["", '{"start": "2020', "[1]"])
def test_a_damaged_run_json_is_replaced_with_a_warning(tmp_path, content):
    config = config_for(tmp_path / "run")
    start(config)
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.warns(UserWarning, match=r"run.json is damaged: .* unknown"):
        start(config, step=20)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_train_images"] == 1240


@pytest.mark.parametrize("content", ["", "data: [unclosed"])
def test_a_damaged_config_is_refused(tmp_path, content):
    config = config_for(tmp_path / "run")
    start(config)
    (tmp_path / "run" / "config.yaml").write_text(content)
    assert f"{tmp_path / 'run'} holds a different kind of run, or its config.yaml is damaged (" in refusal(config)


def test_moving_the_folder_ends_the_run_which_resumes_at_the_new_path(tmp_path):
    log = start(config_for(tmp_path / "run"))
    log.metrics(10, 1.0, {"train/loss": 0.5})
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run" / "figures").mkdir(parents=True)  # as a figure would create it
    with pytest.raises(RunError, match=r"run was moved or removed during the run: .* its new --output_dir"):
        log.metrics(20, 2.0, {"train/loss": 0.25})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    start(config_for(tmp_path / "moved"), step=10)
    assert [line["step"] for line in read_metrics(tmp_path / "moved")] == [10]


def test_a_lock_file_does_not_make_a_folder_foreign(tmp_path):
    lock_folder(Accelerator(cpu=True), tmp_path / "run")
    state = inspect_run(config_for(tmp_path / "run"))
    assert state == "new", "like the folder of a run that was killed before it wrote anything"
