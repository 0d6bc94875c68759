"""Start scripts at once, as forks of a process that has loaded all libraries: loading takes ten seconds.

Tests of what a script computes start it this way. Tests of how it starts (launchers, imports, signals of a terminal)
start a separate process.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
LIBRARIES = [
    "sklearn.datasets",
    "sklearn.model_selection",
    *(
        f"mae_hf.commands.{name}"
        for name in ("pretrain", "finetune", "evaluate", "few_labels", "reconstruct", "embed", "predict")
    ),
]


def run(*words: object, processes: int = 1, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in this folder, of which the first is a script; or that, as `torchrun` starts it.

    `$RANK` in the folder's name and in the words is the number of the process.
    """
    context = multiprocessing.get_context("forkserver")  # it has computed nothing, unlike this process
    context.set_forkserver_preload(LIBRARIES)
    command = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as scratch:
        output, errors = Path(scratch, "output"), Path(scratch, "errors")
        started = []
        for place in places(processes):
            own = [word.replace("$RANK", place.get("RANK", "")) for word in (str(folder), *command)]
            given = (own[1:], output, errors, os.environ | place, Path(own[0]))
            started.append(context.Process(target=become, args=given))
        for process in started:
            process.start()
        for process in started:
            process.join()
        code = max(abs(process.exitcode) for process in started)
        return subprocess.CompletedProcess(command, code, output.read_text(), errors.read_text())


def places(num: int) -> Iterator[dict[str, str]]:
    """Yield the environment that `torchrun` gives each of several processes without GPUs; a single one gets none."""
    if num == 1:
        yield {}
        return
    common = {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num), "ACCELERATE_USE_CPU": "true"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in map(str, range(num)):
        yield {**common, "RANK": rank, "LOCAL_RANK": rank}


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def succeed(*words: object, folder: Path = ROOT) -> str:
    """As `run`, of a command that must succeed; what it has printed."""
    done = run(*words, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def typed(*words: object) -> subprocess.CompletedProcess[str]:
    """Type a command in the project's folder, as a separate process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)


def become(
    words: Sequence[str], output: Path, errors: Path, environment: dict[str, str], folder: Path = ROOT
) -> NoReturn:
    """Turns this process into `python WORDS` in this folder, with its output in files; ends it."""
    code = 70
    try:
        for number, file in ((1, output), (2, errors)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv[:] = words
        sys.orig_argv[:] = ["python", *words]
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
