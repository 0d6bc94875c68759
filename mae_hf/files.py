"""Files and folders that are whole under their name or not there, whatever a kill or a power cut leaves.

They are written beside, `.NAME.partial`, flushed to the disk and renamed. What a killed run left beside is written over
by the next one.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from mae_hf.errors import RunError

PARTIAL = ".*.partial"  # what is being written, or was when a run was killed


def sync(path: Path) -> None:
    """Returns once a file, or a folder with all that is in it, is on the disk and no power cut can take it away."""
    for entry in (*path.rglob("*"), path):
        with contextlib.suppress(FileNotFoundError):  # a tracker's file may come and go
            _fsync(entry)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Fills a folder beside `path` with `write(folder)` and renames it, so that `path` is whole or not there.

    Raises:
        RunError: the disk is full or read-only; `path` is as it was.
    """
    beside = beside_of(path)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        write(beside)
        sync(beside)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        cause = " ".join(str(error).split())
        raise RunError(f"{path} cannot be written ({cause}): make room, the same command goes on") from error
    shutil.rmtree(path, ignore_errors=True)
    rename(beside, path)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside `path` with `write(file)` and renames it; where that fails, `path` is as it was."""
    beside = beside_of(path)
    try:
        write(beside)
        sync(beside)
        rename(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as `write_file` does."""
    write_file(path, lambda file: file.write_text(text))


def beside_of(path: Path) -> Path:
    """Where a file or folder is until it is whole."""
    return path.with_name(PARTIAL.replace("*", path.name))


def rename(old: Path, new: Path) -> None:
    """Renames, and returns once the new name is on the disk."""
    os.replace(old, new)
    _fsync(new.parent)


def _fsync(path: Path) -> None:
    if os.name == "nt":
        return  # Windows opens no folder, and no file for reading, to this end
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
