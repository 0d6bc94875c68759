"""How a command ends: its exit code, and one line that says why, printed by the rank that knows."""

import contextlib
import errno
import os
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mae_hf.errors import ConfigError, PlainWarning, RunError, RunStopped, lacks_memory, redact
from mae_hf.training.signals import TERMINATING, discard, handling, ignore_terminating, stop

_RANK, _LOCAL_RANK = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
# A full or read-only disk, an exceeded quota, missing rights, an output without a reader.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EPIPE)
# `torchrun` checks every 0.1 s whether a rank has ended, and then ends the others
_SECONDS_APART = 3.0
# A failed collective operation raises a DistError of torch, or an error with a message of gloo or torch's store.
_LOST_PROCESS = r"\bgloo\b|ProcessGroup|Connection (closed|reset) by peer"
_format_with_code = warnings.formatwarning


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit with its exit code.

    0 done, 1 the run failed, 2 the command or the config is wrong; 129, 130, 143 stopped by SIGHUP, Ctrl-C, SIGTERM.
    """
    # Python puts the script's folder first on its path, where scripts/evaluate.py would hide the library evaluate
    folder = Path(sys.argv[0]).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    command = _typed_command()  # now: the launcher may be gone when the run stops
    warnings.formatwarning = _format_warning
    try:
        with handling(stop, TERMINATING):
            main()
    except RunStopped as error:
        ignore_terminating()
        # the exit code that a shell reports for a process that a signal has ended
        _end(f"stopped: {error}; to resume, type: {command}", 128 + error.signal_number, of_all=True)
    except KeyboardInterrupt:
        _end("stopped: by Ctrl-C, at once", 128 + signal.SIGINT, of_all=True)
    except ConfigError as error:
        # usually wrong on all ranks of a machine: the launcher ends the other ranks before they repeat the message
        time.sleep(_SECONDS_APART * _LOCAL_RANK)
        _end(f"error: {error}", 2)
    except RunError as error:
        _end(f"error: {error}", 1)  # the other ranks may only know that they lost this one
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _end(f"error: {error}: once that is fixed, the same command resumes", 1)
    except (RuntimeError, MemoryError) as error:
        if lacks_memory(error):
            cause = " ".join(str(error).split())[:200] or "MemoryError"
            _end(f"error: no memory is left ({cause}): choose a smaller batch (--help), or end other programs", 1)
        kinds = [kind.__name__ for kind in type(error).__mro__]
        if "DistError" not in kinds and not re.search(_LOST_PROCESS, str(error)):
            raise
        if _LOCAL_RANK == 0:  # one rank of each machine: the others may be cut off
            cause = str(error).strip().partition("\n")[0] or type(error).__name__
            _say(
                f"error: rank {_RANK} lost contact with its peers ({cause}). Either the network between the "
                "machines is down, or a rank failed: the launcher reports it and its exit code under Root Cause. The "
                "same command on all machines resumes from the last checkpoint"
            )
        sys.stdout.flush()
        if "TORCHELASTIC_RUN_ID" in os.environ:  # let the failed rank end first: the launcher reports that one
            time.sleep(_SECONDS_APART)
        os._exit(1)  # a broken process group cannot be closed: its threads still wait
    sys.exit(0)


def _format_warning(message: Warning | str, category: type[Warning], *code: Any, **named: Any) -> str:
    is_plain = issubclass(category, PlainWarning)
    return f"warning: {message}\n" if is_plain else _format_with_code(message, category, *code, **named)


def _typed_command() -> str:
    """Return this process's command as the user typed it, with the launcher, quoted for a shell, without secrets."""
    words, prefix = sys.orig_argv, ""
    with contextlib.suppress(OSError, ValueError):  # no /proc here: macOS
        parent = Path("/proc", str(os.getppid()))
        launcher = (parent / "cmdline").read_bytes().decode().rstrip("\0").split("\0")
        is_launcher = any(re.search(r"(^|/)(accelerate|torchrun)$|^accelerate\.c|^torch\.d", word) for word in launcher)
        if is_launcher and launcher[len(launcher) - len(sys.argv) + 1 :] == sys.argv[1:]:
            words = launcher
            if b"ACCELERATE_USE_CPU=true" in (parent / "environ").read_bytes().split(b"\0"):
                prefix = "ACCELERATE_USE_CPU=true "
    # without the path of Python, and without Python where it runs a command that stands beside it
    folder = re.escape(str(Path(sys.executable).parent))
    without_path = rf"^(?:\S*/)?python[^/\s]* ({folder}/)?"
    command = re.sub(without_path, lambda found: "" if found[1] else "python ", shlex.join(words))
    return redact(prefix + command)


def _end(message: str, code: int, *, of_all: bool = False) -> NoReturn:
    """Print why and exit. Only the first rank prints a message that holds for all of them."""
    if not of_all or _RANK == 0:
        _say(f"process {_RANK}: {message}" if _RANK else message)
    sys.exit(code)


def _say(message: str) -> None:
    """Print to stderr. Discard the message if the terminal is closed: an error would change the exit code."""
    for stream, text in ((sys.stderr, message + "\n"), (sys.stdout, "")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            discard(stream.fileno())
