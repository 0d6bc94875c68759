"""SIGTERM, SIGHUP and Ctrl-C: a command stops where it is, a training run where it can save its state."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from mae_hf.errors import RunStopped

TERMINATING = (signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed, or the ssh connection was lost
# `torchrun` forwards a Ctrl-C that the terminal has already sent to every process: two within a second count as one.
_SECONDS_BETWEEN_TWO = 1.0


@contextlib.contextmanager
def handling(
    handler: Callable[[int, FrameType | None], None], numbers: Iterable[int] = (*TERMINATING, signal.SIGINT)
) -> Iterator[None]:
    """Handle signals with `handler` until the end. An ignored signal stays ignored (`nohup`, background jobs)."""
    is_main = threading.current_thread() is threading.main_thread()  # Python allows no handlers elsewhere
    handled = [number for number in numbers if is_main and signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, former in before.items():
            if signal.getsignal(number) is handler:  # not if `stop` has made it ignored
                signal.signal(number, former)


def stop(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM and SIGHUP: raise `RunStopped`, so that code that writes files can clean up."""
    ignore_terminating()
    drop_lost_outputs()
    raise RunStopped(signal.Signals(number).name, number)


def ignore_terminating() -> None:
    """Ignore SIGTERM and SIGHUP: launchers send several, and the end of a command must not be interrupted."""
    for number in TERMINATING:
        signal.signal(number, signal.SIG_IGN)


def drop_lost_outputs() -> None:
    """Discard further output of stdout and stderr if its reader is gone: writing to a closed terminal is an error."""
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)  # 0: errors and hang-ups only
        if poll.poll(0):
            discard(descriptor)


def discard(descriptor: int) -> None:
    """Discard what is written to a file descriptor from now on."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)


class StopSignals:
    """What a training loop knows of SIGTERM, SIGHUP and Ctrl-C, handled by `note`, so that it can save before it stops.

    A second Ctrl-C, at least a second after the first, raises KeyboardInterrupt at once. Further SIGTERM and SIGHUP are
    ignored. The main process confirms the signal on stderr.
    """

    def __init__(self, is_main_process: bool) -> None:
        self.received = 0  # the number of the first signal
        self.interrupts = False  # while True, the first signal also raises `RunStopped` wherever the main thread is
        self._is_main_process = is_main_process
        self._since = 0.0

    def raise_if_received(self) -> None:
        """Raise `RunStopped` if a signal has arrived that interrupts: a library may have swallowed the first raise."""
        if self.received and self.interrupts:
            raise RunStopped(signal.Signals(self.received).name, self.received)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
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
