"""A Space that `demo --export_space` has written runs with the mae_hf in it, and answers."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from mae_hf.__main__ import run_command
from mae_hf.config.data import DataConfig
from mae_hf.config.model import ClassifierConfig
from mae_hf.config.runs import FinetuneConfig
from mae_hf.errors import ConfigError
from mae_hf.evaluation.inference import open_any
from mae_hf.hub import save_model

pytest.importorskip("gradio", reason="the extra [demo] is not installed")
from forks import free_port
from gradio_client import Client, handle_file

SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, a classifier of two classes, and `space`, its Space."""
    folder = tmp_path_factory.mktemp("spaces")
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**SHAPE, id2label={0: "it's", 1: '{"dog"}'}))
    torch.nn.init.normal_(model.classifier.weight)
    config = FinetuneConfig(data=DataConfig(resize="squash"), model=ClassifierConfig(**SHAPE, init="scratch"))
    save_model(folder / "model", model, config, {})
    run_command("demo", ["--model", str(folder / "model"), "--export_space", str(folder / "space")], "demo")
    return folder


def test_the_space_answers_like_the_model(folder: Path, tmp_path: Path):
    Image.linear_gradient("L").resize((40, 20)).save(tmp_path / "photo.png")
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
        "TMPDIR": str(tmp_path),
    }
    output = tmp_path / "output"
    with output.open("w") as file:
        command = [sys.executable, "-v", "app.py"]  # -v names the file of every module
        server = subprocess.Popen(command, cwd=folder / "space", env=environment, stdout=file, stderr=file)
    try:
        client = None
        while client is None and server.poll() is None:
            try:
                client = Client(f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False)
            except Exception:  # it has not started yet
                time.sleep(0.5)
        assert client is not None, output.read_text()[-2000:]
        answer = client.predict(handle_file(tmp_path / "photo.png"), api_name="/classify")
    finally:
        server.kill()
        server.wait()
    loaded = open_any(str(folder / "model"))
    expected = dict(zip(loaded.class_names, loaded([tmp_path / "photo.png"])[0].tolist(), strict=True))
    assert {row["label"]: row["confidence"] for row in answer["confidences"]} == pytest.approx(expected, abs=1e-5)
    imported = [line for line in output.read_text().splitlines() if "mae_hf/commands/demo_page.py" in line]
    assert imported and all(str(folder / "space") in line for line in imported), "mae_hf is not from the Space"


def test_the_files_are_what_the_hub_needs(folder: Path):
    space = folder / "space"
    names = {"LICENSE", "README.md", "app.py", "mae_hf", "model", "requirements.txt"}
    assert {path.name for path in space.iterdir()} == names
    assert "MIT License" in (space / "LICENSE").read_text()
    assert {path.name for path in (space / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    for name in ("hub.py", "card.md", "report/report.html", "configs/pretrain/digits.yaml"):
        assert (space / "mae_hf" / name).is_file()
    assert not list(space.rglob("__pycache__")), "compiled files name folders of this machine"
    metadata = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py" and metadata["license"] == "mit"
    requirements = (space / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch>=") for line in requirements) and not [x for x in requirements if ";" in x]


def test_a_folder_with_files_is_never_overwritten(folder: Path):
    with pytest.raises(ConfigError, match=r"exists and is not an empty folder.*--export_space"):
        run_command("demo", ["--model", str(folder / "model"), "--export_space", str(folder / "space")], "demo")
