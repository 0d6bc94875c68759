"""Uploaded models open with transformers alone. All requests go to a Hub on this machine."""

import dataclasses
import html
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hub_server import READ_TOKEN, WRITE_TOKEN, Hub
from PIL import Image
from transformers import AutoImageProcessor

from mae_hf import hub as sharing
from mae_hf.config.data import DataConfig
from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.config.runs import FinetuneConfig, HubConfig, PretrainConfig
from mae_hf.config.train import FinetuneTrainConfig
from mae_hf.data.augment.crop_flip import normalize, to_pixels
from mae_hf.data.decode import to_rgb_square
from mae_hf.errors import ConfigError, RunError
from mae_hf.training.provenance import RunRecord

NEEDS_TORCHVISION = getattr(AutoImageProcessor, "is_dummy", False)
CLASS_NAMES = ("cat", "<b>dog</b>", "a|b `c` [d](e)")
METRICS = {"test/accuracy": 0.875, "test/f1": 0.75, "test/loss": 0.5, "eval/accuracy": 0.9, "best_epoch": 3.0}
SHAPE = {"image_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DECODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PRETRAIN = PretrainConfig(
    data=DataConfig(source=["digits", "jxie/stl10"]),
    model=MAEConfig(**SHAPE, **{f"decoder_{key}": value for key, value in DECODER.items()}),
    hub=HubConfig(push=True, repo_id="me/mae"),
    output_dir="runs/pretrain/tiny",
)
FINETUNE = FinetuneConfig(
    data=DataConfig(source="jxie/stl10", revision="c0ffee"),
    model=ClassifierConfig(**SHAPE, init="me/mae"),
    train=FinetuneTrainConfig(epochs=7, warmup_ratio=0.125),
    hub=HubConfig(push=True, repo_id="me/classifier", private=True),
    output_dir="runs/finetune/tiny",
)

RECORD = RunRecord(
    device="cpu: a core",
    num_processes=1,
    mixed_precision="no",
    num_train_images=100,
    num_test_images=80,
    start="2026-11-28T10:00:00+00:00",
    end="2026-11-28T11:30:00+00:00",
)


def road(image: Image.Image, config: PretrainConfig | FinetuneConfig) -> torch.Tensor:
    """The pixel_values (1, 3, S, S) that a run makes of an image."""
    pixels = to_pixels(torch.from_numpy(to_rgb_square(image, config.model.image_size, config.data))[None])
    return normalize(pixels, config.data.image_mean, config.data.image_std)


@torch.no_grad()
def publish(folder: Path) -> dict[str, Any]:
    """Save and upload both models; return their outputs for a photo, and the errors without rights or connection."""
    from huggingface_hub import constants

    from mae_hf.models.classifier import build_classifier
    from mae_hf.models.io import SavedModel
    from mae_hf.models.mae import MaskedAutoencoder, build_mae, export_encoder
    from mae_hf.models.origin import resolve

    pixel_values = road(Image.open(folder / "photo.png"), PRETRAIN)
    facts = {"record": RECORD, "pictures": {"A <b>photo</b>": folder / "photo.png"}}
    mae = build_mae(PRETRAIN.model, "sdpa").eval()
    sharing.save_model(folder / "mae", mae, PRETRAIN, {"step": 70, "eval/loss": 0.25}, **facts)
    for _ in range(2):
        sharing.prepare_upload(PRETRAIN.hub)
    seen: dict[str, Any] = {"mae": sharing.upload(folder / "mae", PRETRAIN.hub)}
    seen["revision"] = SavedModel("me/mae").commit
    features = export_encoder(mae)(pixel_values).last_hidden_state
    seen["features"] = features[0, 0].tolist()
    again = MaskedAutoencoder.from_pretrained("me/mae")
    seen["same weights"] = all(
        torch.equal(a, b) for a, b in zip(mae.parameters(), again.parameters(), strict=True)
    ) and torch.equal(export_encoder(again)(pixel_values).last_hidden_state, features)

    classifier = build_classifier(FINETUNE.model, CLASS_NAMES, "sdpa", seed=0).eval()
    seen["transferred"] = classifier.vit(pixel_values).last_hidden_state[0, 0].tolist()
    torch.nn.init.normal_(classifier.classifier.weight)  # so that the classes differ
    scores = {**METRICS, "test/f1_per_class": dict.fromkeys(CLASS_NAMES, 0.75)}
    sharing.save_model(folder / "classifier", classifier, FINETUNE, scores, **facts)
    seen["classifier"] = sharing.upload(folder / "classifier", FINETUNE.hub)
    seen["probabilities"] = classifier(pixel_values).logits.softmax(-1)[0].tolist()

    # ---- two revisions of one encoder ----
    changed = HubConfig(push=True, repo_id="me/changed")
    sharing.upload(folder / "mae", changed)
    first = SavedModel("me/changed").commit
    mae.vit.layernorm.bias.add_(1)
    sharing.save_model(folder / "changed", mae, PRETRAIN, {"step": 70, "eval/loss": 0.25})
    sharing.upload(folder / "changed", changed)
    for name, revision in (("first", first), ("latest", None)):
        model = dataclasses.replace(FINETUNE.model, init="me/changed", revision=revision)
        assert resolve(dataclasses.replace(FINETUNE, model=model)).model == model
        features = build_classifier(model, CLASS_NAMES, "sdpa", 0).eval().vit(pixel_values).last_hidden_state
        seen[name] = {
            "features": features[0, 0].tolist(),
            "revision": SavedModel("me/changed", revision=revision).commit,
        }
    with pytest.raises(
        ConfigError, match=r"me/changed at revision f.*Hub \(404 .*check the name and the rev.*--model\.init"
    ):
        build_classifier(dataclasses.replace(model, revision="f" * 40), CLASS_NAMES, "sdpa", 0)

    def error(repo_id: str = "me/new", token: str = WRITE_TOKEN) -> str:
        os.environ["HF_TOKEN"] = token
        with pytest.raises(RunError) as caught:
            sharing.upload(folder / "classifier", HubConfig(push=True, repo_id=repo_id))
        with pytest.raises(ConfigError, match="run the same command again"):
            sharing.prepare_upload(HubConfig(push=True, repo_id=repo_id))
        return str(caught.value)

    errors = {"401": error(token="hf_unknown"), "no token": error(token=""), "403": error(token=READ_TOKEN)}
    errors |= {"other's": error("you/new"), "500": error("me/broken"), "name": error("me/new..model")}
    constants.ENDPOINT = "http://127.0.0.1:9"  # no server listens at the discard port
    errors["dead"] = error()
    constants.HF_HUB_OFFLINE = True
    errors["offline"] = error()
    return seen | {"errors": errors}


# What someone without mae_hf does: the code of both cards as it is, in a folder with a photo.
USE = """
import json, sys
sys.modules["mae_hf"] = None  # importing it fails
cards = {}
for name in ("mae", "classifier"):
    cards[name] = {}
    exec(open(f"{name}.py").read(), cards[name])
mae, classes = cards["mae"], cards["classifier"]["classes"]

import torch
from transformers import AutoModelForImageClassification, pipeline
extract = pipeline("image-feature-extraction", "me/mae")  # the snippet that the Hub shows
piped = [extract("photo.png"), extract("photo.png")]
features = [mae["features"], mae["encoder"](**mae["inputs"]).pooler_output]
model = AutoModelForImageClassification.from_pretrained("me/classifier")
import transformers
print(json.dumps({
    "version": transformers.__version__,
    "features": features[0][0].tolist(),
    "deterministic": torch.equal(*features) and piped[0] == piped[1],
    "piped": piped[0][0][0],
    "prediction": list(mae["prediction"].shape),
    "classes": {entry["label"]: entry["score"] for entry in classes},
    "probabilities": model(mae["inputs"]["pixel_values"]).logits.softmax(-1)[0].tolist(),
    "id2label": list(model.config.id2label.values()),
}))
"""


def run(folder: Path, hub: Hub, *command: str, **environment: str) -> tuple[dict[str, Any], str]:
    """What a new Python process, for which this is the Hub, prints as JSON; and all that it prints."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The Hub after `publish`, and what `publish` saw."""
    folder = tmp_path_factory.mktemp("shared")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with Hub() as hub:
        ours = {"HF_HOME": str(folder / "ours"), "HF_TOKEN": WRITE_TOKEN, "PYTHONPATH": path}
        here, output = run(folder, hub, __file__, str(folder), **ours)
        yield {"hub": hub, "folder": folder, "here": here, "output": output}


@pytest.fixture(scope="module", params=["installed", "4.57.6"])
def there(world: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `USE` saw with a version of transformers."""
    if NEEDS_TORCHVISION:
        pytest.skip("this transformers has no image processors without torchvision")
    theirs = os.environ.get("MAE_HF_TRANSFORMERS_4", "") if request.param != "installed" else ""
    if not theirs and request.param != "installed":
        pytest.skip("MAE_HF_TRANSFORMERS_4 names no folder with transformers 4")
    folder = world["folder"]
    for name in ("mae", "classifier"):
        card = uploaded(world, f"me/{name}")["README.md"].decode()
        (folder / f"{name}.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL)))
    environment = {"HF_HOME": str(folder / "theirs")} | ({"PYTHONPATH": theirs} if theirs else {})
    seen, output = run(folder, world["hub"], "-c", USE, **environment)
    assert request.param in ("installed", seen["version"])
    return seen | {"output": output}


def uploaded(world: dict[str, Any], repo: str) -> dict[str, bytes]:
    return world["hub"].find(f"models/{repo}", "main")[1]


def test_the_folder_is_uploaded_whole(world):
    for repo in ("mae", "classifier"):
        folder = world["folder"] / repo
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= files.keys()
        files["README.md"] = files["README.md"].replace(b"path/to/this/folder", f"me/{repo}".encode())
        found = uploaded(world, f"me/{repo}")
        assert {path: found[path] for path in files} == files
        assert found.keys() - files.keys() == {".gitattributes"}  # which the Hub itself writes
    assert {"autoencoder/config.json", "autoencoder/model.safetensors"} <= uploaded(world, "me/mae").keys()


def test_the_repository_is_made_once_and_as_private_as_asked(world):
    address = f"{world['hub'].endpoint}/me/mae"
    assert world["here"]["mae"] == address
    assert world["hub"].private == {"models/me/mae": False, "models/me/classifier": True, "models/me/changed": False}


def test_a_masked_autoencoder_from_the_hub_has_the_weights_that_were_saved(world):
    assert world["here"]["same weights"] is True


def test_the_revision_of_a_model_on_the_hub_is_its_commit(world):
    assert world["here"]["revision"] == world["hub"].find("models/me/mae", "main")[0]


def test_a_classifier_starts_from_an_encoder_on_the_hub(world):
    assert world["here"]["transferred"] == pytest.approx(world["here"]["features"], abs=1e-5)


def test_a_revision_of_an_encoder_on_the_hub_is_the_one_that_is_opened(world):
    first, latest = world["here"]["first"], world["here"]["latest"]
    assert first["features"] == pytest.approx(world["here"]["features"], abs=1e-5)
    assert latest["features"] == pytest.approx([value + 1 for value in first["features"]], abs=1e-5)
    commits = [sha for sha, _ in world["hub"].commits["models/me/changed"]]
    assert latest["revision"] == commits[-1] and first["revision"] in commits[:-1]


def test_the_card_of_the_encoder_gives_others_its_features_without_mask(world, there):
    for key in ("features", "piped"):
        assert there[key] == pytest.approx(world["here"]["features"], abs=1e-5)
    assert there["deterministic"] is True


def test_the_card_of_the_encoder_gives_others_the_prediction_of_each_patch(there):
    assert there["prediction"] == [1, (32 // 8) ** 2, 8 * 8 * 3]


def test_the_card_of_the_classifier_gives_others_our_class_names_with_probabilities(world, there):
    expected = dict(zip(CLASS_NAMES, world["here"]["probabilities"], strict=True))
    assert there["classes"] == pytest.approx(expected, abs=1e-5)
    assert sum(there["classes"].values()) == pytest.approx(1, abs=1e-5)
    assert max(expected.values()) - min(expected.values()) > 0.05


def test_others_open_the_classifier_with_the_auto_class(world, there):
    assert there["probabilities"] == pytest.approx(world["here"]["probabilities"], abs=1e-5)
    assert there["id2label"] == list(CLASS_NAMES)


def test_opening_shared_models_raises_no_warnings(there):
    assert "warn" not in there["output"].lower() and "MISSING" not in there["output"]


def test_the_token_is_in_no_file_and_in_no_message(world):
    for repo in world["hub"].commits:
        assert not [
            path for path, data in uploaded(world, repo[len("models/") :]).items() if WRITE_TOKEN.encode() in data
        ]
    for token in (WRITE_TOKEN, READ_TOKEN, "hf_unknown"):
        assert token not in world["output"]


@pytest.mark.parametrize(
    ("case", "problem", "fix"),
    [
        (
            "401",
            "cannot upload to me/new (401 Invalid username or password.)",
            "log in (`hf auth login`; HF_TOKEN takes precedence) with a token that may write",
        ),
        ("no token", "cannot upload to me/new (401 ", "log in (`hf auth login`"),
        ("403", "cannot upload to me/new (403 You don't have the rights", "use a token that may write there"),
        ("other's", 'under the namespace "you"', "choose another repository (--hub.repo_id)"),
        ("500", "cannot upload to me/broken (500 Internal error", "the Hub failed: wait a little"),
        (
            "name",
            "cannot upload to me/new..model (Cannot have -- or .. in repo_id",
            "a name on the Hub is user/name",
        ),
        ("dead", "Connection refused", "check the network and HF_ENDPOINT"),
        ("offline", "cannot upload to me/new", "unset HF_HUB_OFFLINE"),
    ],
)
def test_a_failed_upload_is_reported_in_one_line_with_the_fix(world, case, problem, fix):
    message = world["here"]["errors"][case]
    assert problem in message and fix in message
    end = f"the run is finished, and its model is in {world['folder'] / 'classifier'}"
    assert message.endswith(f"then run the same command again; {end}")
    assert "\n" not in message and len(message) < 500


def card_of(config: PretrainConfig | FinetuneConfig, metrics: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card."""
    _, front, text = sharing.model_card(config, metrics).split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_matter_tells_the_hub_what_the_classifier_is_and_scores():
    front, _ = card_of(FINETUNE, METRICS)
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "image-classification"
    assert front["datasets"] == ["jxie/stl10"] and front["base_model"] == "me/mae"
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert result["dataset"] == {"type": "jxie/stl10", "name": "jxie/stl10", "split": "test", "revision": "c0ffee"}
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "accuracy": 0.875,
        "f1": 0.75,
        "loss": 0.5,
    }


def test_the_front_matter_of_an_encoder_names_the_data_on_the_hub_and_no_score():
    front, text = card_of(PRETRAIN, {"step": 70, "eval/loss": 0.25})
    assert front["pipeline_tag"] == "image-feature-extraction" and front["datasets"] == ["jxie/stl10"]
    assert "model-index" not in front
    assert "| step | 70 |" in text and "| eval/loss | 0.2500 |" in text


def test_the_card_says_the_accuracy_with_its_interval_and_shows_hardware_and_pictures():
    config = dataclasses.replace(FINETUNE, hub=HubConfig(license="mit"))
    card = sharing.model_card(config, METRICS, record=RECORD, pictures={"Loss <i>": Path("curves.png")})
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "mit" and front["metrics"] == ["accuracy", "f1"]
    # by Wilson's formula, which tests/commands/test_demo.py writes out: 78.497 to 93.066 for 70 of 80
    assert "Test accuracy 87.5 % (95 % interval 78.5 to 93.1 %) on 80 images." in html.unescape(card)
    assert "![Loss &#60;i&#62;](curves.png)" in card
    assert "Trained on 100 images, by 1 process on cpu: a core, precision no." in card
    assert "The run started at 2026-11-28T10:00:00+00:00 and ended at 2026-11-28T11:30:00+00:00" in card
    assert "license" not in card_of(FINETUNE, METRICS)[0] and "interval" not in sharing.model_card(FINETUNE, METRICS)


def test_a_card_without_pictures_is_made_on_request(tmp_path):
    (tmp_path / "curves.png").write_bytes(b"")
    model: Any = SimpleNamespace(save_pretrained=lambda folder: folder.mkdir(exist_ok=True))
    for shown in (True, False):
        config = dataclasses.replace(FINETUNE, hub=HubConfig(pictures=shown))
        sharing.save_model(tmp_path / "model", model, config, {}, pictures={"Loss": tmp_path / "curves.png"})
        assert (tmp_path / "model" / "curves.png").exists() == shown
        assert ("curves.png" in (tmp_path / "model" / "README.md").read_text()) == shown


def test_class_names_cannot_break_the_table_or_become_html():
    _, text = card_of(FINETUNE, {"test/f1_per_class": dict.fromkeys(CLASS_NAMES, 0.5)})
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")][2:]
    assert [html.unescape(row[1]).strip() for row in rows] == [f"test/f1_per_class: {name}" for name in CLASS_NAMES]
    for _, cell, value, _ in rows:
        assert value.strip() == "0.5000" and not re.search(r"[<>`\[\]]", cell)


def test_the_card_names_no_folder_of_this_machine(tmp_path):
    data, encoder = tmp_path / "pictures", tmp_path / "runs" / "my encoder"
    model = ClassifierConfig(**SHAPE, init=str(encoder))
    config = FinetuneConfig(data=DataConfig(source=str(data)), model=model, output_dir=str(tmp_path / "<run>"))
    card = sharing.model_card(config, METRICS)
    assert str(tmp_path) not in card and str(tmp_path.parent) not in card
    assert "trained on pictures, starting from the encoder my encoder" in card and "# &#60;run&#62;" in card
    front, _ = card_of(config, METRICS)
    assert "datasets" not in front and "base_model" not in front


def test_the_card_of_a_baseline_says_that_it_started_from_random_weights():
    config = FinetuneConfig(data=DataConfig(source="digits"), model=ClassifierConfig(**SHAPE, init="scratch"))
    front, text = card_of(config, METRICS)
    assert "trained on digits, starting from random weights" in text
    assert "masked-autoencoder" not in front["tags"] and "base_model" not in front


def drawn(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture with all its values between smooth and noisy."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(-20, 20, (height, width, 3))
    waves = np.stack(
        [127 + 100 * np.sin(x / 9 + y / 17), 127 + 90 * np.cos(y / 7), 255 * (x + y) / (width + height)], -1
    )
    image = Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray((255 * x / width).astype(np.uint8)))
    return image


def levels_apart(image: Image.Image, folder: Path, resize: str = "crop") -> float:
    """The greatest difference, in grey levels from 0 to 255, between others' image processor and our road."""
    if NEEDS_TORCHVISION:
        pytest.skip("this transformers has no image processors without torchvision")
    config = PretrainConfig(data=DataConfig(resize=resize))
    sharing.write_processor(folder, config.model.image_size, config.data)
    processor = AutoImageProcessor.from_pretrained(folder)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    assert theirs.shape == (1, 3, 96, 96)
    difference = (road(image, config) - theirs).abs() * torch.tensor(config.data.image_std).view(3, 1, 1)
    return 255 * difference.max().item()


def test_the_image_processor_changes_nothing_in_images_of_the_right_size_and_warns_about_nothing(
    tmp_path, recwarn, caplog
):
    logger = logging.getLogger("transformers")  # which does not pass its records on
    logger.addHandler(caplog.handler)
    try:
        image = drawn(96, 96)
        assert levels_apart(image, tmp_path) < 1e-3
    finally:
        logger.removeHandler(caplog.handler)
    assert not recwarn.list and not caplog.records


@pytest.mark.parametrize(
    "size",
    [
        *[(192, 192), (97, 96), (96, 145), (640, 480), (50, 60), (20, 300)],
        *[(131, 100), (333, 481)],
    ],
)
def test_the_image_processor_resizes_and_crops_as_the_run_did(tmp_path, size):
    assert levels_apart(drawn(*size), tmp_path) <= 2


@pytest.mark.parametrize("size", [(192, 192), (96, 145), (640, 480), (50, 60), (20, 300)])
def test_the_image_processor_squashes_as_the_run_did(tmp_path, size):
    assert levels_apart(drawn(*size), tmp_path, resize="squash") <= 2


@pytest.mark.parametrize("size", [(192, 192), (96, 145), (640, 480)])
def test_after_padding_as_the_card_says_the_image_processor_changes_nothing(tmp_path, size):
    config = PretrainConfig(data=DataConfig(resize="pad"))
    card = sharing.model_card(config, {})
    code = card.split("This code adds them")[1].split("```python\n")[1].split("```")[0]
    drawn(*size).save(tmp_path / "photo.png")
    names: dict = {}
    exec(code.replace("photo.png", str(tmp_path / "photo.png")), names)
    assert levels_apart(names["image"], tmp_path, resize="pad") < 1e-3
    expected = road(drawn(*size), config)
    torch.testing.assert_close(road(names["image"], config), expected, atol=0, rtol=0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_the_image_processor_makes_the_same_rgb_of_other_modes(tmp_path, mode):
    assert levels_apart(drawn(96, 96, mode), tmp_path) < 1e-3


if __name__ == "__main__":
    print(json.dumps(publish(Path(sys.argv[1]))))
