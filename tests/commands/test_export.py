"""An exported model gives stock transformers' numbers in onnxruntime, and its README's code runs as printed."""

import ast
import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from mae_hf.__main__ import run_command
from mae_hf.commands import export as exporting
from mae_hf.config.data import DataConfig
from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.data.dataset import load_image_files
from mae_hf.errors import ConfigError, RunError
from mae_hf.evaluation.inference import normalized, open_any
from mae_hf.hub import save_model
from mae_hf.models.mae import build_mae, export_encoder

pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 32}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
DATA = DataConfig(source="digits", image_mean=(0.3, 0.4, 0.5), image_std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, a classifier of three classes, and with `onnx`, its export."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    names = dict(enumerate(("cat", "dog", "horse")))
    model = ViTForImageClassification(ViTConfig(**SHAPE, id2label=names))
    torch.nn.init.normal_(model.classifier.weight)  # its first values are near zero, and images would not differ
    config = FinetuneConfig(data=DATA, model=ClassifierConfig(**SHAPE, init="scratch"))
    save_model(folder / "model", model, config, {})
    run_command("export", ["--model", str(folder), "--output", str(folder / "onnx")], "export")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, a masked autoencoder, with `stock`, its encoder, and with `onnx`, the export."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = MAEConfig(**SHAPE, **DECODER, decoder_intermediate_size=32)
    mae = build_mae(config, "sdpa").eval()
    data = dataclasses.replace(DATA, resize="pad")
    save_model(folder / "model", mae, PretrainConfig(data=data, model=config), {})
    export_encoder(mae).save_pretrained(folder / "stock")
    run_command("export", ["--model", str(folder), "--output", str(folder / "onnx")], "export")
    return folder


def photo(folder: Path) -> Path:
    """Return the file of a picture of 50 x 30 pixels, a part of which is transparent."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 3, 4), np.uint8)
    Image.fromarray(noise).resize((50, 30), Image.Resampling.BICUBIC).save(folder / "photo.png")
    return folder / "photo.png"


def pixel_values(num_images: int) -> torch.Tensor:
    """Return random images as a network takes them."""
    return torch.randn(num_images, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def code_of(readme: str) -> str:
    """Return the code of a README, which may only import what the README tells to install."""
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert names == {"json", "numpy", "onnxruntime", "PIL"}
    return code


@pytest.mark.parametrize("num_images", [1, 3])
def test_the_logits_of_any_number_of_images_equal_stock_transformers(classifier: Path, num_images: int):
    session = onnxruntime.InferenceSession(classifier / "onnx" / "model.onnx")
    (logits,) = session.run(None, {"pixel_values": pixel_values(num_images).numpy()})
    stock = ViTForImageClassification.from_pretrained(classifier / "model").eval()
    with torch.no_grad():
        expected = stock(pixel_values(num_images)).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert [output.name for output in session.get_outputs()] == ["logits"] and np.ptp(expected) > 0.5


@pytest.mark.parametrize("num_images", [1, 3])
def test_the_features_of_any_number_of_images_equal_stock_transformers(encoder: Path, num_images: int):
    session = onnxruntime.InferenceSession(encoder / "onnx" / "model.onnx")
    names = ["last_hidden_state", "cls", "mean"]
    assert [output.name for output in session.get_outputs()] == names
    found = session.run(names, {"pixel_values": pixel_values(num_images).numpy()})
    with torch.no_grad():
        tokens = ViTModel.from_pretrained(encoder / "stock").eval()(pixel_values(num_images)).last_hidden_state.numpy()
    for values, expected in zip(found, (tokens, tokens[:, 0], tokens[:, 1:].mean(axis=1)), strict=True):
        np.testing.assert_allclose(values, expected, atol=1e-4, rtol=0)


def test_the_code_of_the_readme_predicts_like_the_model(classifier: Path, tmp_path: Path, monkeypatch, capsys):
    code = code_of((classifier / "onnx" / "README.md").read_text()).replace("photo.png", str(photo(tmp_path)))
    monkeypatch.chdir(classifier / "onnx")
    exec(code, {})
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    expected = open_any(str(classifier))([photo(tmp_path)])[0]
    order = expected.argsort()[::-1]
    assert list(printed) == [("cat", "dog", "horse")[number] for number in order]
    assert [float(text) for text in printed.values()] == pytest.approx(expected[order], abs=1e-3)


def test_the_code_of_the_readme_gives_the_features_of_the_model(encoder: Path, tmp_path: Path, monkeypatch):
    names: dict = {}
    code = code_of((encoder / "onnx" / "README.md").read_text()).replace("photo.png", str(photo(tmp_path)))
    monkeypatch.chdir(encoder / "onnx")
    exec(code, names)
    loaded = open_any(str(encoder))
    for pooling in ("cls", "mean"):
        np.testing.assert_allclose(names[pooling], loaded([photo(tmp_path)], pooling), atol=1e-4, rtol=0)


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_the_code_of_the_readme_prepares_images_like_training(
    classifier: Path, tmp_path: Path, monkeypatch, resize: str
):
    loaded = open_any(str(classifier))
    loaded = dataclasses.replace(loaded, data=dataclasses.replace(loaded.data, resize=resize))
    code, names = code_of(exporting.onnx_readme(loaded, "title", "")), {}
    monkeypatch.chdir(classifier / "onnx")
    exec(code.split("session =")[0].replace("photo.png", str(photo(tmp_path))), names)
    expected = normalized(load_image_files([photo(tmp_path)], 16, loaded.data), loaded.data, torch.device("cpu"))
    np.testing.assert_allclose(names["pixel_values"], expected.numpy(), atol=1e-5, rtol=0)


def test_the_folder_names_the_classes_and_the_preparation(classifier: Path):
    files = {"model.onnx", "config.json", "preprocessor_config.json", "README.md"}
    assert {path.name for path in (classifier / "onnx").iterdir()} == files
    config = json.loads((classifier / "onnx" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "horse"}
    processors = [
        json.loads((classifier / name / "preprocessor_config.json").read_text()) for name in ("model", "onnx")
    ]
    assert processors[0] == processors[1]
    assert re.search(
        r"Largest difference between onnxruntime .* and PyTorch .*: \d\.\de-\d\d\.",
        (classifier / "onnx" / "README.md").read_text(),
    )


def test_a_large_model_has_its_weights_beside_the_file_and_other_numbers_are_an_error(
    encoder: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(exporting, "_MAX_FILE", 0)
    monkeypatch.setattr(exporting, "_TOLERANCE", -1.0)  # no number is within it
    with pytest.raises(RunError, match=r"onnxruntime .* and PyTorch .* differ by"):
        exporting.write_onnx(open_any(str(encoder)), tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.run(["cls"], {"pixel_values": pixel_values(2).numpy()})[0].shape == (2, 16)


def test_what_is_missing_or_in_the_way_is_named_before_the_export(classifier: Path, tmp_path: Path, monkeypatch):
    photo(tmp_path)
    with pytest.raises(ConfigError, match=r"exists and is not an empty folder: choose a new folder \(--output\)"):
        run_command("export", ["--model", str(classifier), "--output", str(tmp_path)], "export")
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"needs onnxscript, which .*pip install 'mae_hf\[onnx\]'"):
        run_command("export", ["--model", str(classifier), "--output", str(tmp_path / "new")], "export")
