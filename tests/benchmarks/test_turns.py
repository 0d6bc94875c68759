"""Contenders take turns in separate processes, do nothing in between, and end with the benchmark."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.turns import Turns, take_turns
from mae_hf.errors import RunError


def note(file: Path, **values: object) -> None:
    with file.open("a") as opened:
        opened.write(json.dumps(values) + "\n")


def notes(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def sleep(turns: Turns, file: Path, name: str, seconds: float) -> None:
    """A contender whose steps take this long."""
    note(file, name=name, pid=os.getpid())
    turns.begin()
    while True:
        started = time.monotonic()
        time.sleep(seconds)
        note(file, name=name, start=started, end=time.monotonic())
        turns.done(10)


def sleeping(file: Path, name: str, seconds: float) -> partial:
    return partial(sleep, file=file, name=name, seconds=seconds)


def steps(file: Path) -> list[dict]:
    return [line for line in notes(file) if "start" in line]


def is_gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process ends within this time; one that waits to be reaped has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_contenders_take_turns_and_the_first_round_does_not_count(tmp_path: Path):
    file = tmp_path / "steps"
    works = {name: sleeping(file, name, seconds) for name, seconds in (("long", 0.2), ("short", 0.02))}
    results = take_turns(works, rounds=2, seconds=0.3)
    turns = [list(turn) for _, turn in groupby(steps(file), key=lambda step: step["name"])]
    assert [turn[0]["name"] for turn in turns] == ["long", "short"] * 3
    for before, after in pairwise(turns):
        assert before[-1]["end"] <= after[0]["start"]
    for place, name in enumerate(works):
        counted = turns[2 + place :: 2]
        assert [turn.amount for turn in results[name].turns] == [10 * len(turn) for turn in counted]
        for turn, its_steps in zip(results[name].turns, counted, strict=True):
            assert 0.3 <= turn.seconds < 2
            assert turn.seconds == pytest.approx(its_steps[-1]["end"] - its_steps[0]["start"], abs=0.1)
            assert turn.threads >= 1


def test_a_turn_has_two_steps_however_long_they_take(tmp_path: Path):
    works = {"slow": sleeping(tmp_path / "steps", "slow", 0.2)}
    (turn,) = take_turns(works, rounds=1, seconds=0.01)["slow"].turns
    assert turn.amount == 20
    assert turn.seconds >= 0.4


def load_ahead(turns: Turns, file: Path) -> None:
    """A contender with a loader process that never rests."""

    def load() -> None:
        while True:
            note(file, pid=os.getpid(), start=time.monotonic())
            time.sleep(0.01)

    note(file, pid=os.getpid())
    multiprocessing.get_context("fork").Process(target=load, daemon=True).start()
    turns.begin()
    while True:
        time.sleep(0.01)
        turns.done(1)


def test_a_waiting_contender_loads_no_images(tmp_path: Path):
    ahead, other = tmp_path / "ahead", tmp_path / "other"
    works = {"ahead": partial(load_ahead, file=ahead), "other": sleeping(other, "other", 0.1)}
    take_turns(works, rounds=1, seconds=0.4)
    loads = [line["start"] for line in steps(ahead)]
    assert len(loads) > 20
    for _, turn in groupby(enumerate(steps(other)), key=lambda pair: pair[0] // 4):
        its_steps = [step for _, step in turn]
        assert not [load for load in loads if its_steps[0]["start"] + 0.05 < load < its_steps[-1]["end"]]


def hold_in_a_loader(turns: Turns) -> None:
    """A contender whose loader process holds 100 MiB."""

    def load() -> None:
        kept = torch.ones(100 << 18)
        time.sleep(60 + float(kept[0]))

    multiprocessing.get_context("fork").Process(target=load, daemon=True).start()
    time.sleep(1)
    work_on(turns)


def work_on(turns: Turns) -> None:
    turns.begin()
    while True:
        time.sleep(0.1)
        turns.done(1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_that_loaders_do_not_share_counts():
    alone, loading = take_turns({"alone": work_on, "loading": hold_in_a_loader}, rounds=1, seconds=0.1).values()
    assert 90 < loading.own_mib - alone.own_mib < 200


def vanish(turns: Turns, file: Path) -> None:
    """A contender that is killed while it waits for its turn."""
    note(file, pid=os.getpid())
    turns.begin()


def kill_the_other(turns: Turns, file: Path) -> None:
    turns.begin()
    os.kill(notes(file)[0]["pid"], signal.SIGKILL)
    time.sleep(0.2)
    turns.done(1)
    turns.done(1)


def test_a_contender_that_is_killed_while_it_waits_is_named(tmp_path: Path):
    works = {"killer": partial(kill_the_other, file=tmp_path / "pid"), "victim": partial(vanish, file=tmp_path / "pid")}
    with pytest.raises(RunError, match=r"^victim ended with exit code -9 \(was there enough memory\?\)$"):
        take_turns(works, rounds=1, seconds=0.05)


def fail(turns: Turns) -> None:
    """A contender that fails in its first turn."""
    turns.begin()
    raise ValueError("the seventh image is upside down\nand more lines")


def leave(turns: Turns) -> None:
    """A contender that ends without a word."""
    turns.begin()
    os._exit(3)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (fail, r"^broken failed: ValueError: the seventh image is upside down \(test_turns.py, line \d+\)$"),
        (leave, "^broken ended with exit code 3$"),
    ],
)
def test_a_contender_that_fails_is_named_in_one_line_and_all_end(tmp_path: Path, work, message):
    file = tmp_path / "steps"
    works = {"well": sleeping(file, "well", 0.01), "broken": work}
    with pytest.raises(RunError, match=message):
        take_turns(works, rounds=1, seconds=0.05)
    assert is_gone(notes(file)[0]["pid"])


def interrupt(turns: Turns, file: Path, pid: int) -> None:
    """A contender in whose turn somebody presses Ctrl-C."""
    note(file, pid=os.getpid())
    turns.begin()
    os.kill(pid, signal.SIGINT)
    time.sleep(60)


def test_all_end_at_ctrl_c(tmp_path: Path):
    file = tmp_path / "pids"
    works = {"interrupted": partial(interrupt, file=file, pid=os.getpid())}
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell ignores it for what runs in its background
    try:
        with pytest.raises(KeyboardInterrupt):
            take_turns(works, rounds=1, seconds=0.05)
    finally:
        signal.signal(signal.SIGINT, before)
    assert is_gone(notes(file)[0]["pid"])


@pytest.mark.slow
def test_all_end_when_the_benchmark_is_killed(tmp_path: Path):
    """One is in its turn, one waits, with a loader that is stopped and hears of nothing but a signal."""
    ahead, other = tmp_path / "ahead", tmp_path / "other"
    code = f"""if True:
        import sys
        from functools import partial
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from benchmarks.turns import take_turns
        from test_turns import load_ahead, sleeping
        ahead = partial(load_ahead, file=Path({str(ahead)!r}))
        take_turns({{"ahead": ahead, "other": sleeping(Path({str(other)!r}), "other", 0.1)}}, 1000, 0.3)
    """
    process = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 120
    while time.monotonic() < end and not (other.exists() and steps(other)):
        time.sleep(0.02)
    process.kill()
    process.wait()
    pids = {line["pid"] for file in (ahead, other) for line in notes(file) if "pid" in line}
    assert len(pids) == 3
    assert all(is_gone(pid) for pid in pids)


def hold(turns: Turns, mib: int) -> None:
    """A contender that holds so much memory, and another half of it for a moment in each step."""
    kept = torch.ones(mib << 18)
    turns.begin()
    while True:
        more = torch.ones(mib << 17)
        time.sleep(0.2)
        del more
        turns.done(float(kept[0]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_that_of_each_contender_at_its_peak():
    little, much = take_turns({str(mib): partial(hold, mib=mib) for mib in (1, 200)}, rounds=1, seconds=0.1).values()
    assert much.own_mib - little.own_mib == pytest.approx(1.5 * 199, rel=0.1)
    assert little.mapped_mib > 1
