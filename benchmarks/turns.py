"""Let contenders take turns, round after round, each in a separate process with its memory, threads and allocator.

A slow moment of the machine then affects all of them. While a contender waits, its loader processes are stopped, so
that it cannot fetch images during the turn of another contender.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mae_hf.errors import RunError

MIN_STEPS = 2  # of a turn
SAMPLE_SECONDS = 0.05  # between two samples of the memory of the contender whose turn it is
MIB = 1 << 20


@dataclass(frozen=True)
class Turn:
    """The work of a contender in a turn.

    Args:
        amount: number of images, or of other units.
        seconds: time until the device had finished.
        threads: number of threads of torch.
        device_mib: peak memory on the GPU; None without a GPU.
    """

    amount: float
    seconds: float
    threads: int
    device_mib: float | None


@dataclass
class Result:
    """The turns of a contender, and its memory.

    Args:
        turns: one for each round.
        own_mib: peak anonymous memory (`RssAnon`, sampled 20 times a second), plus memory that its loader processes do
            not share with it; None without /proc.
        mapped_mib: peak memory of mapped files (`RssFile`), such as libraries and decoded images. The kernel can
            reclaim it.
    """

    turns: list[Turn] = field(default_factory=list)
    own_mib: float | None = None
    mapped_mib: float | None = None


class Turns:
    """The side of the contender. It calls `begin` once after its setup, and `done` after every step."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self) -> None:
        """Wait for the first turn, which is not counted."""
        self._amount, self._steps = 0.0, 0
        self._report(0.0)

    def done(self, amount: float) -> None:
        """Count a step. At the end of a turn, wait for the next.

        Args:
            amount: number of images of the step.
        """
        self._amount += amount
        self._steps += 1
        if self._steps >= MIN_STEPS and time.perf_counter() - self._started >= self._seconds:
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            self._report(time.perf_counter() - self._started)

    def _report(self, seconds: float) -> None:
        _signal_loaders(signal.SIGSTOP)
        device_mib = torch.cuda.max_memory_reserved() / MIB if torch.cuda.is_available() else None
        self._connection.send(Turn(self._amount, seconds, torch.get_num_threads(), device_mib))
        self._seconds: float = self._connection.recv()
        _signal_loaders(signal.SIGCONT)
        self._amount, self._steps = 0.0, 0
        self._started = time.perf_counter()


Work = Callable[[Turns], None]
"""A contender: a function that sets itself up, begins, and works forever. It can be pickled."""


def take_turns(works: Mapping[str, Work], rounds: int, seconds: float) -> dict[str, Result]:
    """Let every contender work for `seconds` in each of `rounds`, after a first round that is not counted.

    Args:
        works: contenders by name.
        rounds: number of counted turns of each.
        seconds: minimum length of a turn.

    Raises:
        RunError: a contender failed or ended; the others are stopped.
    """
    # forks of a process that has loaded all libraries and computed nothing: they start at once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.measures"])
    processes: dict[str, _Process] = {}
    try:
        for name, work in works.items():
            processes[name] = _Process(context, name, work)
        for process in processes.values():
            process.answer()
        with tqdm(total=(1 + rounds) * len(processes), unit="turn", disable=None) as progress:
            for number in range(1 + rounds):
                for name, process in processes.items():
                    progress.set_postfix_str(name)
                    turn = process.take_turn(seconds)
                    process.result.turns += [turn] if number else []
                    progress.update()
        return {name: process.result for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()


class _Process:
    """The side of the parent process."""

    def __init__(self, context: Any, name: str, work: Work) -> None:
        self.result = Result()
        self._name = name
        self._own_mib = self._loaders_mib = 0.0
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_compete, args=(theirs, work), name=name)
        self._process.start()
        theirs.close()  # so that the pipe ends with the process

    def take_turn(self, seconds: float) -> Turn:
        """Let it work for this long."""
        with contextlib.suppress(OSError):  # it ended while it waited, as `answer` will report
            self._connection.send(seconds)
        return self.answer()

    def answer(self) -> Turn:
        """Return its next message."""
        try:
            while not self._connection.poll(SAMPLE_SECONDS):
                self._sample_memory()
            message = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            hint = " (was there enough memory?)" if code == -signal.SIGKILL else ""
            raise RunError(f"{self._name} ended with exit code {code}{hint}") from None
        if not isinstance(message, Turn):
            raise RunError(f"{self._name} failed: {message}")
        self._sample_memory(with_loaders=True)
        return message

    def kill(self) -> None:
        """Kill it and all its loader processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _sample_memory(self, with_loaders: bool = False) -> None:
        """Update the peaks in `result`. Loaders are read only between turns, because that takes time."""
        process = Path(f"/proc/{self._process.pid}")
        with contextlib.suppress(OSError, KeyError):  # no /proc, or it has ended
            memory = _mib(process / "status")
            self._own_mib = max(memory["RssAnon"], self._own_mib)
            if with_loaders:
                loaders = (process / "task" / process.name / "children").read_text().split()
                unshared = sum(_mib(Path("/proc") / loader / "smaps_rollup")["Private_Dirty"] for loader in loaders)
                self._loaders_mib = max(unshared, self._loaders_mib)
            self.result.own_mib = self._own_mib + self._loaders_mib
            self.result.mapped_mib = max(memory["RssFile"], self.result.mapped_mib or 0)


def _mib(path: Path) -> dict[str, float]:
    """Return the lines `key: number kB` of a file in /proc, in MiB."""
    rows = [line.split() for line in path.read_text().splitlines() if line.endswith("kB")]
    return {key.rstrip(":"): int(kib) / 1024 for key, kib, _ in rows}


def _signal_loaders(number: signal.Signals) -> None:
    """Send a signal to the loader processes of this process."""
    for loader in multiprocessing.active_children():
        assert loader.pid is not None
        os.kill(loader.pid, number)


def _compete(connection: Connection, work: Work) -> None:
    """Run a contender in its process."""
    os.setpgid(0, 0)  # a separate group with its loaders: Ctrl-C does not reach it, and it ends as a whole
    multiprocessing.set_start_method(None, force=True)  # loaders start in the default way
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        work(Turns(connection))
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = (str(error).strip() or "no message").splitlines()[0]
        with contextlib.suppress(OSError):  # the parent may have ended, which caused the error
            connection.send(f"{type(error).__name__}: {reason} ({Path(place.filename).name}, line {place.lineno})")
    finally:
        os.killpg(0, signal.SIGKILL)  # a stopped loader reacts to no other signal
