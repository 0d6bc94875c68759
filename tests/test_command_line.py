"""What a command answers before it does anything: help, and errors in the words that were typed."""

import subprocess
import sys

import pytest
from forks import typed

from mae_hf.__main__ import COMMANDS

SLOW = {"torch", "numpy", "PIL", "pyarrow", "scipy", "sklearn", "matplotlib"}
SLOW |= {"transformers", "datasets", "evaluate", "accelerate", "huggingface_hub"}


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The packages of which `python -X importtime` names a module."""
    return {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}


@pytest.mark.parametrize("script", COMMANDS)
@pytest.mark.parametrize(
    ("words", "code"), [(("--help",), 0), (("--no_such_flag", "1"), 2), (("--config", "no_such_file"), 2)]
)
def test_every_script_answers_help_and_errors_before_slow_imports(script: str, words: tuple, code: int):
    done = typed(sys.executable, "-X", "importtime", f"scripts/{script}.py", *words)
    assert done.returncode == code
    assert "--" in done.stdout if code == 0 else "error: " in done.stderr
    assert "mae_hf" in imported(done)
    assert not imported(done) & SLOW


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("prepare_data", ("--data.source", "no_such_folder")),
        ("compare", ("--pretrained", "no_such_run", "--scratch", "other_run", "--output_dir", "report")),
        ("pretrain", ("--data.source", "[digits, no_such_folder]", "--output_dir", "no_such_run")),
        ("finetune", ("--data.source", "no_such_folder", "--output_dir", "no_such_run")),
        ("finetune", ("--data.source", "digits", "--model.init", "no_such_model", "--output_dir", "no_such_run")),
        ("evaluate", ("--model", "no_such_model", "--data.source", "digits", "--output_dir", "no_such_run")),
        ("evaluate", ("--model", "user/name", "--data.source", "no_such_folder", "--output_dir", "no_such_run")),
        ("few_labels", ("--model", "no_such_model", "--data.source", "digits", "--output_dir", "no_such_run")),
        ("few_labels", ("--model", "user/name", "--data.source", "no_such_folder", "--output_dir", "no_such_run")),
        ("reconstruct", ("--model", "no_such_model", "--output", "picture.png")),
        ("embed", ("--model", "no_such_model", "--data.source", "digits", "--output", "features.parquet")),
        ("embed", ("--model", "user/name", "--data.source", "no_such_folder", "--output", "features.parquet")),
        ("predict", ("--model", "user/name", "--data.source", "README.md", "no_such_file", "--output", "classes.csv")),
        ("export", ("--model", "no_such_model", "--output", "folder")),
        ("demo", ("--model", "no_such_model")),
        ("doctor", ("no_such_model",)),
        ("doctor", ("no_such_images", "--kind", "source")),
    ],
)
def test_a_missing_source_or_model_is_named_before_torch_is_imported(script: str, words: tuple):
    done = typed(sys.executable, "-X", "importtime", f"scripts/{script}.py", *words)
    assert done.returncode == 2
    assert "no_such_" in done.stderr.splitlines()[-1]
    assert "mae_hf" in imported(done)
    assert "torch" not in imported(done)


def test_commands_are_also_found_by_name():
    listed = typed(sys.executable, "-X", "importtime", "-m", "mae_hf", "--help")
    assert listed.returncode == 0 and not imported(listed) & SLOW
    assert [line.split()[0] for line in listed.stdout.splitlines() if line.startswith("  ")] == list(COMMANDS)
    wrong = typed(sys.executable, "-m", "mae_hf", "pretrian")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: pretrian is not a command: choose one of pretrain, finetune, ")
    config = typed(sys.executable, "-m", "mae_hf", "pretrain", "--train.seed", "7", "--print_config")
    assert "seed: 7" in config.stdout
    words = ("--pretrained", "tests", "no_such_run", "--scratch", "docs", "--output_dir", "report")
    missing = typed(sys.executable, "-m", "mae_hf", "compare", *words)
    assert missing.returncode == 2 and missing.stderr.startswith("error: no_such_run is not a folder: ")
