"""`doctor` on the command line: a line for each finding, the number of faults at the end, and the exit code."""

import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
from forks import run, typed
from hub_server import Hub
from PIL import Image
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mae_hf.config.model import MAEConfig
from mae_hf.models.mae import build_mae, export_encoder

ENCODER = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
DECODER = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.2] * 3, "size": {"height": 32, "width": 32}}


def test_a_sick_model_ends_with_code_1_and_a_healthy_one_with_0(tmp_path: Path):
    ViTMAEForPreTraining(ViTMAEConfig(**ENCODER, **DECODER)).save_pretrained(tmp_path / "stock")
    sick = run("scripts/doctor.py", tmp_path / "stock")
    assert sick.returncode == 1 and sick.stderr == ""
    heading, *findings, last = sick.stdout.splitlines()
    assert heading == str(tmp_path / "stock") and last.startswith("4 faults: ")
    assert {line.split()[0] for line in findings} == {"ok", "note", "fault"}

    mae = build_mae(MAEConfig(**ENCODER, **DECODER), "sdpa")
    parts = {"": mae, "encoder": export_encoder(mae)}
    for part, model in parts.items():
        model.save_pretrained(tmp_path / "run" / "model" / part)
        (tmp_path / "run" / "model" / part / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    healthy = run("scripts/doctor.py", tmp_path / "run")
    assert healthy.returncode == 0 and healthy.stderr == ""
    headings = [line for line in healthy.stdout.splitlines() if line.startswith(str(tmp_path))]
    assert headings == [str(tmp_path / "run/model"), str(tmp_path / "run/model/encoder")]
    assert healthy.stdout.splitlines()[-1] == "no fault was found"


def test_images_are_examined_with_a_line_for_each_finding(image_folder: Path):
    words = ("scripts/doctor.py", image_folder, "--image_size", "12")
    healthy = run(*words)
    assert healthy.returncode == 0, healthy.stdout
    assert "  ok     train: 20 images, classes: 2" in healthy.stdout
    mean = [float(value) for value in re.search(r"image_mean \[(.*?)\]", healthy.stdout)[1].split(",")]
    pixels = [
        np.asarray(Image.open(file))
        for part in ("train", "unlabeled")
        for file in image_folder.glob(f"{part}/**/*.png")
    ]
    assert np.allclose(mean, np.mean(pixels, axis=(0, 1, 2)) / 255, atol=1e-4)
    (image_folder / "train" / "cat" / "empty.png").touch()
    shutil.copy(image_folder / "train" / "dog" / "10.png", image_folder / "test" / "dog" / "copy.png")
    sick = run(*words)
    assert sick.returncode == 1 and sick.stdout.splitlines()[-1].startswith("2 faults: mend them before")
    faults = [line for line in sick.stdout.splitlines() if line.startswith("  fault")]
    assert "empty.png (it is empty)" in faults[0]
    assert (
        "1 of 20 images of train duplicate or nearly duplicate images of test" in faults[1] and "copy.png" in faults[1]
    )


def test_the_hub_says_whether_a_name_is_a_model_or_images(tmp_path: Path, image_folder: Path):
    mae = build_mae(MAEConfig(**ENCODER, **DECODER), "sdpa")
    for part, model in {"": export_encoder(mae), "autoencoder": mae}.items():
        model.save_pretrained(tmp_path / "model" / part)
    model_files = {str(file.relative_to(tmp_path / "model")): file for file in (tmp_path / "model").rglob("*.*")}
    pixels = {"image": [str(file) for file in sorted(image_folder.glob("train/*/*.png"))], "label": [0, 1] * 10}
    images = datasets.Dataset.from_dict(
        pixels, datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    )
    images.to_parquet(tmp_path / "train.parquet")
    with Hub() as hub:
        hub.commit("models/me/model", {name: file.read_bytes() for name, file in model_files.items()})
        hub.commit("datasets/me/images", {"train.parquet": (tmp_path / "train.parquet").read_bytes()})
        place = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": tmp_path / "home",
        }
        place |= {"HF_DATASETS_CACHE": tmp_path / "datasets", "MAE_HF_CACHE": tmp_path / "cache"}
        words = ("env", *(f"{name}={value}" for name, value in place.items()), "mae_hf", "doctor")
        model = typed(*words, "me/model")
        assert model.returncode == 1, model.stderr
        assert (
            model.stdout.count("preprocessor_config.json cannot be read (No such file or directory)") == 2
            and "the decoder is sine" in model.stdout
        )
        source = typed(*words, "me/images", "--image_size", "12")
        assert source.returncode == 0, source.stdout + source.stderr
        assert "train: 20 images, classes: 2" in source.stdout
        unknown = typed(*words, "me/nothing")
        assert unknown.returncode == 2 and unknown.stderr.startswith("error: me/nothing ")


def test_without_a_name_the_command_says_what_is_missing():
    done = typed("mae_hf", "doctor")
    assert done.returncode == 2 and done.stderr.startswith("error: name must be given")
