"""The examination of models: every fault of a sick model is named, and a healthy one has none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_classifier import DECODER, ENCODER, NAMES
from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.models.classifier import build_classifier
from mae_hf.models.diagnosis import examine_model
from mae_hf.models.mae import MaskedAutoencoder, build_mae

PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.2],
    "size": {"height": 32, "width": 32},
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mae` and `classifier`, whose LayerNorms look trained."""
    folder = tmp_path_factory.mktemp("healthy")
    mae = build_mae(MAEConfig(**ENCODER, **DECODER), "sdpa")
    classifier = build_classifier(ClassifierConfig(init="scratch", **ENCODER), NAMES, "sdpa", seed=0)
    for name, model in (("mae", mae), ("classifier", classifier)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-3 * torch.randn(parameter.shape) * parameter.requires_grad
        model.save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def faults(folder: Path) -> list[str]:
    return [str(finding) for finding in examine_model(folder) if finding.severity == "fault"]


def sick(healthy: Path, tmp_path: Path, kind: str, change: Callable[[dict], None]) -> list[str]:
    """The faults of a copy after a change of its weights by name."""
    folder = shutil.copytree(healthy / kind, tmp_path / "sick")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return faults(folder)


def edited(healthy: Path, tmp_path: Path, kind: str, file: str, **values: object) -> list[str]:
    """The faults of a copy in which a JSON file has other values."""
    folder = shutil.copytree(healthy / kind, tmp_path / "sick")
    content = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps(content))
    return faults(folder)


@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_a_healthy_model_has_no_fault(healthy: Path, kind: str):
    found = list(examine_model(healthy / kind))
    assert {finding.severity for finding in found} == {"ok"} and len(found) > 3


def test_a_new_model_of_stock_transformers_has_no_positions(tmp_path: Path):
    ViTMAEForPreTraining(ViTMAEConfig(**ENCODER, **DECODER)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    found = faults(tmp_path)
    assert len(found) == 3
    assert "transformers 4 silently loses this decoder" in found[0]
    assert "the position table of the decoder is zero" in found[1]
    assert "the position table of the encoder is zero" in found[2]


ODD_SHAPES = [(), (0,), (1, 0, 48), (0, 17, 48), (1, 17, 0), (1, 1, 48), (17, 48), (1, 8, 3)]


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_weights_of_any_shape_end_in_a_finding(healthy: Path, tmp_path: Path, shape: tuple[int, ...]):
    odd = {TABLE: torch.ones(shape), "classifier.weight": torch.ones(shape), "vit.layernorm.weight": torch.ones(shape)}
    found = sick(healthy, tmp_path, "classifier", lambda weights: weights.update(odd))
    assert "embeddings.position_embeddings" in "".join(found) and "3 classes, but the classifier has" in "".join(found)


TABLE = "vit.embeddings.position_embeddings"
WEIGHTS = [
    ("mae", lambda w: w[TABLE][0, 5:7].zero_(), "has 15 different rows for 16 patches, and 2 zero rows"),
    ("mae", lambda w: w[TABLE][0, 1:].copy_(w[TABLE][0, 1].clone()), "encoder is equal for all patches"),
    ("mae", lambda w: w["decoder.decoder_pos_embed"].mul_(0.5), "the decoder is not sine-cosine"),
    (
        "mae",
        lambda w: w["decoder.mask_token"].fill_(float("nan")),
        "weights that hold NaN or infinity (1): decoder.mask_token",
    ),
    ("mae", lambda w: w["decoder.decoder_pred.weight"].zero_(), "have one value in all places"),
    ("mae", lambda w: [w.pop(name) for name in list(w) if name.startswith("decoder.")], "the decoder is missing"),
    ("mae", lambda w: w.pop("vit.layernorm.bias"), "weights that are missing (1): layernorm.bias"),
    ("mae", lambda w: w.update(extra=torch.ones(2)), "weights that have no place in this model (1): extra"),
    ("classifier", lambda w: w.update({"vit.layernorm.bias": torch.ones(7)}), "layernorm.bias (7,), not (48,)"),
    (
        "classifier",
        lambda w: w.update({"classifier.weight": torch.randn(5, 48)}),
        "3 classes, but the classifier has the shape (5, 48)",
    ),
    (
        "classifier",
        lambda w: w.update({"vit.layernorm.bias": torch.ones(48).char()}),
        "weights that are whole numbers, so quantised (1)",
    ),
]


def test_a_learned_table_is_a_fault_unless_the_encoder_comes_from_a_vit(healthy: Path, tmp_path: Path):
    folder = shutil.copytree(healthy / "mae", tmp_path / "sick")
    weights = load_file(folder / "model.safetensors")
    torch.nn.init.normal_(weights[TABLE])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "learned, because the encoder comes from a ViT" in "\n".join(map(str, examine_model(folder)))
    assert faults(folder) == []
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "mae_loss"}))
    assert "the position table of the encoder is not sine-cosine" in "".join(faults(folder))


@pytest.mark.parametrize(("kind", "change", "said"), WEIGHTS, ids=[said for *_, said in WEIGHTS])
def test_a_sick_weight_is_named_in_the_only_fault(healthy: Path, tmp_path: Path, kind: str, change, said: str):
    found = sick(healthy, tmp_path, kind, change)
    assert len(found) == 1 and said in found[0], found


def test_a_decoder_with_first_values_beside_a_trained_encoder_was_lost(healthy: Path, tmp_path: Path):
    def forget(weights: dict) -> None:
        for name, value in weights.items():
            if name.startswith("decoder.") and "layernorm" in name:
                value.fill_(1.0 if name.endswith("weight") else 0.0)

    assert "the decoder is new, but the encoder is trained" in "".join(sick(healthy, tmp_path, "mae", forget))


FILES = [
    ("preprocessor_config.json", {"image_std": [0.2, 0, 0.2]}, "image_std is [0.2, 0, 0.2], not between 0.02 and 1"),
    ("preprocessor_config.json", {"image_mean": [120.0, 110.0, 100.0]}, "divide them by 255"),
    ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean is [0.5], not 3 numbers"),
    ("preprocessor_config.json", {"image_mean": [0.5, float("nan"), 0.5]}, "not between 0 and 1"),
    ("preprocessor_config.json", {"do_normalize": False}, "do_normalize is False"),
    ("preprocessor_config.json", {"do_resize": False}, "do_resize is False, so only images of one size"),
    ("preprocessor_config.json", {"rescale_factor": 1 / 127.5}, "not 1/255"),
    ("preprocessor_config.json", {"do_center_crop": False, "size": {"shortest_edge": 32}}, "not cropped to a square"),
    ("preprocessor_config.json", {"size": {"height": 224, "width": 224}}, "but image_size of config.json is 32"),
    ("config.json", {"id2label": {"0": "LABEL_0", "1": "dog", "2": "ship"}}, "1 of 3 classes have no name: LABEL_0"),
    ("config.json", {"id2label": {"1": "cat", "2": "dog", "3": "ship"}}, "does not number the classes from 0"),
    ("config.json", {"label2id": {"cat": 1, "dog": 0, "ship": 2}}, "label2id in config.json contradicts id2label"),
    ("config.json", {"auto_map": {"AutoModel": "model.Evil"}}, "comes with code (auto_map in config.json)"),
    ("config.json", {"hidden_size": "wide"}, "has hidden_size wide in its config.json"),
    ("config.json", {"num_attention_heads": 5}, "num_attention_heads 5 in its config.json, which does not divide"),
]


@pytest.mark.parametrize(("file", "values", "said"), FILES, ids=[said for *_, said in FILES])
def test_a_wrong_value_in_a_file_is_named_in_the_only_fault(
    healthy: Path, tmp_path: Path, file: str, values: dict, said: str
):
    found = edited(healthy, tmp_path, "classifier", file, **values)
    assert len(found) == 1 and said in found[0], found


def test_names_of_published_models_are_no_fault(healthy: Path, tmp_path: Path):
    labels = {"id2label": {"0": "crane", "1": "crane", "2": "ship"}, "label2id": {"crane": "1", "ship": "2"}}
    folder = shutil.copytree(healthy / "classifier", tmp_path / "published")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | labels))
    found = [str(finding) for finding in examine_model(folder)]
    assert not [line for line in found if line.startswith("fault")], found
    assert "note   several classes have the same name: crane" in found
    numbers_as_text = {"cat": "0", "dog": "1", "ship": "2"}
    assert not edited(healthy, tmp_path, "classifier", "config.json", label2id=numbers_as_text)


def test_every_fault_is_named_and_not_only_the_first(healthy: Path, tmp_path: Path):
    folder = shutil.copytree(healthy / "classifier", tmp_path / "sick")
    (folder / "config.json").write_text("{")
    (folder / "preprocessor_config.json").unlink()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    found = "\n".join(faults(folder))
    assert found.count("\n") == 2
    assert (
        "config.json cannot be read" in found
        and "preprocessor_config.json cannot be read (No such file or directory)" in found
    )
    assert "model.safetensors is cut short, damaged or a pointer" in found


def test_weights_in_a_pickle_or_a_pointer_are_not_opened(healthy: Path, tmp_path: Path):
    folder = shutil.copytree(healthy / "classifier", tmp_path / "sick")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "or a pointer of Git LFS" in faults(folder)[0]
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "model.safetensors is missing: download it again. If there is only pytorch_model.bin" in faults(folder)[0]


def test_half_precision_is_a_note(healthy: Path, tmp_path: Path):
    folder = shutil.copytree(healthy / "mae", tmp_path / "half")
    weights = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = [str(finding) for finding in examine_model(folder) if finding.severity != "ok"]
    assert found == [f"note   {len(weights)} weights, stored as bfloat16"]


def test_the_processor_of_transformers_fits(healthy: Path, tmp_path: Path):
    folder = shutil.copytree(healthy / "mae", tmp_path / "own")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    assert faults(folder) == []


def test_weights_in_several_files_are_joined(healthy: Path, tmp_path: Path):
    folder = shutil.copytree(healthy / "mae", tmp_path / "sharded")
    MaskedAutoencoder.from_pretrained(healthy / "mae").save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and faults(folder) == []
    shards[0].unlink()
    assert "weights that are missing (" in faults(folder)[0]
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"extra": "../other/model.safetensors"}}))
    assert "has weights in ../other/model.safetensors, not beside its index" in faults(folder)[0]
