"""Files and folders that are whole under their name or missing, even after a kill or a power cut.

Each is written beside its place as `.NAME.partial`, flushed to the disk, and renamed. The next run overwrites what a
killed run left there.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from safetensors import SafetensorError

from mae_hf.errors import ConfigError, RunError

PARTIAL = ".*.partial"  # names of files that are being written
SHARED_PARTIAL = f".*.{'[0-9a-f]' * 16}.partial"  # of files that several processes may write
_RESTORE = "restore it, or repeat the command that wrote it"


def sync(path: Path) -> None:
    """Return once a file, or a folder with all its files, is on the disk, safe from a power cut."""
    for entry in (*path.rglob("*"), path):
        with contextlib.suppress(FileNotFoundError):  # trackers may remove theirs meanwhile
            _fsync(entry)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Fill a folder beside `path` with `write(folder)` and rename it. If that fails, `path` is unchanged: RunError."""
    beside = beside_of(path)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        write(beside)
        sync(beside)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        cause = " ".join(str(error).split())
        raise RunError(f"cannot write {path} ({cause}): make room, then run the same command again") from error
    shutil.rmtree(path, ignore_errors=True)
    rename(beside, path)


def write_file(path: Path, write: Callable[[Path], object], *, shared: bool = False) -> None:
    """Write a file beside `path` with `write(file)` and rename it. If that fails, `path` is unchanged.

    Several processes may write a `shared` file at the same time: each writes `.NAME.RANDOM.partial`. After a kill
    nothing overwrites it; in the cache, the next command removes it (`mae_hf/data/cache.py`).
    """
    beside = beside_of(path.with_name(f"{path.name}.{secrets.token_hex(8)}") if shared else path)
    try:
        write(beside)
        sync(beside)
        rename(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file like `write_file`."""
    write_file(path, lambda file: file.write_text(text))


def write_json(path: Path, content: Any, *, shared: bool = False) -> None:
    """Write a JSON file like `write_file`."""
    write_file(path, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"), shared=shared)


def write_npz(path: Path, **arrays: Any) -> None:
    """Write NumPy arrays into a compressed .npz file like `write_file`."""

    def write(file: Path) -> None:
        with file.open("wb") as opened:  # given a path, NumPy would add `.npz` to it
            np.savez_compressed(opened, **arrays)

    write_file(path, write)


def beside_of(path: Path) -> Path:
    """Return the path at which a file or folder is written."""
    return path.with_name(PARTIAL.replace("*", path.name))


def rename(old: Path, new: Path) -> None:
    """Rename, and return once the new name is on the disk."""
    os.replace(old, new)
    _fsync(new.parent)


def moved_away(folder: Path) -> RunError:
    """Return the error of a run whose folder has gone. No part of the run creates the folder again."""
    fix = "if it was moved, the same command with its new --output_dir resumes it"
    return RunError(f"{folder} was moved or removed during the run: {fix}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, kind: Any) -> Any:
    """Return the content of an untrusted JSON file as the type that a program expects, with every value checked.

    `kind` is a dataclass of such types (unknown keys are ignored), `tuple[kind, ...]`, `dict[str, kind]`, `Literal`,
    `kind | None`, `str`, `bool`, `float` (finite), `int` (0 to 2^63 - 1) or `object` (anything). ConfigError names the
    file if it is missing or does not hold a `kind`.
    """
    try:
        if not path.is_file():  # a pipe would block
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): {_RESTORE}") from None
    return parse_json(content, kind, str(path))


def parse_json(content: bytes, kind: Any, where: str) -> Any:
    """Return untrusted JSON like `read_json`; `where` names it in the error."""
    try:
        return _checked(json.loads(content), kind, "the file")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} cannot be read ({error}): {_RESTORE}") from None


def _checked(value: Any, kind: Any, name: str) -> Any:
    """Return what `json.loads` returned as a `kind`; raise ValueError about the value of this name if it is none."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is not a JSON object")
        types, values = get_type_hints(kind), {}
        for field in dataclasses.fields(kind):
            if field.name in value:
                values[field.name] = _checked(value[field.name], types[field.name], field.name)
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise ValueError(f"{field.name} is missing")
        return kind(**values)  # type: ignore[operator]  # mypy does not know that a type is meant
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is UnionType:
        return None if value is None else _checked(value, inner[0], name)
    if origin is tuple and isinstance(value, list):
        return tuple(_checked(item, inner[0], name) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _checked(item, inner[1], key) for key, item in value.items()}
    is_number = type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)
    fits = {
        object: True,
        str: isinstance(value, str),
        bool: isinstance(value, bool),
        float: is_number,
        int: is_number and isinstance(value, int) and value >= 0,
        Literal: isinstance(value, str) and value in inner,
    }
    if not fits.get(origin, False):
        raise ValueError(f"{name} is {str(value)[:40]!r}, not of type {getattr(kind, '__name__', kind)}")
    return value
