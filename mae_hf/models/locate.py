"""Where a model lies. It needs no library, so that a wrong name is told before the imports that take seconds."""

from pathlib import Path

from mae_hf.errors import require

SCRATCH = "scratch"
FIX_INIT = (
    "pre-train first (accelerate launch scripts/pretrain.py; offline: --config configs/pretrain/digits.yaml), name "
    "another encoder (--model.init DIR_OR_HUB_ID), or start from nothing (--model.init scratch)"
)
FIX_MODEL = "give a run folder, a model folder or a Hub id (--model)"


def find_model(name: str, fix: str) -> str:
    """The model folder that `name` means, or `name` itself where it can only be a Hub id.

    Args:
        name: a run folder (its `model/` is meant), a model folder, or a Hub id.
        fix: what to do where there is no such model; ends the error message.

    Raises:
        ConfigError: a folder without a model, a run that is not finished, or no such folder.
    """
    folder = Path(name).expanduser()
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if (folder / "config.json").is_file():
        return str(folder)
    require(
        not (folder / "config.yaml").is_file(),
        f"{name} is a run that is not finished, it has no model/ yet: run its command again to finish it",
    )
    require(not folder.exists(), f"{name} holds no model (no config.json): {fix}")
    is_path = name.startswith(("/", ".", "~")) or name.count("/") != 1 or folder.parent.is_dir()
    require(not is_path, f"{name} does not exist: {fix}")
    return name
