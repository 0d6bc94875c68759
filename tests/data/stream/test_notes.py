"""Each image has one note, from any process and after any kill."""

import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from mae_hf.data.stream.notes import StreamNotes, describe_notes, read_notes
from mae_hf.errors import RunError

COPY = {"kind": "equal", "digest": "aa", "against": [["digits", 3]]}


def test_threads_that_read_the_same_image_write_one_note(tmp_path):
    notes = StreamNotes(tmp_path, 0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: notes.add(number % 10, f"image {number % 10}", COPY), range(400)))
    rows = [json.loads(line)["row"] for line in (tmp_path / "streamed-0.jsonl").read_text().splitlines() if line]
    assert sorted(rows) == list(range(10))
    assert read_notes(tmp_path)[4] == {"row": 4, "image": "image 4", **COPY}


def test_only_a_line_that_was_cut_short_is_written_again(tmp_path):
    (tmp_path / "streamed-0.jsonl").write_text('\n{"row": 7, "kind": "bad"}\n{"row": 40, "ki')
    notes = StreamNotes(tmp_path, 0)
    for row in (7, 40, 40):
        notes.add(row, "an image", COPY)
    assert [(note["row"], note["kind"]) for note in read_notes(tmp_path)] == [(7, "bad"), (40, "equal")]
    assert (tmp_path / "streamed-0.jsonl").read_text().count("digest") == 1


def test_an_image_of_two_processes_counts_once(tmp_path):
    for process, rows in enumerate([(5, 1), (5, 9)]):
        for row in rows:
            StreamNotes(tmp_path, process).add(row, "an image", COPY)
    assert [note["row"] for note in read_notes(tmp_path)] == [1, 5, 9]


def test_the_first_bad_image_gives_a_warning_and_all_are_counted(tmp_path):
    notes = StreamNotes(tmp_path, 0)
    bad = {"kind": "bad", "cause": "torn"}
    with pytest.warns(UserWarning, match=r"image 1 of a\.tar cannot be decoded \(torn\).*streamed-0"):
        notes.add(1, "image 1 of a.tar", bad)
    with warnings.catch_warnings(action="error"):
        for row in (2, 3):
            notes.add(row, f"image {row} of a.tar", bad)
    assert describe_notes(read_notes(tmp_path)) == "bad images      3 could not be decoded and were replaced"
    assert describe_notes([]) == "bad images      none"


def test_a_run_folder_that_was_moved_is_not_created_again(tmp_path):
    with pytest.raises(RunError, match="run"):
        StreamNotes(tmp_path / "run", 0).add(0, "an image", COPY)
    assert not (tmp_path / "run").exists()
