"""Untrusted model folders open only with safetensors and known classes, and end in one line otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fuzz import examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig

from mae_hf.commands.demo_page import open_shown
from mae_hf.config.model import ClassifierConfig
from mae_hf.errors import ConfigError
from mae_hf.models.classifier import load_encoder
from mae_hf.models.io import open_classifier, open_encoder
from mae_hf.models.mae import MaskedAutoencoder

SHAPE = {"image_size": 12, "patch_size": 6, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE["intermediate_size"] = 16

OPENERS: dict[str, Callable[[str], object]] = {
    "classifier": lambda path: open_classifier(path, "sdpa"),
    "encoder": lambda path: open_encoder(path, "sdpa"),
    "init": lambda path: load_encoder(ClassifierConfig(**SHAPE, init=path), "sdpa"),
    "autoencoder": MaskedAutoencoder.from_pretrained,
}


class Marker:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("kind", OPENERS)
def test_pickled_weights_are_never_opened(model: Path, kind: str, tmp_path: Path):
    (model / "model.safetensors").unlink()
    torch.save({"classifier.bias": Marker(tmp_path / "ran")}, model / "pytorch_model.bin")
    if kind in ("autoencoder", "init"):
        change(model, model_type="vit_mae", architectures=["ViTMAEForPreTraining"])
    with pytest.raises(ConfigError, match=r"safetensors.*save_pretrained"):
        OPENERS[kind](str(model))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", OPENERS)
@pytest.mark.parametrize("model_type", ["vit", "its_own"])
def test_code_that_comes_with_a_model_is_never_run(model: Path, kind: str, model_type: str, tmp_path: Path):
    (model / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    names = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForImageClassification": "own.Model"}
    change(model, model_type=model_type, auto_map=names)
    with pytest.raises(ConfigError, match="comes with code"):
        OPENERS[kind](str(model))
    assert not (tmp_path / "ran").exists()


def test_the_demo_checks_a_model_in_the_same_way(model: Path):
    pytest.importorskip("gradio")
    change(model, auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(ConfigError, match="comes with code"):
        open_shown(str(model))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
        ({"hidden_size": "8"}, "hidden_size 8"),
        ({"image_size": 65536, "patch_size": 1}, "too many to open"),
        ({"hidden_size": 60_000, "num_hidden_layers": 60_000}, "too many to open"),
        ({"patch_size": 0}, "patch_size 0"),
        ({"id2label": "<script>"}, "cannot be opened"),
        ({"hidden_act": "eval"}, "cannot be opened"),
    ],
)
def test_a_config_of_a_huge_model_is_refused_before_memory_is_allocated(model: Path, values: dict, message: str):
    change(model, **values)
    with pytest.raises(ConfigError, match=message):
        open_classifier(str(model), "sdpa")


def test_an_adapter_beside_a_model_is_refused(model: Path):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else", "peft_type": "LORA"}')
    with pytest.raises(ConfigError, match="adapter"):
        open_encoder(str(model), "sdpa")


def test_an_index_cannot_lead_to_a_pickle_or_out_of_the_folder(model: Path, tmp_path: Path):
    names = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(tmp_path / "other.safetensors")
    torch.save({"x": Marker(tmp_path / "ran")}, model / "evil.bin")
    for target in ("evil.bin", "../evil.bin", "../other.safetensors"):
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, target)}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ConfigError, match="not beside its index as safetensors"):
            open_classifier(str(model), "sdpa")
    assert not (tmp_path / "ran").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
)
KEYS = [*ViTConfig().to_dict(), *ViTMAEConfig().to_dict(), "_attn_implementation", "attn_implementation", "dtype"]


@examples(15)
@given(values=st.dictionaries(st.sampled_from(sorted(set(KEYS))), JSON, min_size=1, max_size=3))
def test_any_values_in_a_config_open_a_model_or_end_in_one_error(whole: Path, tmp_path: Path, values: dict):
    folder = tmp_path / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    change(folder, **values)
    for kind in ("classifier", "encoder"):
        try:
            OPENERS[kind](str(folder))
        except ConfigError as error:
            assert len(str(error)) < 2100  # noqa: PT017


@examples(15)
@given(st.integers(0, 3000), st.binary(min_size=1, max_size=8), st.booleans())
def test_any_bytes_in_a_weights_file_open_a_model_or_end_in_one_error(
    whole: Path, tmp_path: Path, place: int, new: bytes, cut: bool
):
    folder = tmp_path / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[place : place + len(new)] = new
    (folder / "model.safetensors").write_bytes(weights[: place + len(new)] if cut else weights)
    try:
        open_classifier(str(folder), "sdpa")
    except ConfigError as error:
        assert len(str(error)) < 2100  # noqa: PT017
