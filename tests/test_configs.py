"""The presets: each one parses and has a header, and the two stages of one name fit together."""

import dataclasses
import re
from pathlib import Path

import pytest

from benchmarks.config import BenchmarkConfig
from mae_hf.config import parse
from mae_hf.config.model import EncoderConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig

ROOT = Path(__file__).parents[1]
STAGES = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
PATHS = sorted(path for stage in STAGES for path in (ROOT / "configs" / stage).iterdir())
NAMES = {"digits", "stl10_tiny", "stl10_small", "stl10_base"}
PUBLISHED = "published_224"  # both stages start from the Hub


def load(stage: str, name: str):
    return parse.read_file(STAGES[stage], ROOT / "configs" / stage / f"{name}.yaml")


def case(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("stage", STAGES)
def test_both_stages_have_every_preset(stage):
    assert {path.name for path in PATHS if path.parent.name == stage} >= {
        f"{name}.yaml" for name in {*NAMES, PUBLISHED}
    }


@pytest.mark.parametrize("path", PATHS, ids=case)
def test_a_preset_parses_and_writes_into_the_folder_of_its_name(path):
    config = load(path.parent.name, path.stem)
    assert config.output_dir == f"runs/{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", PATHS, ids=case)
def test_the_header_of_a_preset_has_a_description_the_command_and_the_measured_result(path):
    header = [line for line in re.split(r"^[^#]", path.read_text(), flags=re.M)[0].splitlines() if line[:3] != "#  "]
    words = [line.split(":")[0] for line in header]
    assert [word for word in words if word != "# Baseline"] == ["# What", "# Command", "# Measured"]
    assert all(len(line.split(":", 1)[1].split()) >= 2 for line in header), header
    assert words == sorted(words, key=["# What", "# Command", "# Baseline", "# Measured"].index)
    assert ("# Baseline" in words) == (path.parent.name == "finetune")


@pytest.mark.parametrize("path", PATHS, ids=case)
def test_the_command_in_the_header_runs_this_preset(path):
    command = re.search(r"^# Command: (.*)$", path.read_text(), flags=re.M)
    words = command[1].split("   (")[0].split()
    assert words[:2] == ["accelerate", "launch"]
    script = words.index(f"scripts/{path.parent.name}.py")
    asked = parse.read_command(STAGES[path.parent.name], words[script + 1 :], prog="test")
    assert asked == load(path.parent.name, path.stem)


@pytest.mark.parametrize("stage", STAGES)
def test_the_defaults_are_the_preset_stl10_base(stage):
    assert load(stage, "stl10_base") == STAGES[stage]()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_fine_tuning_takes_the_encoder_that_pre_training_of_the_same_name_leaves(name):
    pretrain, finetune = load("pretrain", name), load("finetune", name)
    assert finetune.model.init == pretrain.output_dir
    for field in dataclasses.fields(EncoderConfig):
        assert getattr(finetune.model, field.name) == getattr(pretrain.model, field.name), field.name


@pytest.mark.parametrize("name", sorted({*NAMES, PUBLISHED}))
def test_both_stages_read_the_same_images_in_the_same_way(name):
    assert load("pretrain", name).data == load("finetune", name).data
    assert load("pretrain", name).augment.flip == load("finetune", name).augment.flip


@pytest.mark.parametrize("path", sorted((ROOT / "configs/benchmark").iterdir()), ids=case)
def test_a_shape_to_measure_is_a_pre_training_run_whose_header_measures_it(path):
    assert parse.read_file(PretrainConfig, path).output_dir == f"runs/benchmark/{path.stem}"
    header = re.match(r"# What: .+\n# Command: (.+)\n# Measured: .+\n", path.read_text())
    python, flag, module, *words = header[1].split()
    assert (python, flag, module) == ("python", "-m", "benchmarks.speed")
    assert parse.read_command(BenchmarkConfig, words, prog="test").preset == f"configs/benchmark/{path.name}"
