"""Every command in the README is one that exists: its script parses it; test_scripts runs the offline ones."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.config import BenchmarkConfig
from mae_hf.config import parse
from mae_hf.config.commands import (
    DemoConfig,
    EvaluateConfig,
    FewLabelsConfig,
    FinetuneConfig,
    PrepareConfig,
    PretrainConfig,
    ReconstructConfig,
)
from mae_hf.errors import ConfigError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = {
    "scripts/pretrain.py": PretrainConfig,
    "scripts/finetune.py": FinetuneConfig,
    "scripts/evaluate.py": EvaluateConfig,
    "scripts/few_labels.py": FewLabelsConfig,
    "scripts/reconstruct.py": ReconstructConfig,
    "scripts/prepare_data.py": PrepareConfig,
    "scripts/demo.py": DemoConfig,
    "benchmarks.speed": BenchmarkConfig,
}
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line]


def test_the_readme_has_commands_for_every_script():
    named = {word for command in COMMANDS for word in shlex.split(command) if word.startswith("scripts/")}
    assert named == {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search(r"scripts/|benchmarks\.", command)])
def test_a_script_understands_its_command(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    launcher, words = _split(command)
    if launcher[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launch_command_parser().parse_args([*launcher[2:], *words])  # exits on an unknown option
    if words[0] == "scripts/compare.py":
        with pytest.raises(ConfigError, match="is not a folder"):  # it got as far as looking for the runs
            importlib.import_module("mae_hf.commands.compare").main(words[1:])
    elif "--print_config" in words:
        with pytest.raises(SystemExit, match="0"):
            parse.parse(CONFIGS[words[0]], words[1:], prog=words[0])
    else:
        parse.parse(CONFIGS[words[0]], words[1:], prog=words[0])


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_has_the_target(command: str):
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.M)


def test_the_quickstart_of_the_makefile_parses_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    lines = re.findall(r"^\t(accelerate launch scripts/.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert len(lines) == 4
    for line in lines:
        _, words = _split(line)
        parse.parse(CONFIGS[words[0]], words[1:], prog=words[0])


def test_files_and_pictures_that_the_readme_names_are_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    files = [name for row in re.findall(r"^\| (`.*?) \|", README, re.M) for name in re.findall(r"`([^`]+)`", row)]
    assert links
    assert files
    missing = [link for link in links if not (ROOT / link).exists()]
    folder = Path()
    for name in files:  # a bare name is in the folder of the name before it
        path = Path(name) if "/" in name else folder / name
        folder = path.parent if "/" in name else folder
        missing += [] if (ROOT / path).exists() else [str(path)]
    assert not missing


def _split(command: str) -> tuple[list[str], list[str]]:
    """The launcher's words, and those from the script's name on."""
    words = shlex.split(command)
    start = next(i for i, word in enumerate(words) if word.startswith(("scripts/", "benchmarks.")))
    return words[:start], words[start:]
