"""Find the folder of a model, without any library: a wrong name is reported before the imports that take seconds."""

from pathlib import Path

from mae_hf.data.locations import check_source, is_hub_id
from mae_hf.errors import require

AUTOENCODER = "autoencoder"  # the part of a model folder with the decoder; the folder itself is the plain encoder
SCRATCH = "scratch"
KEPT = "init"  # in an unfinished run: a copy of the checkpoint that it started from
_ANOTHER = "name another encoder (--model.init DIR_OR_HUB_ID), or start from random weights"
FIX_INIT = {  # by the `model.init` of random weights: of pre-training, and of fine-tuning
    "paper": f"{_ANOTHER} (--model.init paper)",
    SCRATCH: "pre-train first (command pretrain; without a network: pretrain --config digits), "
    f"{_ANOTHER} (--model.init scratch)",
}
FIX_MODEL = "give a run folder, a model folder or a Hub id (--model)"


def find_model(name: str, fix: str) -> Path | None:
    """Return the model folder that `name` means, a run or model folder, or None if it can only be a Hub id.

    Of a pre-trained model, the whole autoencoder is taken. ConfigError, which ends with `fix`, if there is no model.
    """
    folder = Path(name).expanduser()
    for path in (folder / "model" / AUTOENCODER, folder / "model", folder / AUTOENCODER, folder):
        if (path / "config.json").is_file():
            return path
    is_unfinished = (folder / "config.yaml").is_file()
    require(not is_unfinished, f"{name} is an unfinished run without a model/: run its command again to finish it")
    require(not folder.exists(), f"{name} holds no model (no config.json): {fix}")
    require(is_hub_id(name), f"{name} does not exist: {fix}")
    return None


def title_of(name: str) -> str:
    """Return what to call a model: the name of its run folder, its own folder or its Hub repository."""
    path = Path(name).expanduser().resolve()
    return path.parent.name if path.name == "model" else path.name


def model_folders(name: str) -> list[Path]:
    """Return the folders with files of a model, complete or not, in a run or model folder and its parts."""
    folder = Path(name).expanduser()
    patterns = ("config.json", "preprocessor_config.json", "model*.safetensors", "pytorch_model*.bin")
    parts = [folder / top / part for top in ("", "model") for part in ("", AUTOENCODER, "encoder")]
    return [part for part in parts if any(file.is_file() for pattern in patterns for file in part.glob(pattern))]


def check_subject(name: str, kind: str | None) -> None:
    """Raise ConfigError unless a name is a model or images on disk, or may be a Hub id."""
    path = Path(name).expanduser()
    fix = "give a model (run folder, model folder, Hub id) or images (folder, parquet file, Hub id, digits)"
    require(path.exists() or name == "digits" or is_hub_id(name), f"{name} does not exist: {fix}")
    if model_folders(name) and kind != "source":
        return
    if kind == "model" or (path / "config.yaml").is_file():
        find_model(name, fix)
    else:
        check_source(name)


def kept_start(run: Path) -> Path | None:
    """Return the copy of the checkpoint that an unfinished run keeps; None if it has no whole copy."""
    return next((file.parent for file in (run / KEPT).glob("[!.]*/config.json")), None)
