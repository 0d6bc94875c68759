"""README.md, CONTRIBUTING.md and docs: commands are parsed, links lead to files, recipes and experiments work."""

import itertools
import math
import re
import runpy
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from sklearn.datasets import make_classification
from sklearn.neighbors import NearestCentroid

from benchmarks.config import BenchmarkConfig
from mae_hf.__main__ import COMMANDS as CONFIG_CLASSES
from mae_hf.__main__ import join_lists
from mae_hf.config import parse
from mae_hf.data.augment import erase
from mae_hf.evaluation import probes
from mae_hf.models import mae

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
CONFIGS: dict[str, type] = CONFIG_CLASSES | {f"scripts/{name}.py": cls for name, cls in CONFIG_CLASSES.items()}
CONFIGS["benchmarks.speed"] = BenchmarkConfig


def _commands(page: str) -> list[str]:
    """The lines of a page's bash blocks; a backslash at the end of a line joins it with the next."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGES[page], re.S | re.M)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


COMMANDS = {f"{page}: {command}": command for page in PAGES for command in _commands(page)}


def test_readme_stays_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_the_reference_has_a_command_for_every_script():
    named = {word for command in _commands("docs/reference.md") for word in command.split() if "scripts/" in word}
    assert named == {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if set(command.split()) & CONFIGS.keys()])
def test_a_script_parses_its_command(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    launcher, words = _split(COMMANDS[name])
    if "launch" in launcher:
        options = launcher[launcher.index("launch") + 1 :]
        launch_command_parser().parse_args([*options, *words])  # exits on an unknown option
        files = [option for before, option in itertools.pairwise(options) if before == "--config_file"]
        assert all(Path(file).is_file() for file in files)
    if "--print_config" in words:
        with pytest.raises(SystemExit, match="0"):
            parse.read_command(CONFIGS[words[0]], words[1:], prog=words[0])
    else:
        parse.read_command(CONFIGS[words[0]], join_lists(words[1:]), prog=words[0])


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.startswith("make ")])
def test_make_has_the_target(name: str):
    target = COMMANDS[name].split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_the_quickstart_of_the_makefile_is_parsed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    lines = re.findall(r"^\t(accelerate launch .*scripts/.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert len(lines) == 4
    for line in lines:
        _, words = _split(line)
        parse.read_command(CONFIGS[words[0]], words[1:], prog=words[0])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str):
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]) if not link.startswith("http")]
    assert not [link for link in links if not ((ROOT / page).parent / link).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str):
    names = re.findall(r"`((?:mae_hf|benchmarks|scripts|tests|configs|docs)/[\w/.-]*)`", PAGES[page])
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_recipes_of_contributing_work():
    blocks = [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", PAGES["CONTRIBUTING.md"], re.S)]
    names: dict[str, Any] = {**vars(probes), **vars(mae), **vars(erase), "math": math, "Image": Image}
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    names |= {"IMAGES": images, "PIXELS": torch.from_numpy(images).permute(0, 3, 1, 2)}
    names |= {"DRAWS": erase.Draws(0, 0, np.arange(64), 0), "NearestCentroid": NearestCentroid, "blobs": blobs}
    for block in blocks:
        if "def " in block:
            exec(block, names)
    names["test_grayscale_equals_pillow"]()
    names["test_grayscale_does_not_depend_on_the_split_of_the_batch"]()
    names["test_the_centroid_probe_predicts_like_sklearns_nearest_centroid"]()
    gap = torch.linspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(names["log_cosh"](gap, torch.zeros_like(gap)), gap.cosh().log().mean())


def test_the_index_of_the_documentation_names_every_page():
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} - {"README.md"}
    assert not [page for page in pages if f"({page})" not in PAGES["docs/README.md"]]


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.py")), ids=lambda path: path.name)
def test_the_scripts_of_the_documentation_find_what_they_import(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    assert callable(runpy.run_path(str(path))["main"])


def blobs() -> list[probes.Labelled]:
    """Features of 3 classes in three thirds, as `tests/evaluation/test_probes.py` has them."""
    features, labels = make_classification(450, 12, n_informative=4, n_classes=3, class_sep=0.7, random_state=0)
    return [probes.Labelled(features[start : start + 150], labels[start : start + 150]) for start in (0, 150, 300)]


def _split(command: str) -> tuple[list[str], list[str]]:
    """The words of the launcher, and those from the name of the script or command on."""
    words = shlex.split(command, comments=True)
    start = next(i for i, word in enumerate(words) if word in CONFIGS)
    return words[:start], words[start:]
