"""Files and folders that are whole under their name or not there, whatever a kill or a power cut leaves.

They are written beside, `.NAME.partial`, flushed to the disk and renamed. What a killed run left beside is written over
by the next one.
"""

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

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


def from_json(kind: Any, value: Any, name: str = "the file") -> Any:
    """Return untrusted JSON as the type that a program expects, with every value checked.

    Args:
        kind: a dataclass of such types, `tuple[kind, ...]`, `Literal`, `kind | None`, `str`, `bool`, `float` (finite)
            or `int` (0 to 2^63 - 1).
        value: what `json.loads` returned; unknown keys are ignored.
        name: of the value, for messages.

    Raises:
        ValueError: a value is missing or has another type; one line.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is not a JSON object")
        types, values = get_type_hints(kind), {}
        for field in dataclasses.fields(kind):
            if field.name in value:
                values[field.name] = from_json(types[field.name], value[field.name], field.name)
            elif field.default is dataclasses.MISSING:
                raise ValueError(f"{field.name} is missing")
        return kind(**values)  # type: ignore[operator]  # mypy does not know that a type is meant
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(from_json(get_args(kind)[0], item, name) for item in value)
    if get_origin(kind) is UnionType:
        return None if value is None else from_json(get_args(kind)[0], value, name)
    fits = {
        Literal: lambda: isinstance(value, str) and value in get_args(kind),
        str: lambda: isinstance(value, str),
        bool: lambda: isinstance(value, bool),
        int: lambda: type(value) is int and 0 <= value < 2**63,
        float: lambda: type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value),
    }
    if not fits.get(get_origin(kind) or kind, lambda: False)():
        raise ValueError(f"{name} is {str(value)[:40]!r}, not of type {getattr(kind, '__name__', kind)}")
    return value
