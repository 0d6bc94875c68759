"""The command line: `scripts/NAME.py`, `mae_hf NAME` and `python -m mae_hf NAME` start here.

--help, a wrong config and a source, model or run that does not exist are answered at once. Only then is the recipe
imported, which takes seconds: it needs torch.
"""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mae_hf.commands import exits
from mae_hf.config.commands import (
    CompareConfig,
    DemoConfig,
    EvaluateConfig,
    FewLabelsConfig,
    FinetuneConfig,
    PrepareConfig,
    PretrainConfig,
    ReconstructConfig,
)
from mae_hf.config.parse import read_command, read_file
from mae_hf.data.locations import check_source
from mae_hf.errors import require
from mae_hf.models.locate import FIX_INIT, FIX_MODEL, SCRATCH, find_model


def _check_pretrain(config: PretrainConfig) -> None:
    if not _is_finished(config.output_dir):
        for source in (*config.data.sources, *config.audit.sources):
            check_source(source, streaming=config.data.streaming and source in config.data.sources)


def _check_finetune(config: FinetuneConfig) -> None:
    if not _is_finished(config.output_dir):
        _check_sources(config)
        if config.model.init != SCRATCH:
            find_model(config.model.init, FIX_INIT)


def _is_finished(folder: str) -> bool:
    """The data and the encoder of a finished run need not exist any more."""
    return Path(folder, "metrics.json").exists()


def _check_sources(config: FinetuneConfig | EvaluateConfig | FewLabelsConfig | PrepareConfig) -> None:
    for source in config.data.sources:
        check_source(source)


def _check_model(config: EvaluateConfig | FewLabelsConfig | ReconstructConfig | DemoConfig) -> None:
    find_model(config.model, FIX_MODEL)


def _check_evaluate(config: EvaluateConfig | FewLabelsConfig) -> None:
    _check_model(config)
    _check_sources(config)
    require(
        not Path(config.output_dir, "config.yaml").exists(),
        f"{config.output_dir} is a run folder, whose files would be overwritten: choose another --output_dir",
    )


def _check_few_labels(config: FewLabelsConfig) -> None:
    _check_evaluate(config)
    if config.finetune_config:
        read_file(FinetuneConfig, config.finetune_config)


def _check_compare(config: CompareConfig) -> None:
    for run in (*config.pretrained_runs, *config.scratch_runs):
        require(
            Path(run).is_dir(), f"{run} is not a folder: give the run folder of a fine-tuning run (its --output_dir)"
        )


# Each command has its recipe in mae_hf/commands/NAME.py, a function of that name that takes the config.
COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "pretrain": (PretrainConfig, _check_pretrain),
    "finetune": (FinetuneConfig, _check_finetune),
    "evaluate": (EvaluateConfig, _check_evaluate),
    "few_labels": (FewLabelsConfig, _check_few_labels),
    "compare": (CompareConfig, _check_compare),
    "reconstruct": (ReconstructConfig, _check_model),
    "prepare_data": (PrepareConfig, _check_sources),
    "demo": (DemoConfig, _check_model),
}


def main(script: str | None = None) -> NoReturn:
    """Run the command that this process's command line names, and exit.

    Args:
        script: the command of a file in scripts/; None takes the first word.
    """
    if script is not None:
        exits.run(lambda: run_command(script, sys.argv[1:], f"scripts/{script}.py"))
    exits.run(lambda: _run_named(sys.argv[1:]))


def _run_named(words: Sequence[str]) -> None:
    name, *rest = words or ("--help",)
    if name in ("--help", "-h"):
        summaries = {name: (config_class.__doc__ or "").split("\n")[0] for name, (config_class, _) in COMMANDS.items()}
        print("usage: mae_hf COMMAND [--config FILE.yaml] [--section.key value ...]\n")
        print("\n".join(f"  {name:14}{summary}" for name, summary in summaries.items()))
        print("\nmae_hf COMMAND --help lists the settings of a command")
        return
    require(name in COMMANDS, f"{name} is not a command: choose one of {', '.join(COMMANDS)}")
    run_command(name, rest, f"mae_hf {name}")


def run_command(name: str, words: Sequence[str], prog: str) -> None:
    """Run a command with these words.

    Raises:
        ConfigError: the words, or a path in them, are wrong.
    """
    config_class, check = COMMANDS[name]
    config: Any = read_command(config_class, join_lists(words), prog)
    check(config)
    getattr(importlib.import_module(f"mae_hf.commands.{name}"), name)(config)


def join_lists(words: Sequence[str]) -> list[str]:
    """Turn several words after a flag into one list: `--scratch a b` becomes `--scratch '["a", "b"]'`."""
    found: list[list[str]] = []
    for word in words:
        if word.startswith("-") or not found:
            found.append([word])
        else:
            found[-1].append(word)
    return [part for flag, *values in found for part in (flag, *([json.dumps(values)] if len(values) > 1 else values))]


if __name__ == "__main__":
    main()
