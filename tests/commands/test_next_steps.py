"""The last lines of a run: probes in words, commands that parse, and when to use the probe."""

import dataclasses
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from forks import ROOT

from mae_hf.__main__ import COMMANDS
from mae_hf.commands.next_steps import compare_with_probe, describe_next
from mae_hf.config import parse
from mae_hf.config.commands import EvaluateConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.data.splits import Split

HALF = SimpleNamespace(mixed_precision="bf16")
VALUES = {"probe/knn_cls_accuracy": 0.5, "probe/knn_mean_accuracy": 0.4, "probe/knn_cls_f1": 0.9}
VALUES |= {"probe/linear_cls_accuracy": 0.55, "probe/linear_mean_accuracy": 0.625, "probe/seconds": 12.34}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def parsed(command: str, config_class: type):
    """The config that a printed command makes; the launcher must accept its own part."""
    words = shlex.split(command)
    launch_command_parser().parse_args(words[2:])
    name = words.index("mae_hf") + 1
    assert COMMANDS[words[name]] is config_class and words[:2] == ["accelerate", "launch"]
    return parse.read_command(config_class, words[name + 1 :], prog="test")


class Images(list):
    """The row numbers of images, and the split that they come from."""

    def __init__(self, number: int, source: str, num_rows: int):
        super().__init__(range(number))
        self.parts = [(SimpleNamespace(split=Split(source, "train", np.zeros(num_rows), None, None, "")),)]


def last_lines(values: dict[str, float], source: str = "digits", num_rows: int = 5000) -> list[str]:
    """What is printed after pre-training with the preset `digits`, and probes with 4,500 labels of a source."""
    config = parse.read_file(PretrainConfig, "configs/pretrain/digits.yaml")
    probed = (Images(4500, source, num_rows), Images(500, source, num_rows))
    return describe_next(HALF, config, probed, values).splitlines()


def test_the_better_pooling_of_each_probe_is_named_with_labels_and_time():
    first, then, *_ = last_lines(VALUES)
    assert first == (
        "frozen encoder: linear probe 62.5 % (mean), kNN 50.0 % (cls) on 500 validation images, from 4500 labels, in "
        "12.3 s"
    )
    assert then == "next, probe it on test images, or fine-tune it:"
    assert last_lines({"eval/loss": 1.0})[:2] == ["", then]


def test_the_commands_after_pre_training_use_its_encoder_and_images():
    command = last_lines(VALUES)[2]
    assert "--mixed_precision bf16 -m mae_hf evaluate" in command
    evaluate = parsed(command, EvaluateConfig)
    assert (evaluate.model, evaluate.probe) == ("runs/pretrain/digits", "knn,linear")
    assert (evaluate.data.source, evaluate.data.validation_fraction) == ("digits", 0.2)
    finetune = parsed(last_lines(VALUES, "my photos")[3], FinetuneConfig)
    assert finetune.model.init == "runs/pretrain/digits" and finetune.model.head == "probe"
    assert (finetune.data.source, finetune.data.validation_fraction) == ("my photos", 0.2)
    many = parsed(last_lines(VALUES, num_rows=50_000)[3], FinetuneConfig)
    assert many.model.head == "zero", "the recipe for few labels is meant for up to 5,000"
    unprobed = parsed(last_lines({})[3], FinetuneConfig)
    assert unprobed.model.head == "zero", "without a linear probe, the classifier cannot start from one"
    for asked in (finetune, many, unprobed):  # null: as in the encoder
        assert {asked.model.image_size, asked.model.hidden_size, asked.data.image_mean, asked.data.resize} == {None}


@pytest.mark.parametrize(("accuracy", "advises"), [(0.62, True), (0.625, False), (0.9, False)])
def test_the_probe_is_advised_where_fine_tuning_is_worse_on_validation(accuracy: float, advises: bool):
    config = FinetuneConfig()
    said = compare_with_probe(HALF, config, VALUES, accuracy, 500)
    assert f"fine-tuned {100 * accuracy:.1f} %, linear probe of its encoder 62.5 % (mean)" in said
    assert ("use the probe" in said) == advises
    if advises:
        assert parsed(said.splitlines()[1], EvaluateConfig).model == config.model.init
    elsewhere = dataclasses.replace(config, model=dataclasses.replace(config.model, init="me/model", revision="v1"))
    assert "\n" not in compare_with_probe(HALF, elsewhere, VALUES, accuracy, 500), "evaluate opens the main branch"
    assert ("too few to be sure" in compare_with_probe(HALF, config, VALUES, accuracy, 60)) == advises
    assert compare_with_probe(HALF, config, {}, accuracy, 500) == ""
