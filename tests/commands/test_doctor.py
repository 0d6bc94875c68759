"""`doctor`, as it is typed: a line for each finding, a last line with the number of faults, and the exit code."""

import json
from pathlib import Path

from forks import run, typed
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


def test_without_a_name_the_command_says_what_is_missing():
    done = typed("mae_hf", "doctor")
    assert done.returncode == 2 and done.stderr.startswith("error: name must be given")
