"""Allow only one run at a time in a run folder."""

import contextlib
import errno
import os
import platform
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mae_hf.errors import require

LOCK = ".lock"


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunLock:
    """Keeps other runs out of a run folder until it is released or the process ends, even by a kill.

    Every process must create the lock, which also creates the folder.

    The main process locks the file `.lock` with `flock`, which also works between the hosts of an NFS share. It writes
    its process and host into the file. The file by itself locks nothing.

    Raises:
        ConfigError: another process holds the lock (the message names it), or the folder cannot be written.
    """

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self._path = folder / LOCK
        self._file: IO[str] | None = None
        problems = broadcast_object_list([self._take() if accelerator.is_main_process else ""])
        require(not problems[0], str(problems[0]))

    def release(self) -> None:
        """Release the lock and remove the file."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _take(self) -> str:
        """Lock the file. Return the reason if that fails, otherwise an empty text."""
        try:
            import fcntl
        except ImportError:
            return ""  # Windows has no flock
        file: IO[str] | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                file = self._path.open("a+")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                        self._file = file
                        break
                file.close()  # its last holder released it meanwhile, and removed the file that is locked now
        except BlockingIOError:
            assert file is not None
            with file:
                file.seek(0)
                holder = file.read().strip() or "another process"
            return f"{self._path.parent} is in use by {holder}: wait until it ends, or choose another --output_dir"
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return f"cannot write to {self._path.parent} ({error.strerror}): choose another --output_dir"
            warnings.warn(
                f"cannot lock {self._path.parent} ({error.strerror}): make sure that no other run uses it",
                stacklevel=2,
            )
            return ""
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}, since {now()}\n")
        self._file.flush()
        return ""
