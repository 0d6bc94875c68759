"""The commands as Python functions: the same results as on the command line, from images in memory, too."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from forks import ROOT, succeed
from PIL import Image
from transformers import ViTForImageClassification, ViTModel

import mae_hf
from mae_hf.commands import finetune, open_run, pretrain
from mae_hf.config import parse
from mae_hf.config.runs import PretrainConfig
from mae_hf.errors import ConfigError, RunStopped
from mae_hf.models.mae import MaskedAutoencoder
from mae_hf.report.pictures import Pictures
from mae_hf.training import loop

SHAPE = {
    "model.image_size": 16, "model.patch_size": 4, "model.hidden_size": 16, "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2, "model.intermediate_size": 32,
}  # fmt: skip
STEPS = {"train.batch_size": 8, "train.epochs": 2, "train.warmup_ratio": 0, "train.eval_every_epochs": 1}
SMALL = {**SHAPE, **STEPS, "data.validation_fraction": 0.2}
DECODER = {
    "model.decoder_hidden_size": 16, "model.decoder_num_hidden_layers": 1, "model.decoder_num_attention_heads": 2,
    "model.decoder_intermediate_size": 32, "train.figure_every_epochs": 2, "train.probe_every_epochs": 2,
}  # fmt: skip
CLASSES = [("cat", "dog")[number % 2] for number in range(40)]
IMAGES = [Image.fromarray(pixels) for pixels in np.random.default_rng(0).integers(0, 256, (70, 20, 24, 3), np.uint8)]
SPLITS = {"train": IMAGES[:30], "test": IMAGES[30:40], "unlabeled": IMAGES[40:]}
LABELS = {"train": CLASSES[:30], "test": CLASSES[30:]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of `pretrain`, and of `finetune` from there and from scratch, of images in memory."""
    folder = tmp_path_factory.mktemp("runs")
    pretrained = mae_hf.pretrain(SPLITS, labels=LABELS, output_dir=folder / "pretrain", settings=SMALL | DECODER)
    tuned = mae_hf.finetune(SPLITS, pretrained, labels=LABELS, output_dir=folder / "tuned", settings=SMALL)
    scratch = mae_hf.finetune(SPLITS, "scratch", labels=LABELS, output_dir=folder / "scratch", settings=SMALL)
    return {"pretrain": pretrained, "tuned": tuned, "scratch": scratch}


def log_of(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without the speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("train/images_per_second", "probe/seconds")}
        for line in lines
    ]


def test_importing_the_package_loads_no_library_and_shows_the_functions():
    code = "import mae_hf, sys; print(*dir(mae_hf)); assert not {'torch', 'numpy', 'mae_hf.api'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"pretrain", "finetune", "probe", "embed", "predict", "compare", "reconstruct", "load"} <= set(
        done.stdout.split()
    )
    assert all(callable(getattr(mae_hf, name)) and getattr(mae_hf, name).__doc__ for name in mae_hf.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        _ = mae_hf.train


@pytest.mark.parametrize("command", ["pretrain", "tuned"])
def test_the_command_line_repeats_a_run_to_the_last_bit_from_its_config(runs: dict[str, Any], command: str, tmp_path):
    script = "pretrain" if command == "pretrain" else "finetune"
    folder = runs[command].folder
    succeed(f"scripts/{script}.py", "--config", folder / "config.yaml", "--output_dir", tmp_path / "again")
    assert log_of(tmp_path / "again") == log_of(folder)
    weights = [path.read_bytes() for path in (folder / "model").rglob("*.safetensors")]
    assert weights == [path.read_bytes() for path in (tmp_path / "again" / "model").rglob("*.safetensors")]
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == runs[command].metrics


def test_a_finished_run_is_returned_at_once_and_another_config_is_refused(runs: dict[str, Any]):
    again: dict[str, Any] = {"labels": LABELS, "output_dir": runs["tuned"].folder}
    assert mae_hf.finetune(SPLITS, runs["pretrain"], settings=SMALL, **again) == runs["tuned"]
    with pytest.raises(ConfigError, match="holds a run with a different config"):
        mae_hf.finetune(SPLITS, "scratch", settings=SMALL, **again)


@contextlib.contextmanager
def interrupted_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C arrives at that step."""

    def learning_rate_at(step: int, *rest: Any) -> float:
        if step == number:
            os.kill(os.getpid(), signal.SIGINT)
        return original(step, *rest)

    original = loop.learning_rate_at
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate_at", learning_rate_at)
        yield


def test_ctrl_c_saves_the_state_and_the_same_call_resumes(
    runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    call: dict[str, Any] = {"labels": LABELS, "output_dir": tmp_path / "run", "settings": SMALL | DECODER}
    with interrupted_at(4, monkeypatch), pytest.raises(KeyboardInterrupt) as stopped:
        mae_hf.pretrain(SPLITS, **call)
    assert isinstance(stopped.value, RunStopped) and "SIGINT: saved as" in str(stopped.value)
    resumed = mae_hf.pretrain(SPLITS, **call)
    assert log_of(resumed.folder)[-1]["eval/loss"] == log_of(runs["pretrain"].folder)[-1]["eval/loss"]


def test_a_classifier_that_starts_from_a_probe_is_fitted_once_and_is_never_worse_on_validation(
    runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def counted(*arguments: Any) -> Any:
        fits.append(arguments)
        return encoder_probe(*arguments)

    fits: list[Any] = []
    encoder_probe = finetune.encoder_probe
    settings = SMALL | {"model.head": "probe", "train.base_lr": 1.0}  # which spoils the encoder
    call: dict[str, Any] = {"labels": LABELS, "settings": settings, "init": runs["pretrain"]}
    whole = mae_hf.finetune(SPLITS, output_dir=tmp_path / "whole", **call)
    assert whole.metrics["eval/accuracy"] >= whole.metrics["probe/linear_cls_accuracy"]
    assert log_of(whole.folder)[0]["step"] == 0 and "train/loss" not in log_of(whole.folder)[0]
    monkeypatch.setattr(finetune, "encoder_probe", counted)
    with interrupted_at(3, monkeypatch), pytest.raises(KeyboardInterrupt):
        mae_hf.finetune(SPLITS, output_dir=tmp_path / "run", **call)
    resumed = mae_hf.finetune(SPLITS, output_dir=tmp_path / "run", **call)
    assert len(fits) == 1 and resumed.metrics == whole.metrics and log_of(resumed.folder) == log_of(whole.folder)


def test_the_minutes_of_a_run_include_the_linear_probe_after_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def noted(*arguments: Any) -> Any:
        probes.append("linear" in arguments[-1])
        return encoder_probe(*arguments)

    def measured(training: loop.Training) -> int:
        steps = steps_that_fit(training)
        assert set(probes) == {False, True}, "kNN while it trains, and the linear probe"
        probes.clear()
        return min(steps, 8)

    probes: list[bool] = []
    encoder_probe, steps_that_fit = pretrain.encoder_probe, open_run.steps_that_fit
    monkeypatch.setattr(pretrain, "encoder_probe", noted)
    monkeypatch.setattr(open_run, "steps_that_fit", measured)
    settings = SMALL | DECODER | {"train.minutes": 0.2}
    found = mae_hf.pretrain(SPLITS, labels=LABELS, output_dir=tmp_path, settings=settings)
    assert probes.count(True) == 1 and {"probe/knn_cls_f1", "probe/linear_mean_f1"} <= found.metrics.keys()


def test_results_show_their_numbers_and_their_picture(runs: dict[str, Any]):
    for result in runs.values():
        assert result.metrics == json.loads((result.folder / "metrics.json").read_text())
        assert str(result.folder) in repr(result) and "\n" not in repr(result)
        assert result.picture.is_file() and "data:image/png;base64," in result._repr_html_()
    assert "eval/loss" in repr(runs["pretrain"])


def test_models_are_opened_by_their_kind_and_called_with_images(runs: dict[str, Any], tmp_path: Path):
    mae, classifier = runs["pretrain"].model, runs["tuned"].model
    plain = shutil.ignore_patterns("autoencoder")
    encoder = mae_hf.load(shutil.copytree(runs["pretrain"].folder / "model", tmp_path / "plain", ignore=plain))
    kinds = (MaskedAutoencoder, ViTForImageClassification, ViTModel)
    assert [type(each.model) for each in (mae, classifier, encoder)] == list(kinds)
    assert np.array_equal(mae(IMAGES), encoder(IMAGES)) and mae(IMAGES).shape == (70, 16)
    assert not np.allclose(encoder(IMAGES), encoder(IMAGES, pooling="mean"))
    IMAGES[0].save(tmp_path / "image.png")
    mixed = [tmp_path / "image.png", np.asarray(IMAGES[0]), IMAGES[0].convert("RGBA")]
    assert np.allclose(encoder(mixed), encoder(IMAGES[:1]), atol=1e-6)
    assert classifier.class_names == ("cat", "dog") and encoder.class_names == ()
    for wrong in ([], "image.png", IMAGES[0]):
        with pytest.raises(ConfigError, match=r"write model\(\[image\]\)"):
            encoder(wrong)
    predicted = datasets.Dataset.from_parquet(str(runs["tuned"].folder / "predictions.parquet"))["probabilities"]
    assert np.allclose(classifier(IMAGES[30:40]), predicted[:], atol=1e-6)


def test_probe_compare_and_reconstruct(runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    probed = mae_hf.probe(runs["pretrain"], SPLITS, labels=LABELS, probes="knn", settings={"batch_size": 7})
    assert mae_hf.probe(runs["pretrain"], probes="knn", output_dir="same").metrics == probed.metrics
    assert probed.folder == Path("runs/probe/pretrain") and 0 <= probed.metrics["knn/cls/accuracy"] <= 1
    assert type(probed.model.model) is MaskedAutoencoder
    arms = {"tuned": runs["tuned"], "probe": [probed], "scratch": runs["scratch"].folder}
    with monkeypatch.context() as without_pictures:
        without_pictures.setattr(
            "mae_hf.report.page.draw_pictures", lambda comparison, folder, settings: Pictures(folder)
        )
        assert "best of 3 arms" in mae_hf.compare(arms, output_dir="arms").metrics["answer"]
    compared = mae_hf.compare(runs["tuned"], [runs["scratch"].folder])
    assert (compared.folder / "index.html").is_file() and "points" in repr(compared) and compared.picture.is_file()
    with pytest.raises(ConfigError, match="holds no model"):
        _ = compared.model
    IMAGES[1].save("image.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    drawn = mae_hf.reconstruct(runs["pretrain"], [IMAGES[0], "image.png"], output="~/drawn.png")
    assert drawn.picture == tmp_path / "home" / "drawn.png" and Image.open(drawn.picture).width > 100
    drawn = mae_hf.reconstruct(runs["pretrain"], [IMAGES[0]], output="drawn.svg")
    assert "data:image/svg+xml;base64," in drawn._repr_html_()


def test_embed_and_predict_take_images_and_image_files(runs: dict[str, Any], tmp_path: Path):
    test = IMAGES[30:40]
    files = [tmp_path / f"{number}.png" for number in range(10)]
    for image, file in zip(test, files, strict=True):
        image.save(file)
    for data, names in ((test, []), (files, [str(file) for file in files])):
        output = tmp_path / f"{len(names)}-named.parquet"
        embedded = mae_hf.embed(runs["pretrain"], data, output=output, neighbours=2)
        assert np.allclose(np.stack(embedded.table["cls"]), runs["pretrain"].model(test), atol=1e-5)
        assert embedded.table["file"].dropna().tolist() == names
        assert embedded.picture == output.with_name(f"{output.stem}-neighbours.png") and embedded.picture.is_file()
        predicted = mae_hf.predict(runs["tuned"], data, output=output.with_suffix(".csv")).table
        probabilities = predicted[["probability_cat", "probability_dog"]].to_numpy()
        assert np.allclose(probabilities, runs["tuned"].model(test), atol=1e-5)
    with pytest.raises(ConfigError, match="has no table: call mae_hf"):
        _ = runs["tuned"].table


@pytest.mark.filterwarnings("ignore:this CPU has no bf16 instructions")
def test_precision_differs_between_calls_and_a_thread_works(runs: dict[str, Any], tmp_path: Path):
    common: dict[str, Any] = {"labels": LABELS, "settings": SMALL}
    before = torch.get_rng_state()
    call = {"output_dir": tmp_path / "bf16", "precision": "bf16"}
    thread = threading.Thread(target=lambda: mae_hf.finetune(SPLITS, runs["pretrain"], **common, **call))
    thread.start()
    thread.join()
    again = mae_hf.finetune(SPLITS, runs["pretrain"], **common, output_dir=tmp_path / "no")
    assert json.loads((tmp_path / "bf16" / "run.json").read_text())["mixed_precision"] == "bf16"
    assert log_of(tmp_path / "bf16") != log_of(again.folder) == log_of(runs["tuned"].folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_config_can_be_an_object_a_file_or_a_preset(runs: dict[str, Any], tmp_path: Path):
    file = runs["pretrain"].folder / "config.yaml"
    config = parse.read_file(PretrainConfig, file)
    for call in ({"data": config}, {"config": config}, {"config": file}, {"config": str(file)}):
        assert mae_hf.pretrain(**call) == runs["pretrain"]
    with pytest.raises(ConfigError, match="config tiny is neither a YAML file nor a preset: presets are digits, "):
        mae_hf.pretrain(config="tiny")
    with pytest.raises(ConfigError, match="PretrainConfig is the config of a different command: give a FinetuneConfig"):
        mae_hf.finetune(config=config)
    with pytest.raises(ConfigError, match="two configs are given"):
        mae_hf.pretrain(config, config="digits")
    with pytest.raises(ConfigError, match="contains a comma or ="):
        mae_hf.compare({"a": "runs/x,y", "b": "runs/z"}, output_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"train\.epochs is -1\.0 but must be above 0"):
        mae_hf.pretrain(config="digits", settings={"train.epochs": -1}, output_dir=tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"data": "missing"}, "missing is neither a folder nor a parquet file"),
        ({"data": "digits", "labels": [1]}, "labels are for images in memory"),
        ({"labels": [1]}, "labels are for images in memory"),
        ({"data": IMAGES, "labels": [1] * 70, "init": "missing"}, "missing does not exist"),
        ({"settings": {"train.epoch": 1}}, "settings has the unknown key train.epoch: the nearest one is train.epochs"),
    ],
)
def test_mistakes_are_one_line_of_a_config_error(call: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        mae_hf.finetune(**{"output_dir": tmp_path / "run", **call})
    assert not (tmp_path / "run").exists()
