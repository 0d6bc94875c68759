"""The progress of long work: a bar in a terminal, and without one a plain line a minute."""

import contextlib
import os
import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s in {elapsed}, {remaining} left{postfix}"


class Progress(tqdm):
    """tqdm's bar, with the same arguments. If stderr is no terminal, a whole line a minute replaces it.

    Only the first process of a machine shows anything. A closed terminal causes no error.
    """

    def __init__(self, *args: Any, disable: bool = False, **options: Any) -> None:
        self._is_plain = not sys.stderr.isatty()
        self._last_line = time.monotonic()
        if self._is_plain:
            options |= {"leave": False, "bar_format": _LINE}
        super().__init__(*args, disable=disable or os.environ.get("LOCAL_RANK", "0") != "0", **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or print a line if the last one is a minute old."""
        with contextlib.suppress(OSError):
            if not self._is_plain:
                return bool(super().display(msg, pos))
            if msg is None and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = time.monotonic()
                self.fp.write(f"{self}\n")
                self.fp.flush()
        return False

    def clear(self, nolock: bool = False) -> None:
        """Make room for other text. Plain lines stay."""
        with contextlib.suppress(OSError):
            if not self._is_plain:
                super().clear(nolock)

    def close(self) -> None:
        """Leave the finished bar where it is."""
        with contextlib.suppress(OSError):
            super().close()


def in_words(seconds: float) -> str:
    """Return a duration in words: `50 s`, `12 min`, `2 h 10 min`, `37 days`."""
    minutes, days = round(seconds / 60), round(seconds / 86_400)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if days >= 2:
        return f"{days} days"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
