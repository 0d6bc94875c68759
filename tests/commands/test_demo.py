"""The demo returns what stock transformers and Pillow compute for the same image."""

import contextlib
import functools
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

pytest.importorskip("gradio", reason="the extra [demo] is not installed")
from forks import free_port
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from transformers import ViTConfig, ViTForImageClassification, ViTMAEForPreTraining

from mae_hf.__main__ import run_command
from mae_hf.commands.demo import demo
from mae_hf.commands.demo_page import LAUNCH, build_page, classify, describe, open_shown, reconstruct_image
from mae_hf.config.commands import DemoConfig
from mae_hf.config.data import DataConfig
from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.data.cache import open_stores
from mae_hf.data.sources import load_splits
from mae_hf.errors import ConfigError
from mae_hf.evaluation.inference import open_any
from mae_hf.hub import save_model
from mae_hf.models.mae import build_mae
from mae_hf.training.predictions import write_predictions

ROOT = Path(__file__).parents[2]
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)
DATA = DataConfig(source="digits", image_mean=MEAN, image_std=STD)


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
    original, masked, reconstruction, errors = reconstruct_image(mae, picture("RGBA"), seed=1, mask_ratio=0.75)
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

    gaps = np.abs(original.astype(float) - reconstruction).reshape(4, 4, 4, 4, 3).mean(axis=(1, 3, 4))
    brightness = errors.astype(int).sum(axis=-1)[::4, ::4]
    assert (errors == errors[::4, ::4].repeat(4, axis=0).repeat(4, axis=1)).all()
    assert (brightness[~hidden] == brightness.min()).all() and brightness.argmax() == gaps.argmax()


def test_only_seed_and_ratio_decide_the_mask(models: Path):
    mae = open_any(str(models / "mae"))
    first, again, other = (reconstruct_image(mae, picture("RGB"), seed, 0.75)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    half = reconstruct_image(mae, picture("RGB"), 0, 0.5)[1]
    assert ((half == 127).all(axis=-1).sum(), (first == 127).all(axis=-1).sum()) == (8 * 16, 12 * 16)


def test_without_gradio_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "mae_hf.commands.demo_page")
    with pytest.raises(ConfigError, match=r"gradio.*pip install 'mae_hf\[demo\]'"):
        demo(DemoConfig(model="any model"))


def test_the_message_about_a_reserved_port_names_the_fix():
    with pytest.raises(ConfigError, match=r"port is 80 .*such as 7860 \(--port\)"):
        DemoConfig(model="any", port=80)


def test_a_model_of_another_kind_is_refused_by_name(models: Path):
    with pytest.raises(ConfigError, match=r"ViTModel: the demo shows a classifier or a masked autoencoder.*--model"):
        open_shown(str(models / "encoder"))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[str]:
    """Serve the page of a model in this process; its address."""
    page = build_page(str(folder), open_shown(str(folder)))
    _, address, _ = page.launch(prevent_thread_lock=True, server_name="127.0.0.1", **LAUNCH)
    try:
        yield address
    finally:
        page.close()


def test_the_page_of_a_masked_autoencoder_answers(models: Path, tmp_path: Path):
    picture("RGBA").save(tmp_path / "picture.png")
    with opened(models / "mae") as address:
        client = Client(address, verbose=False, analytics_enabled=False, download_files=tmp_path / "answers")
        answers = client.predict(handle_file(tmp_path / "picture.png"), 0.5, 5, api_name="/reconstruct")
    expected = reconstruct_image(open_any(str(models / "mae")), picture("RGBA"), 5, 0.5)
    for file, pixels in zip(answers, expected, strict=True):
        with Image.open(file) as image:
            assert image.size == (320, 320)
            np.testing.assert_array_equal(np.asarray(image)[10::20, 10::20], pixels)


def test_several_files_give_a_table_and_a_csv_and_bad_ones_a_reason(models: Path, tmp_path: Path):
    picture("RGB").save(tmp_path / "first.png")
    (tmp_path / "second.png").write_text("no image")
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    files = [handle_file(tmp_path / name) for name in ("first.png", "second.png", "huge.png")]
    with opened(models / "classifier") as address:
        client = Client(address, verbose=False, analytics_enabled=False, download_files=tmp_path / "answers")
        table, download = client.predict(files, api_name="/classify_files")
        with pytest.raises(AppError, match=r"second\.png cannot be decoded: it is no image"):
            client.predict(files[1], api_name="/classify")
    probabilities = classify(open_any(str(models / "classifier")), picture("RGB"))
    best = max(probabilities, key=probabilities.__getitem__)
    assert table["headers"] == ["file", "prediction", "probability", "error"]
    assert table["data"][0] == ["first.png", best, pytest.approx(probabilities[best], abs=1e-3), ""]
    reasons = [row[-1] for row in table["data"][1:]]
    assert reasons[0].startswith("it is no image in one of the formats") and "9000 x 9000 pixels" in reasons[1]
    rows = pandas.read_csv(download["value"] if isinstance(download, dict) else download, keep_default_na=False)
    assert rows["file"].tolist() == ["first.png", "second.png", "huge.png"] and rows["error"][2] == reasons[1]


def test_the_page_says_what_the_model_is_and_how_accurate(models: Path, tmp_path: Path):
    shutil.copytree(models / "classifier/model", tmp_path / "run/model")
    loaded = open_shown(str(tmp_path / "run"))
    words = "A classifier for images of 16 x 16 pixels, with 3 classes: cat, dog, horse."
    assert describe(str(tmp_path / "run"), loaded) == words
    (tmp_path / "run/config.yaml").write_text(
        "data: {source: a/folder/of/photos}\nmodel: {image_size: 16, patch_size: 4}"
    )
    assert describe(str(tmp_path / "run/model"), loaded) == f"{words} Trained on photos."
    images = SimpleNamespace(labels=np.arange(10) % 3, file_names=lambda: [None] * 10)
    probabilities = np.eye(3)[np.where(np.arange(10) < 8, np.arange(10) % 3, (np.arange(10) + 1) % 3)]
    write_predictions(tmp_path / "run/predictions.parquet", images, probabilities)  # 8 of 10 are right
    # Wilson 1927: (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)
    z, p, n = 1.959964, 0.8, 10
    middle, margin = p + z * z / 2 / n, z * (p * (1 - p) / n + z * z / 4 / n**2) ** 0.5
    low, high = (100 * (middle + sign * margin) / (1 + z * z / n) for sign in (-1, 1))
    ends = f"95 % interval {low:.1f} to {high:.1f} %"
    accuracy = f"Test accuracy 80.0 % ({ends}) on 10 images."
    assert describe(str(tmp_path / "run"), loaded) == f"{words} Trained on photos. {accuracy}"
    (tmp_path / "run/predictions.parquet").write_text("broken")
    assert describe(str(tmp_path / "run"), loaded) == f"{words} Trained on photos."


def test_others_reach_the_page_only_on_request(capsys: pytest.CaptureFixture[str]):
    assert DemoConfig(model="any").host == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"host example\.org is not one of 127\.0\.0\.1, 0\.0\.0\.0"):
        run_command("demo", ["--model", "user/name", "--host", "example.org"], "demo")


def test_a_browser_shows_the_page_of_a_run_on_a_phone_without_asking_other_servers(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    monkeypatch.setenv("MAE_HF_CACHE", str(tmp_path / "cache"))
    shutil.copytree(models / "mae/model", tmp_path / "run/model")
    (tmp_path / "run/config.yaml").write_text("data: {source: digits}\nmodel: {image_size: 16, patch_size: 4}")
    data = DataConfig(source="digits")
    open_stores([load_splits(data, "digits")["test"]], 16, data)
    options = Options()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        with opened(tmp_path / "run") as address:
            size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(address)
            wait = WebDriverWait(driver, 30)
            wait.until(lambda _: len(driver.find_elements(By.CSS_SELECTOR, ".gallery button")) == 8)
            driver.find_elements(By.CSS_SELECTOR, ".gallery button")[0].click()

            def shown() -> list[str]:
                pictures = driver.find_elements(By.CSS_SELECTOR, "img[src*='/file=']")
                return [str(picture.get_attribute("src")) for picture in pictures]

            wait.until(lambda _: len(shown()) == 8 + 1 + 4)
            before = shown()
            driver.find_element(By.XPATH, "//button[contains(., 'New mask')]").click()
            wait.until(lambda _: len(shown()) == len(before) and len(set(shown()) - set(before)) == 3)
            assert driver.execute_script("return document.documentElement.scrollWidth") == 390
            messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
            sent = [
                each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"
            ]
            assert sent and not [url for url in sent if not url.startswith((address, "data:", "blob:", "chrome:"))]
    finally:
        driver.quit()


def test_the_message_about_a_busy_port_suggests_another(models: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is taken: .*--port {port + 1}"):
            run_command("demo", ["--model", str(models / "mae"), "--port", str(port)], "demo")


@pytest.fixture
def served(models: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The script that serves the classifier, and its port."""
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
