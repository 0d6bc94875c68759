"""The benchmark really prepares and trains, measures in turns, and writes what it measured."""

import itertools
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from mae_hf import cli
from mae_hf.benchmark import draw_images, measure, pretraining_work
from mae_hf.config import BenchmarkConfig, ConfigError, MAEConfig, PretrainConfig, PretrainTrainConfig

ROOT = Path(__file__).parents[1]
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MODEL = MAEConfig(**SHAPE, **DECODER, intermediate_size=32, decoder_intermediate_size=32)
CPU = torch.device("cpu")


def test_the_work_is_that_of_a_pretraining_step(tmp_path: Path):
    train = PretrainTrainConfig(batch_size=8, per_device_batch_size=4, base_lr=0.1)
    works = pretraining_work(Accelerator(cpu=True), PretrainConfig(model=MODEL, train=train), tmp_path)
    assert list(works) == ["preparation", "training_step", "end_to_end"]

    first, second = works["preparation"](), works["preparation"]()
    shapes = [(tuple(pixel_values.shape), tuple(noise.shape)) for pixel_values, noise in first]
    assert shapes == [((4, 3, 16, 16), (4, 16))] * 2  # two micro-batches
    assert not torch.equal(first[0][0], second[0][0])  # another batch each time
    assert first[0][0].abs().max() < 3  # normalised

    losses = [works["training_step"]() for _ in range(30)]
    assert losses[-1] < 0.95 * losses[0]  # the same batch again and again, learnt by heart
    assert works["end_to_end"]() > losses[-1]  # a batch it has not seen


def test_the_images_are_read_from_a_file_and_all_differ(tmp_path: Path):
    images = draw_images(6, 16, tmp_path).batch([0, 1, 2, 3, 4, 5])
    assert images.shape == (6, 16, 16, 3)
    assert images.dtype == torch.uint8
    assert len({tuple(image.flatten().tolist()) for image in images}) == 6
    assert [path.stat().st_size >= images.numel() for path in tmp_path.rglob("*.npy")] == [True]


def test_the_kinds_of_work_take_turns_and_the_rates_count_their_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mae_hf.benchmark.LEAST_SECONDS", 0.1)
    calls: list[tuple[str, float, float]] = []  # name, start, end

    def work(name: str, seconds: float) -> None:
        started = time.perf_counter()
        time.sleep(seconds)
        calls.append((name, started, time.perf_counter()))

    values = measure({"long": partial(work, "long", 0.2), "short": partial(work, "short", 0.02)}, 30, 2, CPU)
    turns = [list(turn) for _, turn in itertools.groupby(calls, key=lambda call: call[0])]
    assert [turn[0][0] for turn in turns] == ["long", "short"] * 3  # the first two are the warm-up
    assert len(turns[3]) > len(turns[2])  # short work is repeated until it lasts
    for round_, (long, short) in enumerate([turns[2:4], turns[4:6]]):
        for name, turn in (("long", long), ("short", short)):
            images_per_second = 30 * len(turn) / (turn[-1][2] - turn[0][1])
            assert values[name][round_] == pytest.approx(images_per_second, rel=0.3)


def test_the_script_prints_a_table_and_writes_json(tmp_path: Path):
    output = tmp_path / "new" / "benchmark.json"
    words = ["--preset", "configs/pretrain/digits.yaml", "--rounds", "2", "--mixed_precision", "bf16"]
    command = [sys.executable, "scripts/benchmark.py", *words, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert record["preset"] == "configs/pretrain/digits.yaml"
    assert record["config"]["model.image_size"] == 32
    assert record["mixed_precision"] == "bf16"
    assert record["threads"] >= 1
    assert record["versions"]["torch"] == torch.__version__
    assert list(record["images_per_second"]) == ["preparation", "training_step", "end_to_end"]
    for name, row in record["images_per_second"].items():
        assert len(row["rounds"]) == 2
        assert row["min"] == min(row["rounds"])
        assert row["max"] == max(row["rounds"])
        assert row["median"] == pytest.approx(sum(row["rounds"]) / 2)
        line = next(line for line in done.stdout.splitlines() if line.startswith(name))
        assert line.split()[1:] == [f"{row[key]:.1f}" for key in ("median", "min", "max")]
    assert all(word in done.stdout for word in ("bf16", record["device"], f"{record['threads']} threads"))


def test_no_precision_is_a_word_and_not_false():
    config = cli.parse(BenchmarkConfig, ["--preset", "x.yaml", "--mixed_precision", "no"], prog="benchmark")
    assert config.mixed_precision == "no"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "numbers.txt"], "output numbers.txt .*--output"),
        (["--rounds", "0"], "rounds 0 .*--rounds"),
        (["--mixed_precision", "fp8"], "mixed_precision fp8 .*no, bf16"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_fix(words: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        cli.parse(BenchmarkConfig, ["--preset", "configs/pretrain/digits.yaml", *words], prog="benchmark")


def test_the_preset_of_another_stage_is_refused():
    with pytest.raises(ConfigError, match=r"configs/finetune/digits.yaml has the unknown key"):
        cli.load(PretrainConfig, ROOT / "configs/finetune/digits.yaml")
