"""One run at a time in a run folder, even if a run is killed."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from mae_hf.errors import ConfigError
from mae_hf.training.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from accelerate import Accelerator
from mae_hf.training.lock import RunLock
lock = RunLock(Accelerator(cpu=True), Path(sys.argv[1]))
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
        RunLock(accelerator, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'run'} is in use by process {holder.pid} on {platform.node()}, since 20")
    assert message.endswith(": wait until it ends, or choose another --output_dir")
    RunLock(accelerator, tmp_path / "other").release()

    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists(), "the file alone locks nothing"
    lock = RunLock(accelerator, tmp_path / "run")
    assert f"process {os.getpid()} on" in (tmp_path / "run" / ".lock").read_text()
    lock.release()


def test_a_released_lock_leaves_no_file_and_can_be_taken_again(accelerator, tmp_path):
    for _ in range(2):
        lock = RunLock(accelerator, tmp_path / "run")
        with pytest.raises(ConfigError, match="is in use by process"):
            RunLock(accelerator, tmp_path / "run")
        lock.release()
        assert not list((tmp_path / "run").iterdir())


def test_a_lock_is_free_after_its_holder_is_deleted(accelerator, tmp_path):
    lock = RunLock(accelerator, tmp_path)
    del lock
    RunLock(accelerator, tmp_path).release()


def test_a_lock_on_a_removed_file_does_not_count(accelerator, tmp_path, monkeypatch):
    """The first run ends after the second has opened the file, and before it locks it."""
    fcntl = pytest.importorskip("fcntl")
    first, flock = RunLock(accelerator, tmp_path), fcntl.flock

    def flock_late(file, operation):
        first.release()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    second = RunLock(accelerator, tmp_path)
    with pytest.raises(ConfigError, match="is in use by process"):
        RunLock(accelerator, tmp_path)
    second.release()


def test_a_folder_that_cannot_be_created_is_refused_with_the_cause(accelerator, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write to \S*file/run \(Not a directory\): choose another --output"):
        RunLock(accelerator, tmp_path / "file" / "run")


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
            RunLock(accelerator, tmp_path / "run")
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(tmp_path / "run")], check=True)
