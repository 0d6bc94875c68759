"""Open models, trusted or not, check that every weight has arrived, and read what their files say about them.

No code of an untrusted model is executed: weights are read from safetensors only, and `config.json` is checked first.
"""

import hashlib
import json
import re
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTModel
from transformers.utils import logging

from mae_hf.config.data import DataConfig, Resize
from mae_hf.config.model import MAX_SIZE, EncoderConfig
from mae_hf.data.hub_errors import explain_hub_error
from mae_hf.errors import ConfigError, require, shorten
from mae_hf.models.initialization import tells_patches_apart
from mae_hf.models.locate import AUTOENCODER, FIX_MODEL, find_model

PROCESSOR = "preprocessor_config.json"
RESIZE_KEY = "mae_hf_resize"  # in it, for a `data.resize` that the keys of transformers do not tell
SHAPE_KEYS = tuple(field.name for field in fields(EncoderConfig))
ENCODER_KEYS = (
    *(*SHAPE_KEYS, "num_channels", "qkv_bias", "hidden_act", "initializer_range", "layer_norm_eps"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
)
MAX_PARAMETERS = 4 * 2**30  # that a config may describe

_NO_SAFETENSORS = (
    "it has no model.safetensors, and pytorch_model.bin may hold code. If you trust the model, open it in transformers "
    "and save it again with save_pretrained"
)


@dataclass(frozen=True)
class SavedModel:
    """A saved model, which may be untrusted. Every method raises ConfigError if the model is missing or malformed."""

    name: str  # run folder, model folder or Hub id
    fix: str = FIX_MODEL  # what the user can do about an error; ends every message
    revision: str | None = None  # branch, tag or commit on the Hub

    @cached_property
    def folder(self) -> Path:
        """The folder of its files. A model on the Hub is downloaded. Without a network, the last download is used."""
        folder = find_model(self.name, self.fix)
        if folder is not None:
            problem = f"is a local folder, which has no revision {self.revision}: remove it (--model.revision null)"
            require(self.revision is None, f"{self.name} {problem}")
            return folder
        try:  # asked once, because other requests are repeated for minutes
            info = HfApi().model_info(self.name, revision=self.revision, timeout=10)
        except Exception as error:  # of the HTTP library, the Hub or the offline mode
            try:
                snapshot = snapshot_download(self.name, revision=self.revision, local_files_only=True)
                return find_model(snapshot, self.fix) or Path(snapshot)
            except Exception:
                raise self._unreadable(error) from error
        names = [file.rfilename for file in info.siblings or ()]
        part = AUTOENCODER if f"{AUTOENCODER}/config.json" in names else "."
        files = [name for name in names if str(Path(name).parent) == part and name.endswith((".json", ".safetensors"))]
        try:
            with quiet_transformers():
                return Path(snapshot_download(self.name, revision=self.revision, allow_patterns=files), part)
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ConfigError:
        where = f"{self.name} at revision {self.revision}" if self.revision else self.name
        cause, fix = explain_hub_error(error, self.name) or (f"{type(error).__name__}: {error}", "check the disk")
        problem = f"{where} is not a folder here and cannot be read from the Hub ({cause})"
        return ConfigError(f"{problem}: {fix}, then run the same command again, or {self.fix}")

    @property
    def commit(self) -> str | None:
        """The commit on the Hub, after which the folder in the Hub's cache is named; None for any other folder."""
        folder = self.folder.parent if self.folder.name == AUTOENCODER else self.folder
        return folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else None

    @property
    def has_decoder(self) -> bool:
        """Whether it has weights of a decoder; assumed of weights that only the Hub has in safetensors."""
        files = sorted(self.folder.glob("*.safetensors"))
        self._require(bool(files or self.commit), f"cannot be opened ({_NO_SAFETENSORS})")
        with self.opening():
            names = [name for file in files for name in safe_open(file, framework="pt").offset_keys()]
        is_mae = self.config().model_type == "vit_mae"
        return is_mae and (not files or any(name.startswith("decoder.") for name in names))

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Keep transformers quiet while it reads the model, and turn its errors into one line."""
        try:
            with quiet_transformers():
                yield
        except Exception as error:  # transformers raises errors of almost any type on malformed files
            reason = " ".join(str(error).split("\n\n")[0].split()).rstrip(".") or type(error).__name__
            if re.search(r"(no|have a) file named model\.safetensors", reason):
                reason = _NO_SAFETENSORS
            raise ConfigError(f"{self.name} cannot be opened ({reason}): {self.fix}") from error

    def config(self) -> Any:
        """Return the transformers config, after checks that nothing in it runs code or exhausts the memory."""
        folder = self.folder
        with self.opening():
            problem = next(config_problems(folder), "")
            config = None if problem else AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self._require(not problem, problem)
        return config

    def load(self, from_pretrained: Callable[..., Any], unused: tuple[str, ...] = (), **options: Any) -> Any:
        """Return the model that a class's `from_pretrained` opens, after checks that all weights have arrived.

        Weights with the prefixes `unused` may be left over. A position table that is all zero or not finite is refused.
        """
        path: Path | str = self.folder
        if self.commit and not any(self.folder.glob("*.safetensors")):
            path = self.name  # by this name, transformers finds a copy that the Hub has converted
            options["revision"] = self.revision or "main"
        # The check below names weights of another shape.
        options |= {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        with self.opening():
            model, info = from_pretrained(path, weights_only=True, trust_remote_code=False, **options)
        shapes = [f"{key} is {list(theirs)}, not {list(ours)}" for key, theirs, ours in sorted(info["mismatched_keys"])]
        left_over = sorted(key for key in info["unexpected_keys"] if not key.startswith(unused))
        self._require(not shapes, f"has weights of another shape: {shorten(shapes)}")
        missing = sorted(info["missing_keys"])
        self._require(not missing, f"has no weights for: {shorten(missing)}")
        self._require(not left_over, f"has weights that its config has no place for: {shorten(left_over)}")
        for key, table in model.named_parameters():
            if key.endswith(("position_embeddings", "decoder_pos_embed")):
                problem = "that is not finite or equal for all patches, as transformers 5 leaves it in a new ViTMAE"
                self._require(tells_patches_apart(table), f"has a position table {key} {problem}")
        return model

    def preparation(self) -> dict[str, Any]:
        """Return `image_mean`, `image_std` and, if the model's image processor says it, `resize` of `DataConfig`."""
        file = self.folder / PROCESSOR
        self._require(file.is_file(), f"has no {PROCESSOR}, which says how to normalise images")
        with self.opening():
            processor = json.loads(file.read_text())
            means, stds = (tuple(map(float, processor[key])) for key in ("image_mean", "image_std"))
            if not len(means) == len(stds) == 3:
                raise ValueError(f"{PROCESSOR} does not have three channels")
            size = processor.get("size")
        is_cropped = processor.get("do_center_crop") is True and isinstance(size, dict) and "shortest_edge" in size
        resize = processor.get(RESIZE_KEY, "crop" if is_cropped else None)
        is_known = resize in (None, *typing.get_args(Resize))
        self._require(is_known, f"has {RESIZE_KEY} {str(resize)[:40]} in its {PROCESSOR}")
        return {"image_mean": means, "image_std": stds} | ({"resize": resize} if resize else {})

    def _require(self, condition: bool, problem: str) -> None:
        require(condition, f"{self.name} {problem}: {self.fix}")


def config_problems(folder: Path) -> Iterator[str]:
    """Yield each reason not to open a model, as the end of a sentence. Malformed files raise any error."""
    index = folder / "model.safetensors.index.json"
    content, _ = PreTrainedConfig.get_config_dict(folder)
    files = json.loads(index.read_text())["weight_map"].values() if index.is_file() else []
    if content.get("auto_map"):
        yield "comes with code (auto_map in config.json), which is not opened"
    if content.get("quantization_config"):
        yield "has quantised weights (quantization_config in config.json), which are not opened"
    if (folder / "adapter_config.json").exists():
        yield "comes with an adapter (adapter_config.json), which is not opened"
    for file in [str(file) for file in files if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", str(file))][:1]:
        yield f"has weights in {file}, not beside its index as safetensors"
    kind, classes = content.get("model_type"), content.get("architectures") or []
    if kind not in ("vit", "vit_mae"):
        yield f"is a model of type {kind!r}, not vit or vit_mae"
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        yield f"has architectures {classes} in its config.json, not a list of names"
    for key in ("num_channels", *SHAPE_KEYS, *(f"decoder_{key}" for key in SHAPE_KEYS)):
        size = content.get(key, 1)
        if type(size) is not int or not 0 < size <= MAX_SIZE:
            yield f"has {key} {str(size)[:40]} in its config.json, not a number from 1 to {MAX_SIZE}"
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for part in ("", "decoder_") if kind == "vit_mae" else ("",):
        width, heads = (getattr(config, f"{part}{key}") for key in ("hidden_size", "num_attention_heads"))
        if width % heads:
            yield f"has {part}num_attention_heads {heads} in its config.json, which does not divide the width {width}"
    tokens = (config.image_size // config.patch_size) ** 2 + config.num_channels * config.patch_size**2
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size")
    parts = [[getattr(config, part + size, 0) for size in sizes] for part in ("", "decoder_")]
    total = sum(width * (depth * (4 * width + 2 * mlp) + tokens) for depth, width, mlp in parts)
    if total > MAX_PARAMETERS:
        yield f"has {total:.1e} parameters by its config.json, too many to open"


# ---- models, float32 and in eval mode, and facts about them; their functions raise ConfigError as SavedModel does ----


def open_classifier(name: str, attn_implementation: str) -> ViTForImageClassification:
    """Return the classifier of that name."""
    saved = SavedModel(name)
    architectures = saved.config().architectures or []
    kind = ", ".join(architectures) or "model without a class"
    fix = "probe its features instead (evaluate --probe knn,linear), or name a fine-tuned model (--model)"
    require("ViTForImageClassification" in architectures, f"{name} is a {kind}, not a classifier: {fix}")
    options: dict[str, Any] = {"attn_implementation": attn_implementation, "dtype": torch.float32}
    model: ViTForImageClassification = saved.load(ViTForImageClassification.from_pretrained, **options)
    return model.eval()


def open_encoder(saved: SavedModel | str, attn_implementation: str, labelled: bool = True) -> ViTModel:
    """Return the plain encoder of a masked autoencoder, an exported encoder or, if `labelled`, a classifier."""
    saved = SavedModel(saved) if isinstance(saved, str) else saved
    config = saved.config()
    with saved.opening():
        options = {"config": encoder_config(config), "attn_implementation": attn_implementation, "dtype": torch.float32}
    unused = ("decoder.", "pooler.", "vit.pooler.", "embeddings.mask_token", "vit.embeddings.mask_token")
    unused = (*unused, *(("classifier.",) if labelled else ()))
    encoder: ViTModel = saved.load(ViTModel.from_pretrained, unused, add_pooling_layer=False, **options)
    return encoder.eval()


def encoder_config(config: ViTMAEConfig | ViTConfig, **extra: Any) -> ViTConfig:
    """Return a clean `ViTConfig` of the encoder in `config`, without keys of the decoder, the mask or the loss."""
    return ViTConfig(**{key: getattr(config, key) for key in ENCODER_KEYS} | extra)


def image_size_of(model: ViTForImageClassification | ViTModel) -> int:
    """Return the side of the square images that the model takes."""
    side: Any = model.config.image_size
    return int(side)


def weights_digest(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that change with any weight of the model; a pooler does not count."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith("pooler."):  # nothing in mae_hf uses the pooler of an exported encoder
            digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def prepared_as(name: str, data: DataConfig) -> DataConfig:
    """Return the config of images with the normalisation and `data.resize` of a model, as far as it says them."""
    return replace(data, **SavedModel(name).preparation())


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
