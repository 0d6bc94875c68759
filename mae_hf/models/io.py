"""Open models, trusted or not, check that every weight has arrived, and save weights under names that others expect.

No code of an untrusted model is executed: weights are read from safetensors only, and `config.json` is checked first.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTModel
from transformers.utils import logging

from mae_hf.config.data import DataConfig, Triple
from mae_hf.config.model import MAX_SIZE, ClassifierConfig, EncoderConfig
from mae_hf.errors import ConfigError, require
from mae_hf.models.locate import FIX_INIT, FIX_MODEL, SCRATCH, find_model

PROCESSOR = "preprocessor_config.json"
POSITION_TABLES = ("position_embeddings", "decoder_pos_embed")
SHAPE_KEYS = tuple(field.name for field in fields(EncoderConfig))
ENCODER_KEYS = (
    *(*SHAPE_KEYS, "num_channels", "qkv_bias", "hidden_act", "initializer_range", "layer_norm_eps"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
)

# A weight's name in memory -> in files that transformers 4 and 5 both read. Files of 5.x lose the decoder in 4.x.
SAVED_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
# The way back, for files of 4.x, of 5.x (`decoder_encoder`) and of mae_hf; transformers applies them in this order.
LOADED_NAMES = {r"decoder_encoder\.layer\.": "decoder_layers.", r"encoder\.layer\.": "layers."}
LOADED_NAMES |= {re.escape(file): memory for memory, file in SAVED_NAMES.items()}

_FILES = ["*.json", "*.safetensors"]  # what is downloaded from the top folder of a repository
MAX_PARAMETERS = 4 * 2**30  # that a config may describe
_NO_SAFETENSORS = (
    "it has no model.safetensors, and pytorch_model.bin may hold code. If you trust the model, open it in transformers "
    "and save it again with save_pretrained"
)


@dataclass(frozen=True)
class Checkpoint:
    """A saved model, which may be untrusted."""

    name: str  # run folder, model folder or Hub id
    fix: str = FIX_MODEL  # what the user can do about an error; ends every message
    revision: str | None = None  # branch, tag or commit on the Hub

    @cached_property
    def folder(self) -> Path:
        """The folder of its files, downloaded if the model is on the Hub, whose last copy is taken without a network.

        Raises:
            ConfigError: neither a folder here nor the Hub has such a model.
        """
        folder = find_model(self.name, self.fix)
        if folder is not None:
            require(
                self.revision is None,
                f"{self.name} is a local folder, which has no revision {self.revision}: remove it (--model.revision "
                "null)",
            )
            return folder
        files: dict[str, Any] = {"revision": self.revision, "allow_patterns": _FILES, "ignore_patterns": "*/*"}
        try:  # asked once, because other requests are repeated for minutes
            HfApi().model_info(self.name, revision=self.revision, timeout=10)
        except Exception as error:  # of the HTTP library, the Hub or the offline mode
            try:
                return Path(snapshot_download(self.name, local_files_only=True, **files))
            except Exception:
                where = f"{self.name} at revision {self.revision}" if self.revision else self.name
                raise ConfigError(
                    f"{where} is not a folder here and cannot be read from the Hub ({type(error).__name__}): check the "
                    f"name and the network, or {self.fix}"
                ) from error
        with self.opening():
            return Path(snapshot_download(self.name, **files))

    @property
    def commit(self) -> str | None:
        """The commit on the Hub, after which the folder in the Hub's cache is named; None for any other folder."""
        return self.folder.name if re.fullmatch("[0-9a-f]{40}", self.folder.name) else None

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Keep transformers quiet while it reads the checkpoint, and turn its errors into one line.

        Raises:
            ConfigError: the checkpoint is missing or cannot be read.
        """
        try:
            with quiet_transformers():
                yield
        except Exception as error:  # transformers raises errors of almost any type on malformed files
            reason = " ".join(str(error).split("\n\n")[0].split()).rstrip(".") or type(error).__name__
            if re.search(r"(no|have a) file named model\.safetensors", reason):
                reason = _NO_SAFETENSORS
            raise ConfigError(f"{self.name} cannot be opened ({reason}): {self.fix}") from error

    def file(self, name: str) -> Path | None:
        """Return a file of the model, None if the model has no such file."""
        path = self.folder / name
        return path if path.is_file() else None

    def config(self) -> Any:
        """Return the transformers config, after checks that nothing in it runs code or exhausts the memory.

        Raises:
            ConfigError: the config is missing, names code, an adapter or quantised weights, or describes a model that
                is too large.
        """
        adapter, index = self.file("adapter_config.json"), self.file("model.safetensors.index.json")
        with self.opening():
            content, _ = PreTrainedConfig.get_config_dict(self.folder)
            files = json.loads(index.read_text())["weight_map"].values() if index else []
        for key, what in (("auto_map", "code"), ("quantization_config", "quantised weights")):
            self._require(not content.get(key), f"comes with {what} ({key} in config.json), which is not opened")
        self._require(adapter is None, "comes with an adapter (adapter_config.json), which is not opened")
        strange = [str(file) for file in files if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", str(file))]
        self._require(not strange, f"has weights in {', '.join(strange[:1])}, not beside its index as safetensors")
        classes = content.get("architectures") or []
        is_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        self._require(is_names, f"has architectures {classes} in its config.json, not a list of names")
        names = {"num_channels", *SHAPE_KEYS, *(f"decoder_{key}" for key in SHAPE_KEYS)}
        sizes = {key: value for key, value in content.items() if key in names}
        for key, value in sizes.items():
            self._require(
                type(value) is int and 0 < value <= MAX_SIZE,
                f"has {key} {str(value)[:40]} in its config.json, not a number from 1 to {MAX_SIZE}",
            )
        total = _num_parameters(sizes)
        self._require(total <= MAX_PARAMETERS, f"has {total:.1e} parameters by its config.json, too many to open")
        with self.opening():
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)

    def load(
        self, from_pretrained: Callable[..., Any], unused: tuple[str, ...] = (), path: Any = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return the model and the loading info, after checks that all weights and positions have arrived.

        Args:
            from_pretrained: method of the model's class.
            unused: prefixes of weights that the checkpoint may hold and the model does not need.
            path: what to open instead of the checkpoint's own path.
            options: of `from_pretrained`.

        Raises:
            ConfigError: weights are missing, left over or of another shape, or a position table is all zero or not
                finite.
        """
        # The check below names weights of another shape.
        options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        if self.commit and not any(self.folder.glob("*.safetensors")):
            path = self.name  # by this name, transformers can find a copy that the Hub has converted
        with self.opening():
            model, info = from_pretrained(
                path or self.folder, use_safetensors=True, weights_only=True, trust_remote_code=False, **options
            )
        shapes = [f"{key} is {list(theirs)}, not {list(ours)}" for key, theirs, ours in sorted(info["mismatched_keys"])]
        left_over = sorted(key for key in info["unexpected_keys"] if not key.startswith(unused))
        for problem, keys in (
            ("has weights of another shape", shapes),
            ("has no weights for", sorted(info["missing_keys"])),
            ("has weights that its config has no place for", left_over),
        ):
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            self._require(not keys, f"{problem}: {', '.join(keys[:3])}{more}")
        for key, table in model.named_parameters():
            if key.endswith(POSITION_TABLES):
                self._require(bool(table.isfinite().all()), f"has a position table {key} that is not finite")
                self._require(
                    bool(table[:, 1:].any()),
                    f"has a position table {key} that is all zero, as transformers 5 leaves it in a ViTMAE trained "
                    "from scratch, so the weights know no positions",
                )
        return model, info

    def _require(self, condition: bool, problem: str) -> None:
        require(condition, f"{self.name} {problem}: {self.fix}")


# ---- models ----


def open_classifier(name: str, attn_implementation: str) -> ViTForImageClassification:
    """Return the classifier in a run folder, model folder or Hub repository, in eval mode.

    Raises:
        ConfigError: the model is missing, of another kind, or incomplete.
    """
    checkpoint = Checkpoint(name)
    architectures = checkpoint.config().architectures or []
    require(
        "ViTForImageClassification" in architectures,
        f"{name} is a {', '.join(architectures) or 'model without a class'}, not a classifier: probe its features "
        "instead (--probe knn,linear), or name a fine-tuned model (--model)",
    )
    options: dict[str, Any] = {"attn_implementation": attn_implementation, "dtype": torch.float32}
    model: ViTForImageClassification = checkpoint.load(ViTForImageClassification.from_pretrained, **options)[0]
    return model.eval()


def open_encoder(checkpoint: Checkpoint | str, attn_implementation: str, labelled: bool = True) -> ViTModel:
    """Return the plain encoder of a masked autoencoder, an exported encoder or a classifier, float32, in eval mode.

    Without `labelled`, the encoder of a classifier, which was trained with labels, is refused.

    Raises:
        ConfigError: the model is missing, of another kind, or incomplete.
    """
    checkpoint = Checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    name, fix, saved = checkpoint.name, checkpoint.fix, checkpoint.config()
    require(
        saved.model_type in ("vit_mae", "vit"),
        f"{name} is a model of type {saved.model_type!r}, the encoder must be one of vit_mae, vit: {fix}",
    )
    require(
        labelled or "ViTForImageClassification" not in (saved.architectures or []),
        f"{name} is a classifier that was already trained with labels, not a pre-trained encoder: {fix}",
    )
    with checkpoint.opening():
        options = {"config": encoder_config(saved), "attn_implementation": attn_implementation, "dtype": torch.float32}
    unused = ("decoder.", "pooler.", "vit.pooler.", *(("classifier.",) if labelled else ()))
    encoder: ViTModel = checkpoint.load(ViTModel.from_pretrained, unused, add_pooling_layer=False, **options)[0]
    return encoder.eval()


def encoder_config(config: ViTMAEConfig | ViTConfig, **extra: Any) -> ViTConfig:
    """Return a clean `ViTConfig` of the encoder in `config`, without keys of the decoder, the mask or the loss."""
    return ViTConfig(**{key: getattr(config, key) for key in ENCODER_KEYS}, **extra)


def image_size_of(model: ViTForImageClassification | ViTModel) -> int:
    """Return the side of the square images that the model takes."""
    return int((model.vit if isinstance(model, ViTForImageClassification) else model).embeddings.image_size[0])


# ---- facts about a model ----


def weights_digest(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that change with any weight of the model; a pooler does not count."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("pooler."):  # nothing in mae_hf uses the pooler of an exported encoder
            continue
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def hub_revision(name: str, revision: str | None = None) -> str | None:
    """Return the commit of the Hub repository that the model was read from, None for a local folder."""
    return Checkpoint(name, revision=revision).commit


def read_normalization(name: str, revision: str | None = None) -> tuple[Triple, Triple]:
    """Return the channel means and standard deviations of the model's image processor.

    Raises:
        ConfigError: the model has no `preprocessor_config.json`, or it cannot be read.
    """
    checkpoint = Checkpoint(name, revision=revision)
    file = checkpoint.file(PROCESSOR)
    if file is None:
        raise ConfigError(f"{name} has no {PROCESSOR}, which says how to normalise images: {FIX_MODEL}")
    with checkpoint.opening():
        processor = json.loads(file.read_text())
        (r, g, b), (std_r, std_g, std_b) = processor["image_mean"], processor["image_std"]
    return (r, g, b), (std_r, std_g, std_b)


def check_init(model: ClassifierConfig, data: DataConfig) -> None:
    """Check, before any image is decoded, that the encoder exists and was trained with the normalisation of `data`.

    Raises:
        ConfigError: the encoder is missing, or its image processor has a different mean or standard deviation.
    """
    init = model.init
    if init == SCRATCH or Checkpoint(init, FIX_INIT, model.revision).file(PROCESSOR) is None:
        return  # an encoder without an image processor makes no claim
    mean, std = read_normalization(init, model.revision)
    require(
        np.allclose((mean, std), (data.image_mean, data.image_std), atol=1e-6),
        f"the encoder {init} was trained on images normalised with mean {list(mean)} and std {list(std)}: add "
        f"--data.image_mean '{list(mean)}' --data.image_std '{list(std)}'",
    )


# ---- files ----


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' load report and progress bars while a model is opened or saved."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def saved_name(name: str) -> str:
    """Return the name that a weight of `MaskedAutoencoder` has in a file."""
    name = re.sub(r"^vit\.layers\.", "vit.encoder.layer.", name)
    for memory, file in SAVED_NAMES.items():
        name = name.replace(f".{memory}.", f".{file}.")
    return name


def _num_parameters(sizes: dict[str, int]) -> int:
    """Return roughly how many parameters a config describes; the defaults are the sizes of ViT-Base."""
    tokens = (sizes.get("image_size", 224) // sizes.get("patch_size", 16)) ** 2
    pixels = sizes.get("num_channels", 3) * sizes.get("patch_size", 16) ** 2
    total = 0
    for prefix in ("", "decoder_") if any(key.startswith("decoder_") for key in sizes) else ("",):
        width, mlp = sizes.get(f"{prefix}hidden_size", 768), sizes.get(f"{prefix}intermediate_size", 3072)
        total += sizes.get(f"{prefix}num_hidden_layers", 12) * width * (4 * width + 2 * mlp) + (tokens + pixels) * width
    return total
