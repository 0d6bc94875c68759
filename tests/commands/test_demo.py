"""The demo returns what stock transformers and Pillow compute for the same image."""

import functools
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import free_port
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTMAEForPreTraining

from mae_hf.__main__ import run_command
from mae_hf.commands.demo import build_page, classify, reconstruct_image
from mae_hf.config.commands import DemoConfig, FinetuneConfig, PretrainConfig
from mae_hf.config.data import DataConfig
from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.errors import ConfigError
from mae_hf.evaluation.loaded import open_any
from mae_hf.hub import save_model
from mae_hf.models.mae import build_mae

ROOT = Path(__file__).parents[2]
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)
DATA = DataConfig(source="digits", image_mean=MEAN, image_std=STD)
NO_GRADIO = "gradio, the extra [demo], is not installed"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the run folders `mae` and `classifier`, and with the files of gradio."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = MAEConfig(**SHAPE, **DECODER, intermediate_size=32, decoder_intermediate_size=32)
    mae = build_mae(config, "sdpa").eval()
    save_model(folder / "mae/model", mae, PretrainConfig(data=DATA, model=config), {})
    shutil.copytree(folder / "mae/model", folder / "encoder", ignore=shutil.ignore_patterns("autoencoder"))
    names = dict(enumerate(("cat", "dog", "horse")))
    classifier = ViTForImageClassification(ViTConfig(**SHAPE, intermediate_size=32, id2label=names))
    torch.nn.init.normal_(classifier.classifier.weight)  # so that the image decides, not the start near zero
    finetune = FinetuneConfig(data=DATA, model=ClassifierConfig(**SHAPE, intermediate_size=32, init="scratch"))
    save_model(folder / "classifier/model", classifier, finetune, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        yield folder


def picture(mode: str) -> Image.Image:
    """Return a coloured ramp of 32 x 20 pixels, partly transparent if the mode has transparency."""
    x, y = np.meshgrid(np.arange(32), np.arange(20))
    pixels = np.stack([x * 8, y * 12, (x + y) * 5, 255 - x * 8], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels[..., : len(mode)])


def squared(image: Image.Image) -> np.ndarray:
    """Return the image on white, resized to a shorter side of 16 and centre-cropped by Pillow: uint8 (16, 16, 3)."""
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    resized = page.resize((32 * 16 // 20, 16), Image.Resampling.BICUBIC)
    left = (resized.width - 16) // 2
    return np.asarray(resized.crop((left, 0, left + 16, 16)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_probabilities_equal_stock_transformers(models: Path, mode: str):
    folder = models / "classifier"
    probabilities = classify(open_any(str(folder)), picture(mode))
    stock = ViTForImageClassification.from_pretrained(folder / "model").eval()
    pixel_values = torch.from_numpy((squared(picture(mode)) / 255 - MEAN) / STD).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = stock(pixel_values).logits.softmax(-1)[0].numpy()
    assert list(probabilities) == ["cat", "dog", "horse"]
    np.testing.assert_allclose(list(probabilities.values()), expected, atol=0.005)  # Pillow rounds once more on the way
    assert np.ptp(expected) > 0.2


def test_visible_patches_are_pixels_and_masked_ones_the_prediction_of_stock_transformers(models: Path):
    mae = open_any(str(models / "mae"))
    original, masked, reconstruction = reconstruct_image(mae, picture("RGBA"), seed=1)
    assert np.abs(original.astype(int) - squared(picture("RGBA"))).max() <= 2
    hidden = (masked != original).any(axis=-1).reshape(4, 4, 4, 4).any(axis=(1, 3))  # of the 4 x 4 patches
    assert hidden.sum() == 12
    hidden_pixels = hidden.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(reconstruction[~hidden_pixels], original[~hidden_pixels])
    np.testing.assert_array_equal(masked[~hidden_pixels], original[~hidden_pixels])

    stock = ViTMAEForPreTraining.from_pretrained(models / "mae/model/autoencoder").eval()
    pixel_values = torch.from_numpy((original / 255 - MEAN) / STD).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = stock(pixel_values, noise=torch.from_numpy(hidden).float().view(1, 16)).logits
    predicted = stock.unpatchify(logits)[0].permute(1, 2, 0).numpy() * STD + MEAN
    difference = reconstruction - np.clip(predicted * 255, 0, 255)
    assert np.abs(difference[hidden_pixels]).max() <= 1


def test_only_the_seed_decides_the_mask(models: Path):
    mae = open_any(str(models / "mae"))
    first, again, other = (reconstruct_image(mae, picture("RGB"), seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_without_gradio_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"gradio.*pip install 'mae_hf\[demo\]'"):
        build_page("any model")


def test_the_message_about_a_reserved_port_names_the_fix():
    with pytest.raises(ConfigError, match=r"port is 80 .*such as 7860 \(--port\)"):
        DemoConfig(model="any", port=80)


def test_a_model_of_another_kind_is_refused_by_name(models: Path):
    pytest.importorskip("gradio", reason=NO_GRADIO)
    with pytest.raises(ConfigError, match=r"ViTModel: the demo shows a classifier or a masked autoencoder.*--model"):
        build_page(str(models / "encoder"))


def test_the_page_of_a_masked_autoencoder_answers(models: Path, tmp_path: Path):
    pytest.importorskip("gradio", reason=NO_GRADIO)
    from gradio_client import Client, handle_file

    picture("RGBA").save(tmp_path / "picture.png")
    page = build_page(str(models / "mae"))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        client = Client(address, verbose=False, analytics_enabled=False, download_files=tmp_path / "answers")
        answers = client.predict(handle_file(tmp_path / "picture.png"), 5, api_name="/reconstruct")
    finally:
        page.close()
    mae = open_any(str(models / "mae"))
    expected = reconstruct_image(mae, picture("RGBA"), seed=5)
    for file, pixels in zip(answers, expected, strict=True):
        with Image.open(file) as image:
            assert image.size == (320, 320)
            np.testing.assert_array_equal(np.asarray(image)[10::20, 10::20], pixels)


def test_the_message_about_a_busy_port_suggests_another(models: Path):
    pytest.importorskip("gradio", reason=NO_GRADIO)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is taken: .*--port {port + 1}"):
            run_command("demo", ["--model", str(models / "mae"), "--port", str(port)], "demo")


@pytest.fixture
def served(models: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The script that serves the classifier, and its port."""
    pytest.importorskip("gradio", reason=NO_GRADIO)
    port = free_port()
    command = [sys.executable, "scripts/demo.py", "--model", str(models / "classifier"), "--port", str(port)]
    # a shell lets what it runs in the background ignore Ctrl-C, and a test run there would hand that on
    listen = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=listen)
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        yield process, port
    finally:
        process.kill()
        process.communicate()


def test_the_script_serves_a_classifier_until_it_is_interrupted_and_keeps_no_image(
    models: Path, served: tuple[subprocess.Popen[str], int], tmp_path: Path
):
    from gradio_client import Client, handle_file

    process, port = served
    picture("RGBA").save(tmp_path / "upload.png")
    client = Client(f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False)
    answer = client.predict(handle_file(tmp_path / "upload.png"), api_name="/classify")
    assert list((models / "gradio").rglob("upload.png"))
    folder = str(models / "classifier")
    expected = classify(open_any(folder), picture("RGBA"))
    assert {row["label"]: row["confidence"] for row in answer["confidences"]} == pytest.approx(expected, abs=1e-5)

    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert not list((models / "gradio").rglob("upload.png"))
