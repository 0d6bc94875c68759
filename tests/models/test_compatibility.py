"""Models written with transformers 5 open in version 4 and the other way round, with the same predictions.

Transformers 4 runs in a separate process, from a folder made by the command in `SKIPPED`.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import ViTForImageClassification, ViTMAEForPreTraining

from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.errors import ConfigError
from mae_hf.models.classifier import build_classifier
from mae_hf.models.mae import MaskedAutoencoder, build_mae, export_encoder

FOLDER = os.environ.get("MAE_HF_TRANSFORMERS_4", "")
SKIPPED = (
    "set MAE_HF_TRANSFORMERS_4 to a folder DIR made by: pip install --target DIR --no-deps transformers==4.57.6 "
    "huggingface-hub==0.36.0 tokenizers==0.22.1"
)
pytestmark = pytest.mark.skipif(not FOLDER, reason=SKIPPED)

IN_TRANSFORMERS_4 = """
import json, sys, torch, transformers
from transformers import AutoModel, ViTForImageClassification, ViTMAEForPreTraining
folder = sys.argv[1]
images, noise = torch.load(folder + "/batch.pt")
options = {"output_loading_info": True}
mae, mae_info = ViTMAEForPreTraining.from_pretrained(folder + "/mae", **options)
encoder, encoder_info = AutoModel.from_pretrained(folder + "/encoder", **options)
classifier, classifier_info = ViTForImageClassification.from_pretrained(folder + "/classifier", **options)
with torch.no_grad():
    outputs = {
        "mae": mae(images, noise=noise).logits,
        "encoder": encoder(images).pooler_output,
        "encoder type": type(encoder).__name__,
        "classifier": classifier(images).logits,
        "version": transformers.__version__,
        "loading": [mae_info, encoder_info, classifier_info],
    }
torch.save(outputs, folder + "/outputs.pt")
mae.save_pretrained(folder + "/stock_4")
ViTMAEForPreTraining(mae.config).save_pretrained(folder + "/new_in_4")
"""


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    """A folder with our three models, and with the outputs and models that transformers 4 saved there."""
    folder = tmp_path_factory.mktemp("exchanged")
    encoder = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2}
    encoder |= {"num_attention_heads": 3, "intermediate_size": 96}
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4}
    torch.manual_seed(0)
    mae = build_mae(MAEConfig(**encoder, **decoder, decoder_intermediate_size=64), "sdpa").eval()
    with torch.no_grad():
        for parameter in mae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # the tables too: nothing may be filled in while loading
    mae.save_pretrained(folder / "mae")
    export_encoder(mae).save_pretrained(folder / "encoder")
    classifier = build_classifier(ClassifierConfig(init=str(folder / "mae"), **encoder), ("a", "b", "c"), "sdpa", 0)
    torch.nn.init.normal_(classifier.classifier.weight)
    classifier.save_pretrained(folder / "classifier")
    torch.save((torch.randn(2, 3, 32, 32), torch.rand(2, 16)), folder / "batch.pt")
    environment = os.environ | {"PYTHONPATH": FOLDER, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", IN_TRANSFORMERS_4, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@torch.no_grad()
def test_transformers_4_opens_our_models_whole_and_with_the_same_outputs(exchanged):
    images, noise = torch.load(exchanged / "batch.pt")
    theirs = torch.load(exchanged / "outputs.pt")
    assert theirs["version"].startswith("4.")
    assert not any(any(info.values()) for info in theirs["loading"])
    mae = MaskedAutoencoder.from_pretrained(exchanged / "mae")
    torch.testing.assert_close(theirs["mae"], mae(images, noise=noise).logits)
    torch.testing.assert_close(theirs["encoder"], export_encoder(mae)(images).last_hidden_state[:, 0])
    assert theirs["encoder type"] == "ViTModel"
    classifier = ViTForImageClassification.from_pretrained(exchanged / "classifier")
    torch.testing.assert_close(theirs["classifier"], classifier(images).logits)


@torch.no_grad()
@pytest.mark.parametrize("version", [4, 5])
def test_a_stock_checkpoint_of_either_version_opens_in_ours(exchanged, tmp_path, version):
    images, noise = torch.load(exchanged / "batch.pt")
    folder = exchanged / "stock_4"
    if version == 5:
        folder = tmp_path
        ViTMAEForPreTraining.from_pretrained(exchanged / "mae").save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["transformers_version"].startswith(f"{version}.")
    logits = MaskedAutoencoder.from_pretrained(folder)(images, noise=noise).logits
    torch.testing.assert_close(logits, torch.load(exchanged / "outputs.pt")["mae"])


def test_the_empty_decoder_table_of_a_new_transformers_4_model_is_refused(exchanged):
    with pytest.raises(ConfigError, match=r"position table decoder.decoder_pos_embed that is not finite or equal"):
        MaskedAutoencoder.from_pretrained(exchanged / "new_in_4")
