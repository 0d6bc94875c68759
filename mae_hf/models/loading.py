"""Opening and saving: how the weights of a model are named in files, and whether all of them arrived."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file, logging

from mae_hf.config.model import MAX_SIZE
from mae_hf.errors import ConfigError, require

POSITION_TABLES = ("position_embeddings", "decoder_pos_embed")

# Names in memory and in files that transformers 4 and 5 both read. What 5.x itself writes loses the decoder in 4.x.
SAVED_NAMES = (
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
# And back, for the files of 4.x, of 5.x (`decoder_encoder`) and ours; transformers applies them in this order.
LOADED_NAMES = {
    r"decoder_encoder\.layer\.": "decoder_layers.",
    r"encoder\.layer\.": "layers.",
    r"attention\.attention\.query": "attention.q_proj",
    r"attention\.attention\.key": "attention.k_proj",
    r"attention\.attention\.value": "attention.v_proj",
    r"attention\.output\.dense": "attention.o_proj",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
}


# Weights are safetensors alone, and no code comes with them: every `from_pretrained` of mae_hf is called with this.
SAFE: dict[str, Any] = {"use_safetensors": True, "weights_only": True, "trust_remote_code": False}
MAX_PARAMETERS = 4 * 2**30  # of what a config may describe; ViT-22B aside, the largest ViT has 6 billion
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
_ALL_SIZES = (*_SIZES, *(f"decoder_{name}" for name in _SIZES[:4]), "num_channels")


_NO_SAFETENSORS = (
    "it has no model.safetensors, and weights of another kind, such as pytorch_model.bin, are not opened since they "
    "may hold code: where you trust them, open them in transformers and write them anew with save_pretrained"
)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' load report and progress bars while a model is opened or saved, then restores both."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


@contextmanager
def opening(name: str, fix: str) -> Iterator[None]:
    """Keeps transformers quiet while it reads the checkpoint `name`, and turns its errors into one line.

    Args:
        name: the checkpoint, for the message.
        fix: what to do about an error; ends the message.

    Raises:
        ConfigError: there is no such checkpoint, or it cannot be read.
    """
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # transformers raises nearly anything on a config or a file of another kind
        reason = " ".join(str(error).split("\n\n")[0].split()).rstrip(".") or type(error).__name__
        if re.search(r"(no|have a) file named model\.safetensors", reason):
            reason = _NO_SAFETENSORS
        raise ConfigError(f"{name} cannot be opened ({reason}): {fix}") from error


def read_config(name: str, path: str, fix: str) -> Any:
    """The transformers config of a model that may be a stranger's, read before anything else of it.

    Args:
        name: the model as the user named it, for messages.
        path: where it is, a folder or a Hub id.
        fix: what to do about an error; ends the message.

    Raises:
        ConfigError: there is none, it names code of its own, an adapter or a way to quantise, or sizes that no memory
            has room for.
    """
    with opening(name, fix):
        content, _ = PreTrainedConfig.get_config_dict(path)
        adapter, index = (
            cached_file(path, file, _raise_exceptions_for_missing_entries=False)
            for file in ("adapter_config.json", "model.safetensors.index.json")
        )
        files = json.loads(Path(index).read_text())["weight_map"].values() if index else []
    for key, what in (("auto_map", "code of its own"), ("quantization_config", "quantised weights")):
        require(not content.get(key), f"{name} comes with {what} ({key} in config.json), which is not opened: {fix}")
    require(adapter is None, f"{name} comes with an adapter (adapter_config.json), which is not opened: {fix}")
    strange = [str(file) for file in files if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", str(file))]
    require(not strange, f"{name} has weights in {', '.join(strange[:1])}, not beside its index as safetensors: {fix}")
    classes = content.get("architectures") or []
    known = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(known, f"{name} has architectures {classes} in its config.json, not a list of names: {fix}")
    sizes = {key: content[key] for key in _ALL_SIZES if key in content}
    for key, value in sizes.items():
        known = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIZE
        require(
            known, f"{name} has {key} {str(value)[:40]} in its config.json, not a number from 1 to {MAX_SIZE}: {fix}"
        )
    total = _num_parameters(sizes)
    require(total <= MAX_PARAMETERS, f"{name} has {total:.1e} parameters by its config.json, too many to open: {fix}")
    with opening(name, fix):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def _num_parameters(sizes: dict[str, int]) -> int:
    """Roughly the parameters that a config describes; defaults are ViT-Base's."""
    tokens = (sizes.get("image_size", 224) // sizes.get("patch_size", 16)) ** 2
    pixels = sizes.get("num_channels", 3) * sizes.get("patch_size", 16) ** 2
    total = 0
    for prefix in ("", "decoder_") if any(key.startswith("decoder_") for key in sizes) else ("",):
        width, mlp = sizes.get(f"{prefix}hidden_size", 768), sizes.get(f"{prefix}intermediate_size", 3072)
        total += sizes.get(f"{prefix}num_hidden_layers", 12) * width * (4 * width + 2 * mlp) + (tokens + pixels) * width
    return total


def check_loaded(name: str, model: nn.Module, info: dict[str, Any], fix: str, spare: tuple[str, ...] = ()) -> None:
    """Checks that every weight of `model` came from the checkpoint and that its position tables are real ones.

    Args:
        name: the checkpoint, for the message.
        info: the loading info that `from_pretrained` gave.
        fix: what to do about it; ends the error message.
        spare: prefixes of weights that the checkpoint may hold and the model does not use.

    Raises:
        ConfigError: weights are missing, left over or of another shape, or a position table is all zero or not finite.
    """
    shapes = [f"{key} is {list(theirs)}, not {list(ours)}" for key, theirs, ours in sorted(info["mismatched_keys"])]
    left_over = sorted(key for key in info["unexpected_keys"] if not key.startswith(spare))
    for problem, keys in (
        ("has weights of another shape", shapes),
        ("has no weights for", sorted(info["missing_keys"])),
        ("has weights that its config has no place for", left_over),
    ):
        require(not keys, f"{name} {problem}: {_shorten(keys)}: {fix}")
    for key, table in model.named_parameters():
        if key.endswith(POSITION_TABLES):
            require(bool(table.isfinite().all()), f"{name}: the position table {key} is not finite: {fix}")
            require(
                bool(table[:, 1:].any()),
                f"{name}: the position table {key} is all zero, as transformers 5 leaves it in a ViTMAE trained from "
                f"scratch, so the weights know no positions: {fix}",
            )


def _shorten(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def saved_name(name: str) -> str:
    """The name that a weight of `MaskedAutoencoder` has in a file."""
    for pattern, replacement in SAVED_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
