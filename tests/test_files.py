"""Files and folders are whole under their name, or missing."""

from pathlib import Path

import numpy as np
import pytest

from mae_hf.errors import RunError
from mae_hf.files import write_file, write_folder, write_npz, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_filled_beside_its_path_and_then_renamed(tmp_path):
    def write(folder: Path) -> None:
        assert not (tmp_path / "model").exists()
        (folder / "config.json").write_text("new")

    write_folder(tmp_path / "model", write)
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "new"


def test_a_writer_that_fails_leaves_the_old_folder_whole(tmp_path):
    write_folder(tmp_path / "model", lambda folder: (folder / "config.json").write_text("old"))

    def write(folder: Path) -> None:
        (folder / "config.json").write_text("new")
        raise OSError("disk full")

    with pytest.raises(RunError, match=r"cannot write \S*model \(disk full\)"):
        write_folder(tmp_path / "model", write)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["config.json"]
    assert (tmp_path / "model" / "config.json").read_text() == "old"

    write_folder(tmp_path / "model", lambda folder: (folder / "README.md").write_text("later"))
    assert names(tmp_path / "model") == ["README.md"], "nothing of the old folder, nor of the failed one"
    assert names(tmp_path) == ["model"]


def test_a_text_is_replaced_whole(tmp_path):
    path = tmp_path / "run.json"
    write_text(path, "old")
    write_text(path, "new")
    assert (path.read_text(), names(tmp_path)) == ("new", ["run.json"])
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half\ud800")
    assert (path.read_text(), names(tmp_path)) == ("new", ["run.json"]), "the space of the failed file is freed"


def test_two_processes_may_write_a_shared_file_at_the_same_time(tmp_path):
    path = tmp_path / "cache.json"

    def write(file: Path) -> None:
        file.write_text("slow")
        write_file(path, lambda other: other.write_text("fast"), shared=True)
        assert path.read_text() == "fast"

    write_file(path, write, shared=True)
    assert (path.read_text(), names(tmp_path)) == ("slow", ["cache.json"])


def test_arrays_keep_names_types_and_values(tmp_path):
    features, key = np.arange(6, dtype=np.float16).reshape(2, 3), np.array("key")
    write_npz(tmp_path / "features.npz", features=features, key=key)
    assert names(tmp_path) == ["features.npz"]
    with np.load(tmp_path / "features.npz") as found:
        assert found.files == ["features", "key"]
        assert str(found["key"]) == "key"
        assert found["features"].dtype == np.float16
        assert (found["features"] == features).all()
