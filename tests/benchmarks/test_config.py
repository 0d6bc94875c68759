"""The settings of a benchmark."""

from pathlib import Path

import pytest

from benchmarks.config import BenchmarkConfig
from mae_hf.config import parse
from mae_hf.config.runs import PretrainConfig
from mae_hf.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_no_precision_is_a_word_and_not_false():
    config = parse.read_command(BenchmarkConfig, ["--preset", "x.yaml", "--mixed_precision", "no"], prog="benchmark")
    assert config.mixed_precision == "no"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--measure", "pretrain,training"], "measure is pretrain,training but .*pretrain,finetune,.*--measure"),
        (["--measure", ""], "measure is  but must be one or more of pretrain"),
        (["--output", "numbers.txt"], "output is numbers.txt .*.json .--output"),
        (["--rounds", "0"], "rounds is 0 .*--rounds"),
        (["--seconds", "-1"], "seconds is -1.0 .*--seconds"),
        (["--scaling.efficiency", "2"], "scaling.efficiency is 2.0 .*at most 1.*--scaling.efficiency"),
        (["--mixed_precision", "fp8"], "mixed_precision fp8 .*no, bf16"),
    ],
)
def test_an_impossible_benchmark_is_refused_with_the_fix(words: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        parse.read_command(BenchmarkConfig, ["--preset", "configs/pretrain/digits.yaml", *words], prog="benchmark")


def test_the_preset_of_another_stage_is_refused():
    with pytest.raises(ConfigError, match=r"configs/finetune/digits.yaml has the unknown key"):
        parse.read_file(PretrainConfig, ROOT / "configs/finetune/digits.yaml")
