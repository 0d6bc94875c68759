"""How a command ends: the exit code, and which rank prints why."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mae_hf.commands import exits

ROOT = Path(__file__).parents[2]


def _python(*words: str, **environment: str) -> subprocess.CompletedProcess:
    env = os.environ | {"RANK": "0"} | environment
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, cwd=ROOT, timeout=300)


SCRIPT = """
import os, sys
from mae_hf.commands import exits
from mae_hf.errors import ConfigError, RunError, RunStopped
ends = {"done": None, "failed": RunError("step 7"), "wrong": ConfigError("patch_size 10"), "bug": KeyError("a bug")}
ends |= {"told": RunStopped("saved", 15), "Ctrl-C": KeyboardInterrupt()}
ends |= {"memory": MemoryError(), "allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory")}
ends |= {"unread": BrokenPipeError(32, "Broken pipe")}
ends |= {"full": OSError(28, "No space left on device", "run.json"), "lost": OSError(110, "Connection timed out")}
def main():
    if sys.argv[1].isdigit():
        os.kill(os.getpid(), int(sys.argv[1]))
    if ends[sys.argv[1]]:
        raise ends[sys.argv[1]]
exits.run(main)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "script.py").write_text(SCRIPT)
    return str(tmp_path / "script.py")


LACK = "choose a smaller batch (--help), or end other programs"
RESUMES = "once that is fixed, the same command resumes"


@pytest.mark.parametrize(
    ("end", "rank", "code", "stderr"),
    [
        ("done", "0", 0, ""),
        ("failed", "0", 1, "error: step 7\n"),
        ("failed", "1", 1, "process 1: error: step 7\n"),
        ("wrong", "0", 2, "error: patch_size 10\n"),
        ("wrong", "1", 2, "process 1: error: patch_size 10\n"),
        ("memory", "0", 1, f"error: no memory is left (MemoryError): {LACK}\n"),
        ("allocator", "0", 1, f"error: no memory is left (DefaultCPUAllocator: can't allocate memory): {LACK}\n"),
        ("told", "0", 143, "stopped: saved; to resume, type: python SCRIPT told\n"),
        ("told", "1", 143, ""),
        ("15", "0", 143, "stopped: SIGTERM; to resume, type: python SCRIPT 15\n"),
        ("1", "0", 129, "stopped: SIGHUP; to resume, type: python SCRIPT 1\n"),
        ("1", "1", 129, ""),
        ("unread", "0", 1, f"error: [Errno 32] Broken pipe: {RESUMES}\n"),
        ("Ctrl-C", "1", 130, ""),
        ("Ctrl-C", "0", 130, "stopped: by Ctrl-C, at once\n"),
        ("full", "0", 1, f"error: [Errno 28] No space left on device: 'run.json': {RESUMES}\n"),
        ("full", "3", 1, f"process 3: error: [Errno 28] No space left on device: 'run.json': {RESUMES}\n"),
    ],
)
def test_the_exit_code_says_how_a_command_ended_and_one_line_says_why(script, end, rank, code, stderr):
    done = _python(script, end, RANK=rank, LOCAL_RANK=rank)
    assert (done.returncode, done.stderr, done.stdout) == (code, stderr.replace("SCRIPT", script), "")


def test_closing_the_terminal_ends_a_command_with_129_though_nothing_can_be_printed(tmp_path):
    words = "import signal\nfrom mae_hf.commands import exits\n"
    words += "def main():\n    print('step 7', end='')\n    print('', flush=True)\n    print('step 8', end='')\n"
    words += "    signal.pause()\nexits.run(main)\n"
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", words])
    assert b"step 7" in os.read(terminal, 100)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129


def test_the_command_to_resume_with_has_the_words_of_the_launcher_and_no_secrets(script, tmp_path):
    launcher = tmp_path / "accelerate"
    launcher.write_text("import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[3:]])\n")
    words = ("launch", "--quiet", script, "told", "--output_dir", "a b", "https://me:secret@host/")
    done = _python(str(launcher), *words, ACCELERATE_USE_CPU="true")
    typed = (
        f"ACCELERATE_USE_CPU=true python {launcher} launch --quiet {script} told --output_dir 'a b' https://***@host/"
    )
    assert done.stderr == f"stopped: saved; to resume, type: {typed}\n"


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["env/bin/python3.11", "a.py"], "python a.py"),
        (["python/bin/pypy3", "a.py"], "python/bin/pypy3 a.py"),
        ([sys.executable, f"{Path(sys.executable).parent}/mae_hf", "finetune"], "mae_hf finetune"),
    ],
)
def test_only_python_itself_is_shortened_in_the_command(monkeypatch, words, typed):
    monkeypatch.setattr(sys, "orig_argv", words)
    assert exits._typed_command() == typed


LAUNCHED = """
import os, sys, time
from mae_hf.commands import exits
from mae_hf.errors import ConfigError
def main():
    if os.environ["RANK"] in sys.argv[1:]:
        raise ConfigError("patch_size 10")
    time.sleep(60)
exits.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong_on", "line"),
    [(["0", "1", "2"], "error: patch_size 10"), (["1", "2"], "process 1: error: patch_size 10")],
    ids=["all processes", "all but the first"],
)
def test_a_wrong_config_is_printed_once_whichever_ranks_find_it(tmp_path, wrong_on, line):
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED)
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "3", "--rdzv_backend", "c10d")
    launcher += ("--rdzv_endpoint", "127.0.0.1:0")
    done = _python(*launcher, str(script), *wrong_on, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert [found for found in done.stderr.splitlines() if "patch_size 10" in found] == [line]


ONE_FAILS = """
import atexit, os, time
from mae_hf.commands import exits
def main():
    if os.environ["RANK"] == "0":
        raise RuntimeError("gloo: Connection closed by peer")
    atexit.register(time.sleep, 1)  # as long as torch takes
    raise KeyError("a bug")
exits.run(main)
"""


@pytest.mark.slow
def test_the_launcher_names_the_failing_rank_and_not_its_peers(tmp_path):
    (tmp_path / "script.py").write_text(ONE_FAILS)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "script.py")]
    done = _python(*words, PYTHONPATH=str(ROOT))
    assert "rank 0 lost contact with its peers" in done.stderr
    assert re.search(r"Root Cause[^\n]*\n\[\d\]:\n[^\n]*\n[^\n]*\n +rank +: 1 ", done.stderr), done.stderr


@pytest.mark.parametrize("end", ["bug", "lost"])
def test_a_bug_shows_its_traceback(script, end):
    done = _python(script, end)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        ("RuntimeError('[/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.77.0.2]:19273')", True),
        ("RuntimeError('[/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 30000ms for recv')", True),
        ("torch.distributed.DistBackendError('NCCL communicator was aborted on rank 0.')", True),
        ("RuntimeError('shape [2, 3] is invalid')", False),
    ],
)
def test_a_rank_that_loses_its_peers_prints_one_line_per_machine(error, is_lost):
    imports = "import torch\n" if "torch." in error else ""
    imports += "from mae_hf.commands import exits\n"
    code = f"{imports}def main():\n    print('step 7')\n    raise {error}\nexits.run(main)\n"
    environment = os.environ | {"RANK": "8", "LOCAL_RANK": "0", "PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "step 7\n"), "what was said before is not lost"
    assert ("error: rank 8 lost contact with its peers (" in done.stderr) == is_lost
    assert ("Traceback" in done.stderr) != is_lost
    if is_lost:
        assert len(done.stderr.strip().splitlines()) == 1
