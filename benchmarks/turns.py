"""Contenders take turns, round after round, each in a process of its own: its memory, its threads, its allocator.

A slow moment of the machine so falls on all of them. While a process waits for its turn, its loader processes are
stopped: nothing is fetched ahead in the time of another.
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

LEAST_STEPS = 2  # of a turn, however long they take
SAMPLE_SECONDS = 0.05  # between two looks at the memory of the process whose turn it is
MIB = 1 << 20


@dataclass(frozen=True)
class Turn:
    """What a contender did in a turn.

    Args:
        amount: images, or what else it counts.
        seconds: how long that took, until the device was done.
        threads: that torch computes with.
        device_mib: most memory of a GPU that was ever held; None without one.
    """

    amount: float
    seconds: float
    threads: int
    device_mib: float | None


@dataclass
class Result:
    """The turns of a contender, and its memory.

    Args:
        turns: one a round.
        own_mib: the most anonymous memory that was seen at once (`RssAnon`, 20 times a second), and what its loader
            processes do not share with it; None where there is no /proc.
        mapped_mib: the most pages of files that were seen at once (`RssFile`), such as libraries and a store of images;
            the kernel takes them back when it needs them.
    """

    turns: list[Turn] = field(default_factory=list)
    own_mib: float | None = None
    mapped_mib: float | None = None


class Turns:
    """A contender's own side: it calls `begin` once, when all is set up, and `done` after every step."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self) -> None:
        """Returns when the first turn has come, which is not counted."""
        self._amount, self._steps = 0.0, 0
        self._report(0.0)

    def done(self, amount: float) -> None:
        """Counts a step; where the turn is over, returns when the next has come.

        Args:
            amount: images of the step.
        """
        self._amount += amount
        self._steps += 1
        if self._steps >= LEAST_STEPS and time.perf_counter() - self._started >= self._seconds:
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
"""A contender: sets itself up, begins, and works for ever. It can be pickled."""


def take_turns(works: Mapping[str, Work], rounds: int, seconds: float) -> dict[str, Result]:
    """Lets every contender work for `seconds` in each of `rounds`, after a first round that is not counted.

    Args:
        works: contenders by name.
        rounds: turns of each that are counted.
        seconds: least length of a turn.

    Raises:
        RunError: a contender failed or ended; the others have ended, too.
    """
    # forks of one process that has all libraries loaded and has computed nothing: as good as new, and there at once
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
    """A contender as the parent sees it."""

    def __init__(self, context: Any, name: str, work: Work) -> None:
        self.result = Result()
        self._name = name
        self._own_mib = self._loaders_mib = 0.0
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_compete, args=(theirs, work), name=name)
        self._process.start()
        theirs.close()  # or the end of the process would not be the end of the pipe

    def take_turn(self, seconds: float) -> Turn:
        """Lets it go on for so long."""
        with contextlib.suppress(OSError):  # it ended while it waited, which its answer tells
            self._connection.send(seconds)
        return self.answer()

    def answer(self) -> Turn:
        """What it says next; then it waits."""
        try:
            while not self._connection.poll(SAMPLE_SECONDS):
                self._look_at_memory()
            message = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            hint = " (was there enough memory?)" if code == -signal.SIGKILL else ""
            raise RunError(f"{self._name} ended with exit code {code}{hint}") from None
        if not isinstance(message, Turn):
            raise RunError(f"{self._name} failed: {message}")
        self._look_at_memory(with_loaders=True)
        return message

    def kill(self) -> None:
        """Ends it and all that it has started, stopped or not."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _look_at_memory(self, with_loaders: bool = False) -> None:
        """Raises the peaks in `result`. Loaders are counted between turns only: that takes time."""
        process = Path(f"/proc/{self._process.pid}")
        with contextlib.suppress(OSError, KeyError):  # no /proc, or it has just ended
            memory = _mib(process / "status")
            self._own_mib = max(memory["RssAnon"], self._own_mib)
            if with_loaders:
                loaders = (process / "task" / process.name / "children").read_text().split()
                unshared = sum(_mib(Path("/proc") / loader / "smaps_rollup")["Private_Dirty"] for loader in loaders)
                self._loaders_mib = max(unshared, self._loaders_mib)
            self.result.own_mib = self._own_mib + self._loaders_mib
            self.result.mapped_mib = max(memory["RssFile"], self.result.mapped_mib or 0)


def _mib(path: Path) -> dict[str, float]:
    """The lines `key: number kB` of a file in /proc."""
    rows = [line.split() for line in path.read_text().splitlines() if line.endswith("kB")]
    return {key.rstrip(":"): int(kib) / 1024 for key, kib, _ in rows}


def _signal_loaders(number: signal.Signals) -> None:
    """Sends a signal to the loader processes of this one."""
    for loader in multiprocessing.active_children():
        assert loader.pid is not None
        os.kill(loader.pid, number)


def _compete(connection: Connection, work: Work) -> None:
    """What a contender's process runs."""
    os.setpgid(0, 0)  # a group of its own, loaders included: it does not hear Ctrl-C, and ends as a whole
    multiprocessing.set_start_method(None, force=True)  # loaders start as they do in any process
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        work(Turns(connection))
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = (str(error).strip() or "no message").splitlines()[0]
        with contextlib.suppress(OSError):  # the parent may be gone, which is why it came to this
            connection.send(f"{type(error).__name__}: {reason} ({Path(place.filename).name}, line {place.lineno})")
    finally:
        os.killpg(0, signal.SIGKILL)  # a loader that is stopped would not hear of anything else
