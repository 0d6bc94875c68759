"""The Python of the documentation: docs/python.md, and the notebook, whose cells run one after the other."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forks import ROOT

NOTEBOOK = ROOT / "docs" / "own_photos.ipynb"
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


def python(folder: Path, *words: object) -> str:
    """What `python WORDS` prints that runs in an empty folder."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shown(text: str) -> set[str]:
    """The results in a text, without numbers, and without the answer, whose words depend on them."""
    return {re.sub(r"[\d.]+", "", line) for line in re.findall("^<.*>$", text, re.M) if "answer" not in line}


def outputs(notebook: Path) -> list[dict[str, Any]]:
    """The outputs of all cells that run."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


@pytest.mark.slow
def test_the_page_on_python_works_and_shows_its_output(tmp_path: Path):
    printed = python(tmp_path, "-c", "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)))
    assert shown(PAGE) and shown(PAGE) <= shown(printed), printed
    assert (tmp_path / "runs/compare/mine/index.html").is_file()


@pytest.mark.slow
def test_the_notebook_works_and_shows_its_outputs(tmp_path: Path):
    python(tmp_path, ROOT / "tests" / "notebook.py", NOTEBOOK, "own_photos.ipynb")
    assert (tmp_path / "runs/compare/photos/index.html").is_file()
    kinds = [
        [output.get("data", {}).keys() for output in outputs(file)] for file in (NOTEBOOK, tmp_path / NOTEBOOK.name)
    ]
    assert kinds[0] == kinds[1]


def test_the_notebook_is_stored_with_its_pictures():
    pictures = [line for output in outputs(NOTEBOOK) for line in output.get("data", {}).get("text/html", [])]
    assert sum("data:image/png" in line for line in pictures) >= 3
    assert NOTEBOOK.stat().st_size < 2**20
