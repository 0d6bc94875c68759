"""What became of images that were streamed, on disk before any checkpoint that has seen it.

A note is a dict as JSON has it: `row` of the stream and `image`, where it is; `kind` is `bad`, with the `cause`, or
`exact`, with the digest and the test or validation images that it duplicates. Each process of a run has a file.
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
    """The notes of a process, one for each image at the most, however often it comes and by whichever thread.

    Args:
        folder: the run folder.
        process_index: this process, from 0.
    """

    def __init__(self, folder: Path, process_index: int) -> None:
        self._file = folder / FILE.format(process_index)
        self._noted = {int(note["row"]) for note in _read(self._file)}
        self._warned = False
        self._lock = threading.Lock()

    def add(self, row: int, image: str, what: Mapping[str, Any]) -> None:
        """Writes down what happened to an image, unless that has been done, and warns of the first bad one.

        Raises:
            RunError: the run folder was moved away.
        """
        with self._lock:
            if row in self._noted:
                return
            if what["kind"] == "bad" and not self._warned:
                self._warned = True
                warn(
                    f"{image} cannot be decoded ({what['cause']}): another image takes its place, and that of all "
                    f"others that {self._file} names"
                )
            self._noted.add(row)
            try:  # the folder is there, or was moved away and is not to be made anew
                with self._file.open("a") as file:  # a line that was cut short ends before the next one begins
                    file.write(f"\n{json.dumps({'row': row, 'image': image, **what})}")
            except FileNotFoundError:
                raise moved_away(self._file.parent) from None


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """What the processes of a run have written down, once for each image, in the order of the stream."""
    notes = {note["row"]: note for file in sorted(folder.glob(FILE.format("*"))) for note in _read(file)}
    return [notes[row] for row in sorted(notes)]


def describe_notes(notes: Sequence[Mapping[str, Any]]) -> str:
    """How many images could not be decoded, in a line."""
    num = sum(note["kind"] == "bad" for note in notes)
    return f"bad images      {num:,} could not be decoded: others took their places" if num else "bad images      none"


def _read(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):  # a line that a run was writing when it was killed
            yield json.loads(line)
