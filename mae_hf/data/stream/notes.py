"""Notes about streamed images that were bad or duplicates, on disk before any checkpoint that has seen them.

A note is a JSON object: `row` of the stream and `image`, its name; `kind` is `bad`, with the `cause`, or `exact`, with
the digest and the test or validation images that it duplicates. Each process of a run has a file.
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_hf.errors import warn
from mae_hf.files import moved_away

FILE = "streamed-{}.jsonl"  # in the run folder


class StreamNotes:
    """The notes of a process in the run folder: at most one per image, however often and by many threads it is read."""

    def __init__(self, folder: Path, process_index: int) -> None:
        self._file = folder / FILE.format(process_index)
        self._noted = {int(note["row"]) for note in _read(self._file)}
        self._warned = False
        self._lock = threading.Lock()

    def add(self, row: int, image: str, what: Mapping[str, Any]) -> None:
        """Write a note about an image unless there is one, and warn of the first bad image.

        RunError if the run folder was moved away.
        """
        with self._lock:
            if row in self._noted:
                return
            if what["kind"] == "bad" and not self._warned:
                self._warned = True
                warn(
                    f"{image} cannot be decoded ({what['cause']}): another image replaces it; {self._file} lists all "
                    "such images"
                )
            self._noted.add(row)
            try:  # the folder exists, or was moved away and must not be created again
                with self._file.open("a") as file:  # a newline first, because the last line may have been cut short
                    file.write(f"\n{json.dumps({'row': row, 'image': image, **what})}")
            except FileNotFoundError:
                raise moved_away(self._file.parent) from None


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """The notes of all processes of a run, one per image, in the order of the stream."""
    notes = {note["row"]: note for file in sorted(folder.glob(FILE.format("*"))) for note in _read(file)}
    return [notes[row] for row in sorted(notes)]


def describe_notes(notes: Sequence[Mapping[str, Any]]) -> str:
    """Say in a line how many images could not be decoded."""
    num = sum(note["kind"] == "bad" for note in notes)
    return f"bad images      {num:,} could not be decoded and were replaced" if num else "bad images      none"


def _read(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):  # the run was killed while it wrote the line
            yield json.loads(line)
