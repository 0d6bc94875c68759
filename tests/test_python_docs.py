"""The Python of the documentation: docs/python.md, and the notebook, whose cells run one after the other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from forks import ROOT, succeed

NOTEBOOK = ROOT / "docs" / "own_photos.ipynb"
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


def shortened(code: str) -> str:
    """The code with a small network, two epochs for each training and 100 test images: results of the same kinds."""
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    quoted = "".join(rf"\g<1>model.{name}\g<2>: {value}, " for name, value in shape.items())
    shorter, number = re.subn(r'(\\?")train.epochs(\\?"): \d+', rf"{quoted}\g<1>train.epochs\g<2>: 2", code)
    assert number
    fewer = shorter.replace("1300:]", "1300:1400]").replace(
        "digits.images, digits.target", "digits.images[:1400], digits.target[:1400]"
    )
    assert fewer != shorter
    return fewer


def shown(text: str) -> set[str]:
    """The results in a text, without numbers, and without the answer, whose words depend on them."""
    return {re.sub(r"[\d.]+", "", line) for line in re.findall("^<.*>$", text, re.M) if "answer" not in line}


def outputs(notebook: Path) -> list[dict[str, Any]]:
    """The outputs of all cells that run."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


@pytest.mark.slow
def test_the_page_on_python_works_and_shows_its_output(tmp_path: Path):
    code = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M))
    (tmp_path / "page.py").write_text(shortened(code), encoding="utf-8")
    printed = succeed(tmp_path / "page.py", folder=tmp_path)
    assert shown(PAGE) and shown(PAGE) <= shown(printed), printed
    assert (tmp_path / "runs/compare/mine/index.html").is_file()


@pytest.mark.slow
def test_the_notebook_works_and_shows_its_outputs(tmp_path: Path):
    (tmp_path / "short.ipynb").write_text(shortened(NOTEBOOK.read_text(encoding="utf-8")), encoding="utf-8")
    succeed(ROOT / "tests" / "notebook.py", "short.ipynb", NOTEBOOK.name, folder=tmp_path)
    assert (tmp_path / "runs/compare/photos/index.html").is_file()
    kinds = [
        [output.get("data", {}).keys() for output in outputs(file)] for file in (NOTEBOOK, tmp_path / NOTEBOOK.name)
    ]
    assert kinds[0] == kinds[1]


def test_the_notebook_is_stored_with_its_pictures():
    pictures = [line for output in outputs(NOTEBOOK) for line in output.get("data", {}).get("text/html", [])]
    assert sum("data:image/png" in line for line in pictures) >= 3
    assert NOTEBOOK.stat().st_size < 2**20
