"""How a script ends: its exit code, and one line that says why, by the process that knows it."""

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mae_hf.errors import ConfigError, RunError, RunStopped

# A disk that is full, over its quota or read-only, a folder that is not ours, and an output that nobody reads any more.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EPIPE)
# `torchrun` looks every 0.1 s whether a process has ended, and ends the others
_SECONDS_APART = 3.0


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script's `main` and exits.

    0 done, 1 the run failed, 2 the command or the config is wrong, 143 and 130 stopped by SIGTERM and Ctrl-C.
    """
    # Python puts the script's folder first on its path, where scripts/evaluate.py would hide the library evaluate
    folder = Path(sys.argv[0]).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    try:
        main()
    except RunStopped as error:
        # what a shell makes of a process that a signal has ended
        _end(f"stopped: {error}", 128 + error.signal_number, of_all=True)
    except KeyboardInterrupt:
        _end("stopped: by Ctrl-C, at once", 128 + signal.SIGINT, of_all=True)
    except ConfigError as error:
        # mostly wrong for all processes of a machine: the launcher ends the others before it is their turn to say so
        time.sleep(_SECONDS_APART * _number("LOCAL_RANK"))
        _end(f"error: {error}", 2)
    except RunError as error:
        _end(f"error: {error}", 1)  # the others may know no more than that this one is gone
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _end(f"error: {error}: once that is mended, the same command goes on", 1)
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        if _number("LOCAL_RANK") == 0:  # one process of each machine: the others may be cut off
            print(
                f"error: process {_number('RANK')} has lost another one ({_first_line(error)}): the "
                "launcher names it and its exit code, under Root Cause, or the network between the machines is down; "
                "the same command on all machines goes on from the last checkpoint",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        if "TORCHELASTIC_RUN_ID" in os.environ:  # a launcher blames the first that ends, and this one is fast
            time.sleep(_SECONDS_APART)
        os._exit(1)  # a process group that is torn apart cannot be left in good order: its threads still wait
    sys.exit(0)


def _end(message: str, code: int, *, of_all: bool = False) -> NoReturn:
    """Exits, and says why; the first of several processes needs no name, and speaks alone of what ends all of them."""
    if not of_all or _number("RANK") == 0:
        print(f"process {_number('RANK')}: {message}" if _number("RANK") else message, file=sys.stderr)
    sys.exit(code)


def _number(name: str) -> int:
    """This process's RANK among all, or LOCAL_RANK on its machine."""
    return int(os.environ.get(name, "0"))


def _is_lost_process(error: RuntimeError) -> bool:
    """Whether a collective operation failed: torch's own errors of NCCL and the store, and what gloo raises."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return (
        "DistError" in kinds
        or re.search(r"\bgloo\b|ProcessGroup|Connection (closed|reset) by peer", str(error)) is not None
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
