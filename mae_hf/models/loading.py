"""Opening and saving: how the weights of a model are named in files, and whether all of them arrived."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging

from mae_hf.config import ConfigError, require

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
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        reason = " ".join(str(error).split("\n\n")[0].split()).rstrip(".")
        raise ConfigError(f"{name} cannot be opened ({reason}): {fix}") from error


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
