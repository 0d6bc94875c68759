"""Progress without a terminal: whole lines, at most one per interval."""

import contextlib
import errno
import io

import pytest

from mae_hf import progress
from mae_hf.progress import Progress, in_words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(Terminal):
    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "closed")  # which tqdm expects of a closed terminal


def work(monkeypatch, steps: int, stderr: io.StringIO) -> str:
    """What is written to stderr during steps of 25 seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with contextlib.redirect_stderr(stderr), Progress(total=steps, desc="decoding", unit="image") as bar:
        for _ in range(steps):
            now[0] += 25.0
            bar.update()
            bar.refresh()
            bar.clear()
    return stderr.getvalue()


def test_a_pipe_gets_a_whole_line_a_minute(monkeypatch):
    lines = work(monkeypatch, 7, io.StringIO()).split("\n")
    assert [line.partition(" in ")[0] for line in lines] == ["decoding: 3 of 7 images", "decoding: 6 of 7 images", ""]
    assert not any("\r" in line for line in lines)


def test_short_work_leaves_a_pipe_empty(monkeypatch):
    assert work(monkeypatch, 2, io.StringIO()) == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    assert "\rdecoding: 100%" in work(monkeypatch, 3, Terminal())


@pytest.mark.parametrize("stderr", [io.StringIO(), Terminal()])
def test_only_the_first_process_of_a_machine_shows_anything(monkeypatch, stderr):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert work(monkeypatch, 7, stderr) == ""


def test_a_closed_terminal_is_no_error(monkeypatch):
    work(monkeypatch, 3, Closed())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(50, "50 s"), (720, "12 min"), (7800, "2 h 10 min"), (86_400, "24 h 0 min"), (37 * 86_400, "37 days")],
)
def test_a_duration_reads_as_words(seconds, words):
    assert in_words(seconds) == words
