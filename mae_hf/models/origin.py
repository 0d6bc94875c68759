"""What a run takes from the checkpoint that it starts from: the settings that its config leaves null, and weights."""

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn
from transformers import ViTModel

from mae_hf.config import parse
from mae_hf.config.data import DataConfig
from mae_hf.config.model import MAEConfig, StartConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.errors import ConfigError, require
from mae_hf.files import write_folder
from mae_hf.models.initialization import resize_positions
from mae_hf.models.io import PROCESSOR, SHAPE_KEYS, SavedModel, open_encoder, weights_digest
from mae_hf.models.locate import FIX_INIT, KEPT, kept_start

_Start = TypeVar("_Start", bound=StartConfig)
_Run = TypeVar("_Run", PretrainConfig, FinetuneConfig)

_OF_DECODER = (*(f"decoder_{key}" for key in SHAPE_KEYS[2:]), "loss", "norm_pix_loss")
_BRACKETS = str.maketrans("()", "[]")  # lists are written as on the command line
_FROM_INIT = {"data.image_mean", "data.image_std", "data.resize"} | {f"model.{key}" for key in SHAPE_KEYS + _OF_DECODER}


def resolve(config: _Run) -> _Run:
    """Return the config with the checkpoint's value for each setting that is null.

    An existing run answers from its own config.yaml, so that it resumes where the checkpoint is missing. Where a
    checkpoint has no decoder, the decoder and the loss are the defaults of `MAEConfig`. ConfigError as in `open_start`;
    or the checkpoint contradicts the config in more than the image size; or a setting stays null.
    """
    if config.model.is_new:
        for key, value in parse.flatten(config).items():
            problem = f"{key} null needs a checkpoint to take it from (--model.init), or a value (--{key})"
            require(value is not None or key not in _FROM_INIT, problem)
        return config
    file = Path(config.output_dir, "config.yaml")
    if file.is_file():
        with contextlib.suppress(ConfigError):  # `inspect_run` says what is wrong with it
            return _fill(config, parse.flatten(parse.read_file(type(config), file)))
    saved = open_start(config.model)
    claims = _claims(saved)
    if (saved.folder / PROCESSOR).is_file():  # otherwise it makes no claim
        claims |= {f"data.{key}": value for key, value in saved.preparation().items()}
    words = ["--config", "published_224", *parse.to_flags(config, leave_out=_FROM_INIT)]
    command = parse.command_line(config.presets, words, precision="no")
    _check_claims(saved, parse.flatten(config), claims, f", or type {command}")
    defaults = {f"model.{key}": getattr(MAEConfig, key) for key in _OF_DECODER} | {"data.resize": DataConfig.resize}
    config = _fill(config, defaults | claims)
    for key, value in parse.flatten(config).items():
        problem = f"{key} is null, and {saved.name} has no {PROCESSOR} that says it: give a value (--{key})"
        require(value is not None or key not in _FROM_INIT, problem)
    return config


def _fill(config: _Run, values: Mapping[str, Any]) -> _Run:
    """Return the config with these values, by dotted key, in place of null."""
    parts = {}
    for section in ("model", "data"):
        part = getattr(config, section)
        nulls = [name for name, value in vars(part).items() if value is None and f"{section}.{name}" in _FROM_INIT]
        parts[section] = replace(part, **{name: values.get(f"{section}.{name}") for name in nulls})
    return replace(config, **parts)


def _claims(saved: SavedModel) -> dict[str, Any]:
    """Return the shape of a checkpoint, and the loss of one with a decoder, by dotted key."""
    theirs = saved.config()
    keys = (*SHAPE_KEYS, *(_OF_DECODER if saved.has_decoder else ()))
    values = {"loss": str(getattr(theirs, "mae_loss", "mse"))[:40]}  # without the key, the loss is stock's
    return {f"model.{key}": values.get(key, getattr(theirs, key, None)) for key in keys}


def _check_claims(saved: SavedModel, ours: Mapping[str, Any], claims: Mapping[str, Any], fix: str = "") -> None:
    """Check that our settings, by dotted key, are null or equal the checkpoint's. The image size may differ."""
    wrong = {
        key: f"{key} is {theirs} there and {ours[key]} here".translate(_BRACKETS)
        for key, theirs in claims.items()
        if ours.get(key) is not None and key != "model.image_size" and not _agree(ours[key], theirs)
    }
    problem = f"the config contradicts the checkpoint {saved.name}: {', '.join(wrong.values())}"
    require(not wrong, f"{problem}: take its values ({' '.join(f'--{key} null' for key in wrong)}){fix}")


def _agree(ours: Any, theirs: Any) -> bool:
    return bool(np.allclose(ours, theirs, atol=1e-6)) if isinstance(theirs, tuple) else bool(ours == theirs)


def open_start(config: StartConfig) -> SavedModel:
    """Return the checkpoint that a run starts from; ConfigError if it is missing, malformed or no such encoder."""
    saved = SavedModel(config.init, FIX_INIT[config.new], config.revision)
    theirs = saved.config()
    is_labelled = "ViTForImageClassification" in (theirs.architectures or [])
    problem = "is a classifier that was already trained with labels, not a pre-trained encoder"
    require(not is_labelled, f"{saved.name} {problem}: {saved.fix}")
    problem = f"takes {theirs.num_channels} channels and images here have 3"
    require(theirs.num_channels == 3, f"the encoder {saved.name} {problem}: {saved.fix}")
    # fine-tuning has drop-path instead, whose draws belong to the image and not to the process
    dropout = theirs.hidden_dropout_prob or theirs.attention_probs_dropout_prob
    fix = "set hidden_dropout_prob and attention_probs_dropout_prob to 0 in its config.json"
    require(not dropout, f"the encoder {saved.name} has dropout {dropout}, which is not supported: {fix}")
    return saved


def keep_start(config: StartConfig, run: Path) -> None:
    """Copy the checkpoint into the folder of an unfinished run, which resumes from the copy."""
    if not config.is_new and not kept_start(run):
        saved = open_start(config)
        files = [file for file in saved.folder.iterdir() if file.suffix in (".json", ".safetensors")]
        name = saved.commit or saved.folder.name
        write_folder(run / KEPT / name, lambda beside: [shutil.copy(file, beside) for file in files])


def find_start(config: _Start, run: Path) -> _Start:
    """Return the config, with the run's own copy of the checkpoint as `init` where there is one with weights."""
    kept = kept_start(run)
    if config.is_new or kept is None or not any(kept.glob("*.safetensors")):
        return config
    return replace(config, init=str(kept), revision=None)


def load_encoder(config: StartConfig, attn_implementation: str) -> ViTModel:
    """Return the encoder that training starts from, in float32, for the image size of the checkpoint.

    ConfigError as in `open_start`, or if it is incomplete, or has another shape than `config`.
    """
    saved = open_start(config)
    _check_claims(saved, {f"model.{key}": value for key, value in vars(config).items()}, _claims(saved))
    return open_encoder(saved, attn_implementation, labelled=False)


def resized_weights(module: nn.Module, table: str, config: StartConfig) -> dict[str, Tensor]:
    """Return the state dict of an encoder or decoder, with its position table resized for the config's image size."""
    weights = module.state_dict()
    return weights | {table: resize_positions(weights[table], config.image_size // config.patch_size)}


def start_facts(config: StartConfig) -> dict[str, Any]:
    """Return what run.json says about the checkpoint that a run starts from, before its position tables are resized."""
    saved = None if config.is_new else open_start(config)
    digest = weights_digest(load_encoder(config, "eager")) if saved else None
    facts = {"init": config.init, "init_digest": digest, "init_revision": saved and saved.commit}
    return {**facts, "init_has_decoder": saved is not None and saved.has_decoder}
