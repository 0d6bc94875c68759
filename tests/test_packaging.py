"""What setup.cfg promises is what is pinned, tested and documented: versions, dependencies, CI's commands."""

import ast
import configparser
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mae_hf

ROOT = Path(__file__).parents[1]
# The name to import: the name to install, where they differ.
INSTALLED_AS = {"PIL": "pillow", "sklearn": "scikit-learn", "umap": "umap-learn", "yaml": "pyyaml"}


def test_the_version_is_the_same_everywhere():
    stated = _setup()["metadata"]["version"]
    assert stated in ("attr: mae_hf.__version__", mae_hf.__version__)
    try:
        installed = version("mae_hf")
    except PackageNotFoundError:
        pytest.skip("mae_hf runs from the checkout and is not installed here")
    assert installed == mae_hf.__version__, "setup.cfg was installed with another version: run make venv again"


def test_the_changelog_has_a_place_for_what_is_not_released():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", heading) for heading in headings[1:])


def test_the_lowest_versions_that_are_tested_are_those_that_are_promised():
    promised = {
        _canonical(r.name): r for r in _declared("install_requires", "track", "trackio", "wandb", "test") if r.specifier
    }
    tested = _pins("tests/lowest.txt")
    assert tested.keys() == promised.keys()
    del promised["torch"]  # tests/lowest.txt says why
    for name, requirement in promised.items():
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement}: promise a lowest version"
        lowest = tested[name]
        assert lowest in requirement.specifier, f"{name}: setup.cfg {bound}, tests/lowest.txt {lowest}"
        assert re.sub(r"(\.0)+$", "", lowest) == re.sub(r"(\.0)+$", "", bound.version), f"{name}: {bound}, {lowest}"


def test_what_ci_runs_is_pinned_and_satisfies_setup_cfg():
    pins = _pins("requirements.txt")
    for requirement in _declared("install_requires", "track", "trackio", "wandb", "demo", "onnx", "test", "dev"):
        if requirement.specifier:
            name = _canonical(requirement.name)
            assert pins[name] in requirement.specifier, (
                f"requirements.txt: {name}=={pins[name]}, setup.cfg {requirement}"
            )


def test_ci_runs_the_test_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make test$", readme, re.MULTILINE), "README.md gives no test command (make test)"
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert any(line.endswith("make test") for line in lines), ".ci/run does not run `make test`"


def test_every_library_that_is_imported_is_declared_in_setup_cfg():
    declared = {_canonical(r.name) for r in _declared("install_requires", "track", "trackio", "demo", "onnx", "umap")}
    problems = []
    for path in [*(ROOT / "mae_hf").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"mae_hf"}:
                if _canonical(INSTALLED_AS.get(top, top)) not in declared:
                    problems.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {top}: declare it in setup.cfg")
    assert not problems, "\n" + "\n".join(problems)


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def _declared(*names: str) -> list[Requirement]:
    """The requirements of setup.cfg: of the package (install_requires) and of extras."""
    parser = _setup()
    texts = parser["options"], parser["options.extras_require"]
    lines = [line for name in names for text in texts for line in text.get(name, "").splitlines()]
    return [Requirement(line) for line in lines if line.strip()]


def _pins(file: str) -> dict[str, str]:
    """Name -> version of the lines `name==version` of a requirements file."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = {}
    for requirement in [Requirement(line) for line in lines if line and not line.startswith("#")]:
        (bound,) = requirement.specifier
        assert bound.operator == "==", f"{file}: {requirement} is not an exact pin"
        pins[_canonical(requirement.name)] = bound.version
    return pins


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
