"""The shape of the repository: one direction of imports, a test for every module, no leftovers."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mae_hf.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]

# The parts of mae_hf (a folder or a file directly under it), from the top floor down: each imports only parts below it.
PARTS = (
    "api",
    "__main__",
    "commands",
    "report",
    "hub",
    "evaluation",
    "training",
    "leakage",
    "models",
    "data",
    "figures",
    "config",
    "files",
    "progress",
    "errors",
)
# Libraries that a module may import besides the standard library, where fewer than all.
ONLY = {
    "errors": set(),
    "config": {"jsonargparse", "yaml"},
    "commands.exits": set(),
    "data.locations": set(),
    "models.locate": set(),
}
BANNED = {"torchvision", "timm", "kornia"}

# Modules with public names and no test file of their own, each with the reason.
NO_MIRROR = {
    "mae_hf.__main__": "tests/test_command_line.py types every command, as a script and by name",
    "mae_hf.models.initialization": "test_mae.py tries new weights, the position table and its check on whole models",
    "mae_hf.models.locate": "test_mae.py and test_command_line.py name folders, runs and models that do not exist",
    "mae_hf.data.hub_errors": "tests/test_hub_faults.py plants every failure in uploads and downloads",
    "mae_hf.data.locations": "test_sources.py and test_command_line.py name sources that do not exist",
}

NO_MIRROR |= {
    f"mae_hf.commands.{name}": "tests/test_scripts.py and its neighbours run every command"
    for name in (
        "compare",
        "doctor",
        "embed",
        "evaluate",
        "few_labels",
        "finetune",
        "prepare_data",
        "predict",
        "pretrain",
        "reconstruct",
    )
}
NO_MIRROR["mae_hf.commands.demo_page"] = "tests/commands/test_demo.py opens the page of both kinds of models"
NO_MIRROR["benchmarks.speed"] = "tests/benchmarks/test_turns.py runs it"

# Pieces, so that this file does not name what it looks for.
MACHINE_PATHS = (
    "/" + "work/",
    "/" + "root/",
    "/" + "home/",
    "/" + "Users/",
    "/" + "opt/",
    "../" + "shared",
    ".lib" + "rary/",
)


def _sources() -> dict[str, Path]:
    """Dotted name -> file of every module of mae_hf, benchmarks and scripts."""
    files = [path for folder in ("mae_hf", "benchmarks", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


SOURCES = _sources()
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in SOURCES.items()}


def _imports(module: str) -> list[tuple[str, int]]:
    """Dotted name and line of everything that `module` imports, anywhere in the file."""
    found = []
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{SOURCES[module]}:{node.lineno}: relative import: name it in full, mae_hf...."
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((whole if whole in SOURCES else str(node.module), node.lineno))
    return found


def _part(module: str) -> str:
    """The part that a module of mae_hf belongs to: mae_hf.data.cache -> data."""
    return module.split(".")[1]


def _fail(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def test_every_part_of_the_package_has_a_floor():
    found = {_part(module) for module in SOURCES if module.startswith("mae_hf.")}
    assert found == set(PARTS)


def test_imports_run_downwards():
    problems = []
    for module in SOURCES:
        for target, line in _imports(module):
            where = f"{SOURCES[module].relative_to(ROOT)}:{line} imports {target}"
            own, other = (name.split(".")[0] for name in (module, target))
            if other == "scripts" or (other == "benchmarks" and own != "benchmarks"):
                problems.append(f"{where}: only commands of the shell use {other}")
            if own != "mae_hf" or not target.startswith("mae_hf.") or module == "mae_hf":  # which is above all parts
                continue
            if _part(module) != _part(target) and PARTS.index(_part(module)) > PARTS.index(_part(target)):
                problems.append(f"{where}: {_part(module)} is below {_part(target)}")
    _fail(problems)


def test_no_two_modules_import_each_other_in_a_circle():
    below = {m: {t for t, _ in _imports(m) if t in SOURCES and t != m} for m in SOURCES}
    while leaves := [m for m, targets in below.items() if not targets & below.keys()]:
        for module in leaves:
            del below[module]
    assert not below, f"a circle of imports among {sorted(below)}"


def test_every_exception_is_still_needed():
    assert set(NO_MIRROR) <= SOURCES.keys(), "take the modules that are gone out of NO_MIRROR"


def test_a_command_answers_fast_because_what_it_starts_with_imports_little():
    problems = []
    for part, libraries in ONLY.items():
        for module in SOURCES:
            if module == f"mae_hf.{part}" or module.startswith(f"mae_hf.{part}."):
                for target, line in _imports(module):
                    if target.split(".")[0] not in libraries | set(sys.stdlib_module_names) | {"mae_hf"}:
                        problems.append(f"{SOURCES[module]}:{line} imports {target}: {sorted(libraries)} may be")
    _fail(problems)


def test_the_package_never_needs_torchvision_timm_or_kornia():
    found = [(m, t, line) for m in SOURCES for t, line in _imports(m) if t.split(".")[0] in BANNED]
    _fail([f"{SOURCES[m]}:{line} imports {target}" for m, target, line in found])


def test_no_script_hides_a_library_of_its_own_name():
    """A script's folder comes first on Python's path, so scripts/evaluate.py would be found by `import evaluate`."""
    libraries = {t.split(".")[0] for m in SOURCES for t, _ in _imports(m)}
    hidden = sorted(libraries & {path.stem for path in (ROOT / "scripts").glob("*.py")})
    code = """if True:
        import contextlib, importlib.machinery, io, pathlib, runpy, sys
        folder, hidden, path = pathlib.Path(sys.argv[1]), sys.argv[2:], list(sys.path)
        for script in sorted(folder.glob("*.py")):
            sys.path[:] = [str(folder), *path[1:]]  # as `python scripts/NAME.py` sets it
            sys.argv = [str(script), "--help"]
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
                runpy.run_path(str(script), run_name="__main__")
            for name in hidden:
                origin = importlib.machinery.PathFinder.find_spec(name).origin
                assert pathlib.Path(origin).parent != folder, f"in {script.name}, `import {name}` finds {origin}"
    """
    if hidden:
        command = [sys.executable, "-c", code, str(ROOT / "scripts"), *hidden]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_a_public_name_of_the_package_means_one_thing():
    places: dict[str, list[str]] = {}
    for module, tree in TREES.items():
        for node in tree.body if module.startswith("mae_hf.") else []:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = {node.name}
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            else:
                continue
            for name in names - (set(COMMANDS) if module == "mae_hf.api" else set()):  # a function runs its command
                places.setdefault(name, []).append(module)
    _fail(
        [
            f"{name} is defined in {', '.join(where)}"
            for name, where in places.items()
            if len(where) > 1 and name[0] != "_"
        ]
    )


def test_there_is_no_grab_bag():
    found = [path for path in _repository_files() if path.name in ("utils.py", "helpers.py", "misc.py", "common.py")]
    assert not found, f"{found}: name a module after what it gives"


def test_every_file_of_code_says_what_it_is_for():
    tests = {str(path): ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py")}
    assert not [name for name, tree in (TREES | tests).items() if not ast.get_docstring(tree)]


def test_every_module_with_public_names_has_a_test_file_that_mirrors_it():
    missing = []
    for module, tree in TREES.items():
        defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        if module.startswith("scripts") or not [name for name in defined if not name.startswith("_")]:
            continue
        path = SOURCES[module].relative_to(ROOT)
        path = path.relative_to("mae_hf") if module.startswith("mae_hf.") else path
        name = path.parent.name if path.stem == "__init__" else path.stem
        folder = ROOT / "tests" / path.parent
        longer = folder / f"test_{path.parent.name}_{name}.py"  # where the short name is taken in another folder
        if not (folder / f"test_{name}.py").exists() and not longer.exists() and module not in NO_MIRROR:
            missing.append(f"{SOURCES[module]} has no {folder.relative_to(ROOT)}/test_{name}.py")
    _fail(missing)


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


def test_no_file_names_a_path_of_one_machine():
    problems = []
    for path in _repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or other binary file
        for number, line in enumerate(text.splitlines(), 1):
            # Preceded by a letter it is part of a longer relative path or of an address.
            found = [p for p in MACHINE_PATHS if re.search(r"(?<![\w.])" + re.escape(p), line)]
            problems += [f"{path.relative_to(ROOT)}:{number} names {p}" for p in found]
    _fail(problems)


def test_no_merge_was_left_half_done():
    marker = re.compile("^(" + "<" * 7 + "|" + ">" * 7 + ") ", re.MULTILINE)
    texts = {path: path.read_bytes().decode("utf-8", "replace") for path in _repository_files()}
    assert not [path for path, text in texts.items() if marker.search(text)]


def _repository_files() -> list[Path]:
    """Every file that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("this is not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]
