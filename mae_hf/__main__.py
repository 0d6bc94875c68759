"""The command line: `scripts/NAME.py`, `mae_hf NAME` and `python -m mae_hf NAME` start here.

--help, a wrong config and a source, model or run that does not exist are answered at once. Only then is the recipe
imported, which takes seconds: it needs torch.
"""

import importlib
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mae_hf.commands import exits
from mae_hf.config import commands as configs
from mae_hf.config.parse import CONFIGS, presets, read_command, read_file
from mae_hf.config.runs import FinetuneConfig, PretrainConfig, RunConfig
from mae_hf.data.locations import check_images, check_output, check_source
from mae_hf.errors import require
from mae_hf.models.locate import FIX_INIT, FIX_MODEL, check_subject, find_model, kept_start

# Each command has its recipe in mae_hf/commands/NAME.py, a function of that name that takes the config.
COMMANDS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": configs.EvaluateConfig,
    "few_labels": configs.FewLabelsConfig,
    "compare": configs.CompareConfig,
    "reconstruct": configs.ReconstructConfig,
    "prepare_data": configs.PrepareConfig,
    "embed": configs.EmbedConfig,
    "predict": configs.PredictConfig,
    "export": configs.ExportConfig,
    "demo": configs.DemoConfig,
    "doctor": configs.DoctorConfig,
}


def main(script: str | None = None) -> NoReturn:
    """Run the command that a file in scripts/ or the first word of the command line names, and exit."""
    name, *words = [script, *sys.argv[1:]] if script else sys.argv[1:] or ["--help"]
    exits.run(lambda: run_command(name, words, f"scripts/{name}.py" if script else f"mae_hf {name}"))


def run_command(name: str, words: Sequence[str], prog: str) -> None:
    """Run a command with these words; ConfigError if they, or a path in them, are wrong."""
    if name in ("--help", "-h"):
        print("usage: mae_hf COMMAND [--config FILE.yaml] [--section.key value ...]\n")
        for command, config_class in COMMANDS.items():
            print(f"  {command:14}{(config_class.__doc__ or '').splitlines()[0]}")
        print("\nmae_hf COMMAND --help lists the settings of a command")
        for command in ("pretrain", "finetune"):
            print(f"presets of {command} (--config NAME): {', '.join(presets(command))}")
        print(f"presets, and machine files for accelerate launch, are in {CONFIGS}")
        return
    require(name in COMMANDS, f"{name} is not a command: choose one of {', '.join(COMMANDS)}")
    config: Any = read_command(COMMANDS[name], join_lists(words), prog)
    check_paths(config)
    getattr(importlib.import_module(f"mae_hf.commands.{name}"), name)(config)


def check_paths(config: Any) -> None:
    """Check that the models, sources, runs and files that a config names exist."""
    is_run = isinstance(config, RunConfig)
    if is_run and Path(config.output_dir, "metrics.json").exists():
        return  # the data and the encoder of a finished run need not exist any more
    if isinstance(getattr(config, "model", None), str):
        find_model(config.model, FIX_MODEL)
    if isinstance(config, configs.DoctorConfig):
        check_subject(config.name, config.kind)
    if isinstance(config, configs.EmbedConfig | configs.PredictConfig):
        check_images(config.data.sources, config.output)
    elif hasattr(config, "data") and not isinstance(config, configs.ReconstructConfig):  # it may name image files
        for source in config.data.sources:
            check_source(source, config.data.streaming)
    outputs: dict[str, Any] = {"output": "file", "export_space": "new folder", "output_dir": "folder"}
    if isinstance(config, configs.ExportConfig):
        outputs["output"] = "new folder"
    for name, kind in outputs.items():
        if getattr(config, name, None) is not None and not is_run:  # a run checks its folder when it locks it
            check_output(getattr(config, name), f"--{name}", kind)
    if isinstance(config, PretrainConfig):
        for source in config.audit.sources:
            check_source(source, config.data.streaming and source in config.data.sources)
    if is_run and not config.model.is_new and not kept_start(Path(config.output_dir)):
        find_model(config.model.init, FIX_INIT[config.model.new])
    if isinstance(config, configs.EvaluateConfig | configs.FewLabelsConfig):
        folder, problem = Path(config.output_dir), "is a run folder, whose files would be overwritten"
        is_free = (folder / "predictions").is_dir() or not (folder / "config.yaml").exists()  # of an older evaluation
        require(is_free, f"{config.output_dir} {problem}: choose another --output_dir")
    if isinstance(config, configs.FewLabelsConfig) and config.finetune_config:
        read_file(FinetuneConfig, config.finetune_config)
    if isinstance(config, configs.CompareConfig):
        for run in itertools.chain(*config.arms.values()):
            problem = "is not a folder: give the run folder of a fine-tuning run (its --output_dir)"
            require(Path(run).is_dir(), f"{run} {problem}")


def join_lists(words: Sequence[str]) -> list[str]:
    """Turn several words after a flag into one list: `--scratch a b` becomes `--scratch '["a", "b"]'`.

    The words of every `--arm` are one list, too.
    """
    found: list[list[str]] = []
    for word in itertools.chain(*(text.split("=", 1) if text.startswith("--arm=") else [text] for text in words)):
        if word == "--arm" and (arms := next((group for group in found if group[0] == word), None)):
            found.remove(arms)
            found.append(arms)  # the next words belong to it
        elif word.startswith("-") or not found:
            found.append([word])
        else:
            found[-1].append(word)
    lists = ((flag, values, len(values) > 1 or (flag == "--arm" and values)) for flag, *values in found)
    return [part for flag, values, is_list in lists for part in (flag, *([json.dumps(values)] if is_list else values))]


if __name__ == "__main__":
    main()
