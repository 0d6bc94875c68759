"""SIGTERM, SIGHUP and Ctrl-C: a command stops where it is, a training run where it can save its state."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from mae_hf.errors import RunStopped

# SIGHUP: the terminal was closed, or the ssh connection was lost. Windows has none.
TERMINATING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
# `torchrun` forwards a Ctrl-C that the terminal has already sent to every process: two within a second count as one.
_SECONDS_BETWEEN_TWO = 1.0


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `RunStopped` in the main thread, as Ctrl-C raises KeyboardInterrupt.

    Code that writes files can then clean up. A signal that is ignored stays ignored (`nohup`).
    """
    numbers = [number for number in TERMINATING if signal.getsignal(number) is not signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, _stop)
    afterwards = signal.SIG_DFL
    try:
        yield
    except RunStopped:
        afterwards = signal.SIG_IGN  # launchers send several, and the message must still be printed
        raise
    finally:
        for number in numbers:
            signal.signal(number, afterwards)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in TERMINATING:  # launchers send several, and cleaning up must not be interrupted
        signal.signal(each, signal.SIG_IGN)
    drop_lost_outputs()
    raise RunStopped(signal.Signals(number).name, number)


def drop_lost_outputs() -> None:
    """Discard further output of stdout and stderr if its reader is gone: writing to a closed terminal is an error."""
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)  # 0: errors and hang-ups only
        if poll.poll(0):
            discard(descriptor)


def discard(descriptor: int) -> None:
    """Discard what is written to a file descriptor from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class StopSignals:
    """Note SIGTERM, SIGHUP and Ctrl-C while entered, so that the training loop can save before it stops.

    A second Ctrl-C, at least a second after the first, raises KeyboardInterrupt at once. Further SIGTERM and SIGHUP are
    ignored, because launchers and cluster managers send several. A signal that is ignored stays ignored (`nohup`, and
    Ctrl-C for background jobs of a shell). The main process confirms the signal on stderr.

    Attributes:
        received: the number of the first signal, or 0.
        interrupts: while True, the first signal also raises `RunStopped` wherever the main thread is.
    """

    def __init__(self, is_main_process: bool) -> None:
        self.received = 0
        self.interrupts = False
        self._is_main_process = is_main_process
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (*TERMINATING, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_if_received(self) -> None:
        """Raise `RunStopped` if a signal has arrived that interrupts: a library may have swallowed the first raise."""
        if self.received and self.interrupts:
            raise RunStopped(signal.Signals(self.received).name, self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if number == signal.SIGINT and time.monotonic() - self._since >= _SECONDS_BETWEEN_TWO:
                raise KeyboardInterrupt
            return
        self.received, self._since = number, time.monotonic()
        drop_lost_outputs()
        if self._is_main_process:
            words = f"\n{signal.Signals(number).name}: saving, then stopping; press Ctrl-C to stop without saving\n"
            with contextlib.suppress(OSError):
                os.write(2, words.encode())  # print may be what the signal has interrupted
        self.raise_if_received()
