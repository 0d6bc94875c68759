"""SIGTERM and Ctrl-C while a run trains: noted, so that the loop can save and stop where it is safe."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

# `torchrun` passes a Ctrl-C on that the terminal has already sent to every process: two within a second are one.
_SECONDS_BETWEEN_TWO = 1.0


class StopSignals:
    """Notes SIGTERM and SIGINT (Ctrl-C) while it is entered, instead of stopping at once.

    A second Ctrl-C, a second after the first or later, raises KeyboardInterrupt where the process is. A further SIGTERM
    does nothing: machines and launchers that take a process away send several. A signal that is ignored stays so
    (`nohup`, and Ctrl-C for what a shell has put in the background).

    Args:
        is_main_process: says on stderr that the signal has arrived.
    """

    def __init__(self, is_main_process: bool) -> None:
        self.received = 0
        self._is_main_process = is_main_process
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if number == signal.SIGINT and time.monotonic() - self._since >= _SECONDS_BETWEEN_TWO:
                raise KeyboardInterrupt
            return
        self.received, self._since = number, time.monotonic()
        if self._is_main_process:
            words = f"\n{signal.Signals(number).name}: saving after this step; Ctrl-C from now on stops at once\n"
            os.write(2, words.encode())  # print may be what the signal has interrupted
