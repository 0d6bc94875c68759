"""What is wrong with the files of a model, trusted or not, and how to mend it.

Only JSON and safetensors are read. No code of the model is executed.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, ViTForImageClassification, ViTMAEForPreTraining

from mae_hf.errors import ConfigError, Finding, shorten
from mae_hf.files import read_json
from mae_hf.models.initialization import is_sincos, tells_patches_apart
from mae_hf.models.io import PROCESSOR, RESIZE_KEY, SavedModel, config_problems
from mae_hf.models.mae import LOADED_NAMES

Shapes = dict[str, tuple[int, ...]]

_COPY = "download or copy the model again"
_EARLIER = "take a different checkpoint, or train again"
_SIZES = f"{_COPY}, or correct config.json"
_FILL = "pre-train anew (mae_hf pretrain), or fill both tables (docs/stock_vit_mae.md) and continue training"
_SAVE = "save it again: mae_hf.models.mae.MaskedAutoencoder.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
_NAME = "set id2label and label2id in config.json to the names of the classes, in the order of training"


def examine_model(folder: Path) -> Iterator[Finding]:
    """Yield findings about a folder with a ViTMAE or ViT: config, weights, positions, processor, labels."""
    content, shapes, findings = _read_config(folder)
    yield from findings
    weights, unreadable = _read_weights(folder)
    yield from unreadable
    is_classifier = "ViTForImageClassification" in str(content.get("architectures"))
    if weights:
        yield from _check_values(weights)
        yield from _check_decoder(weights, content)
    if weights and shapes and not unreadable:
        yield from _check_shapes(weights, shapes, is_classifier)
    for name, weight in weights.items():
        if name.endswith(("embeddings.position_embeddings", "decoder.decoder_pos_embed")):
            yield from _check_table("decoder" if name.startswith("decoder.") else "encoder", weight.float(), content)
    yield from _check_processor(folder, content)
    if is_classifier:
        yield from _check_labels(content, weights.get("classifier.weight"))


# ---- files ----


def _read_config(folder: Path) -> tuple[dict[str, Any], Shapes, list[Finding]]:
    """Return the content of config.json, the shapes of the weights in memory (empty if unknown), and findings."""
    content, problems = dict[str, Any](), list[str]()
    try:
        content = read_json(folder / "config.json", dict[str, object])
        with SavedModel("config.json", _SIZES).opening():
            problems += config_problems(folder)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            kind: Any = ViTMAEForPreTraining if config.model_type == "vit_mae" else ViTForImageClassification
            with torch.device("meta"):  # without memory for the weights
                weights = {} if problems else kind(config).state_dict()
    except ConfigError as error:
        if not problems:
            return content, {}, [Finding("fault", str(error))]
    if problems:
        return content, {}, [Finding("fault", f"the model {problem}", _SIZES) for problem in problems]
    shape = f"{config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}"
    images = f"images of {config.image_size} px in patches of {config.patch_size} px"
    shapes = {name.removeprefix("vit."): tuple(value.shape) for name, value in weights.items()}
    return content, shapes, [Finding("ok", f"config.json: {shape}, {images}")]


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], list[Finding]]:
    """Return the weights by name, and why files cannot be read."""
    weights, findings = dict[str, Tensor](), list[Finding]()
    whole = folder / "model.safetensors"  # beside which others, such as in fp16, are not opened
    for file in [whole] if whole.exists() else sorted(folder.glob("*.safetensors")):
        try:
            if not file.is_file():  # a pipe would block
                raise FileNotFoundError("not a file")
            weights |= load_file(file)
        except Exception as error:  # of safetensors and torch, of many types for damaged files
            problem = f"{file.name} is cut short, damaged or a pointer of Git LFS ({error})"
            findings.append(Finding("fault", problem, _COPY))
    if not weights and not findings and SavedModel(str(folder)).commit:
        text = "model.safetensors is not in this repository: a copy that the Hub has converted is not examined"
        findings.append(Finding("note", text))
    elif not weights and not findings:
        fix = "download it again. If there is only pytorch_model.bin, it may hold code: save it again in transformers"
        findings.append(Finding("fault", "model.safetensors is missing", fix))
    return weights, findings


# ---- weights ----


def _faults(weights: Mapping[str, list[str]], fix: str) -> list[Finding]:
    """Return a finding for each problem that some weights have, from their names by problem."""
    named = {f"weights that {problem} ({len(names)})": names for problem, names in weights.items() if names}
    return [Finding("fault", f"{problem}: {shorten(names)}", fix) for problem, names in named.items()]


def _only_value(weight: Tensor) -> float | None:
    """Return the value that a weight has in all places, or None."""
    low, high = weight.float().aminmax() if weight.numel() else (0.0, 0.0)
    return float(low) if low == high else None


def _check_values(weights: Mapping[str, Tensor]) -> Iterator[Finding]:
    values = {name: _only_value(weight) for name, weight in weights.items() if name.endswith(".weight")}
    # the weights of a new LayerNorm are 1
    constant = [name for name in values if values[name] == 0 or (values[name] and weights[name].dim() > 1)]
    infinite = [name for name, weight in weights.items() if not weight.float().isfinite().all()]
    quantised = [name for name, weight in weights.items() if not weight.is_floating_point()]
    effect = "have one value in all places, so these layers ignore their input"
    faults = {"hold NaN or infinity": infinite, effect: constant, "are whole numbers, so quantised": quantised}
    yield from _faults(faults, _EARLIER)
    kinds = ", ".join(Counter(str(weight.dtype).removeprefix("torch.") for weight in weights.values()))
    yield Finding("ok" if kinds == "float32" else "note", f"{len(weights)} weights, stored as {kinds}")


def _check_decoder(weights: Mapping[str, Tensor], content: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield whether a decoder is missing, lost between versions of transformers, or new, and if the model is new."""
    # biases, because half precision may round trained weights to their first value, 1
    norms = {name: _only_value(weights[name]) == 0 for name in weights if re.search(r"norm_\w+\.bias$", name)}
    of_decoder = [is_new for name, is_new in norms.items() if name.startswith("decoder.")]
    of_encoder = [is_new for name, is_new in norms.items() if not name.startswith("decoder.")]
    if content.get("model_type") == "vit_mae" and not any(name.startswith("decoder.") for name in weights):
        fix = "take the whole model. The encoder alone is enough for features, and for mae_hf pretrain --model.init"
        yield Finding("fault", "the decoder is missing, so the model cannot reconstruct images", fix)
    if any(name.startswith("decoder.decoder_encoder.") for name in weights):
        problem = "transformers 4 silently loses this decoder, because transformers 5 saved it under new names"
        yield Finding("fault", problem, _SAVE)
    if of_encoder and all(of_encoder):
        yield Finding("note", "the LayerNorms have their first values: the model was saved before it was trained")
    elif of_decoder and all(of_decoder):
        problem = "the decoder is new, but the encoder is trained. Transformers 4 does this to files of transformers 5"
        yield Finding("fault", problem, "take the original file, or train further (mae_hf pretrain --model.init)")


def _check_shapes(weights: Mapping[str, Tensor], shapes: Shapes, is_classifier: bool) -> Iterator[Finding]:
    """Yield which weights are missing, are left over, or have a different shape than the config says."""
    found = dict[str, tuple[int, ...]]()
    for name, weight in weights.items():
        for pattern, replacement in LOADED_NAMES.items():  # files of transformers 4 and 5
            name = re.sub(pattern, replacement, name)
        found[name.removeprefix("vit.")] = tuple(weight.shape)
    optional = ("pooler.", "embeddings.mask_token") + (() if is_classifier else ("classifier.",))
    optional += () if any(name.startswith("decoder.") for name in found) else ("decoder.",)
    missing = [name for name in shapes if name not in found and not name.startswith(optional)]
    left_over = [name for name in found if name not in shapes and not name.startswith(optional)]
    both = [name for name in shapes if name in found and not name.startswith("classifier.")]  # see `_check_labels`
    differing = [f"{name} {found[name]}, not {shapes[name]}" for name in both if found[name] != shapes[name]]
    faults = {"are missing": missing, "have no place in this model": left_over, "have a wrong shape": differing}
    yield from _faults(faults, _SIZES)


def _check_table(part: str, table: Tensor, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield whether a position table has a different row for each patch, and fits its kind of model."""
    if table.dim() != 3 or not table.numel() or table.shape[1] < 2 or not table.isfinite().all():
        return  # reported by its shape, or as not finite
    rows, name = table[0, 1:], f"the position table of the {part}"
    num_zero, num_different = int((rows == 0).all(1).sum()), len(rows.unique(dim=0))
    if not tells_patches_apart(table):
        value = "zero, as in a new ViTMAE of stock transformers" if num_zero == len(rows) else "equal for all patches"
        effect = "learned without positions" if part == "encoder" else "predicts the same for every masked patch"
        yield Finding("fault", f"{name} is {value}, so the model {effect}", _FILL)
    elif num_different < len(rows):
        problem = f"has {num_different} different rows for {len(rows)} patches, and {num_zero} zero rows"
        yield Finding("fault", f"{name} {problem}", _EARLIER)
    elif content.get("model_type") != "vit_mae" or is_sincos(table):
        kind = "sine-cosine" if is_sincos(table) else "learned"
        yield Finding("ok", f"{name} is {kind}, with a row for each of {len(rows)} patches")
    elif part == "encoder" and "mae_loss" in content:
        yield Finding("note", f"{name} is learned, because the encoder comes from a ViT")
    else:
        fix = "take the original file, unless the model was trained with this table"
        yield Finding("fault", f"{name} is not sine-cosine, but a ViTMAE has a sine-cosine table", fix)


# ---- what comes with the weights ----


def _check_processor(folder: Path, content: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        processor = read_json(folder / PROCESSOR, dict[str, object])
    except ConfigError as error:
        yield Finding("fault", str(error))
        return
    problems, side, channels = list[str](), content.get("image_size"), content.get("num_channels", 3)
    for key, low in (("image_mean", 0), ("image_std", 0.02)):
        values = processor.get(key)
        is_numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not is_numbers or len(values) != channels:
            problems.append(f"{key} is {str(values)[:80]}, not {channels} numbers")
        elif not all(low <= value <= 1 for value in values):
            hint = ": they are for pixels up to 255, divide them by 255" if max(values) > 2 else ""
            problems.append(f"{key} is {values}, not between {low:g} and 1{hint}")
    for key in ("do_rescale", "do_normalize"):
        if processor.get(key, True) is not True:
            problems.append(f"{key} is {processor[key]}, so images are not normalised")
    factor, is_cropped = processor.get("rescale_factor", 1 / 255), processor.get("do_center_crop") is True
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 0.01:
        problems.append(f"rescale_factor is {str(factor)[:80]}, not 1/255, by which the statistics scale pixels")
    if processor.get("do_resize", True) is not True and processor.get(RESIZE_KEY) != "pad":
        problems.append(f"do_resize is {processor['do_resize']}, so only images of one size can be opened")
    size = processor.get("crop_size" if is_cropped else "size")
    if not is_cropped and isinstance(size, dict) and "shortest_edge" in size and processor.get(RESIZE_KEY) != "pad":
        problems.append("images are resized by their shortest edge, but not cropped to a square (do_center_crop)")
    if side is not None and any(each != side for each in (size.values() if isinstance(size, dict) else [size])):
        problems.append(f"images become {size}, but image_size of config.json is {side}")
    for problem in problems:
        yield Finding("fault", f"{PROCESSOR}: {problem}", "set the value that training used")
    if not problems:
        yield Finding("ok", f"{PROCESSOR}: statistics and size fit the model")


def _check_labels(content: Mapping[str, Any], head: Tensor | None) -> Iterator[Finding]:
    labels = content.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # which transformers leaves out of the file
    if not isinstance(labels, dict) or set(labels) != set(map(str, range(len(labels)))):
        yield Finding("fault", "id2label in config.json does not number the classes from 0", _NAME)
        return
    names = [str(labels[str(number)]) for number in range(len(labels))]
    problems = []
    if unnamed := [name for name in names if re.fullmatch(r"LABEL_\d+|\s*", name)]:
        problems.append(f"{len(unnamed)} of {len(names)} classes have no name: {shorten(unnamed)}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    numbers = {str(name): str(number) for name, number in dict(content.get("label2id") or {}).items()}
    if not (problems or twice) and numbers not in ({}, {name: str(number) for number, name in enumerate(names)}):
        problems.append("label2id in config.json contradicts id2label")
    if head is not None and head.shape[:1] != (len(names),):
        problems.append(f"config.json names {len(names)} classes, but the classifier has the shape {tuple(head.shape)}")
    yield from (Finding("fault", problem, _NAME) for problem in problems)
    if twice:
        yield Finding("note", f"several classes have the same name: {shorten(twice)}")
    if not problems:
        yield Finding("ok", f"{len(names)} classes with names: {shorten(names)}")
