"""SIGTERM, SIGHUP and Ctrl-C, sent to real processes."""

import contextlib
import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mae_hf.training import signals
from mae_hf.training.signals import StopSignals


@contextlib.contextmanager
def stop_signals(is_main_process: bool) -> Iterator[StopSignals]:
    stop = StopSignals(is_main_process)
    with signals.handling(stop.note):
        yield stop


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noted_and_confirmed_once_and_the_handlers_are_restored(number, capfd):
    before = signal.getsignal(number)
    with stop_signals(is_main_process=True) as stop:
        assert stop.received == 0
        send(number)
        assert stop.received == number
    assert signal.getsignal(number) is before
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"\n{name}: saving, then stopping; press Ctrl-C to stop without saving\n"


def test_training_in_another_thread_leaves_the_handlers_alone():
    def hold() -> bool:
        with stop_signals(is_main_process=True):
            return signal.getsignal(signal.SIGTERM) is before

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor() as pool:
        assert pool.submit(hold).result()


def test_other_ranks_print_nothing(capfd):
    with stop_signals(is_main_process=False):
        send(signal.SIGTERM)
    assert capfd.readouterr().err == ""


def test_a_second_ctrl_c_stops_at_once_but_a_copy_from_the_launcher_does_not(monkeypatch):
    with stop_signals(is_main_process=False) as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)  # at the same moment: the terminal's and the launcher's
        monkeypatch.setattr(signals, "_SECONDS_BETWEEN_TWO", 0.01)
        time.sleep(0.02)
        send(signal.SIGTERM)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_after_a_sigterm_ctrl_c_still_stops_at_once_and_further_sigterms_do_nothing(monkeypatch):
    monkeypatch.setattr(signals, "_SECONDS_BETWEEN_TWO", 0.0)
    with stop_signals(is_main_process=False) as stop:
        for _ in range(3):
            send(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_an_ignored_signal_stays_ignored():
    """As a shell has it for what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals(is_main_process=False) as stop:
            send(signal.SIGINT)
            assert stop.received == 0
    finally:
        signal.signal(signal.SIGINT, before)


TRAINS = """
import sys, time
from pathlib import Path
import small_training
from mae_hf.commands import exits

def change(step, loss):
    if step == 9:
        print("step 9", flush=True)
        time.sleep(60)  # meanwhile the terminal is closed
    return loss

exits.run(lambda: small_training.run(Path(sys.argv[1]), change=change))
"""


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves_and_ends_with_129(tmp_path):
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        os.execv(sys.executable, [sys.executable, "-c", TRAINS, str(tmp_path / "run")])
    output = b""
    while b"step 9" not in output:
        output += os.read(terminal, 1000)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert (tmp_path / "run" / "checkpoints" / "step-00000009" / "digests.json").exists()
