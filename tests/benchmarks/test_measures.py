"""The contenders of each measure, and their settings."""

import dataclasses
import pickle
from pathlib import Path

import pytest
from few_turns import MODEL, small_run

from benchmarks import measures, ours, stock
from benchmarks.config import MEASURES as NAMES
from benchmarks.flops import pretraining_gflop
from benchmarks.measures import MEASURES, Setup, contenders_of


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("measures")
    return Setup(small_run(folder), folder, "bf16")


def test_the_command_line_knows_every_measure():
    assert tuple(MEASURES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_contenders_can_be_pickled_and_have_a_peak_to_compare_with(
    setup: Setup, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measures, "NUM_IMAGES", (10, 20))
    contenders = contenders_of(name, setup)
    assert pickle.loads(pickle.dumps(contenders)).keys() == contenders.keys()
    assert {f"{contender.precision} GEMM" for contender in contenders.values()} <= contenders.keys()
    assert next(iter(contenders.values())).is_baseline


def test_stock_is_measured_in_both_precisions_and_mae_hf_in_the_one_asked_for(setup: Setup):
    contenders = contenders_of("pretrain", setup)
    assert [name for name, contender in contenders.items() if contender.is_baseline] == ["stock fp32", "stock bf16"]
    assert [contenders[name].work.keywords["bf16"] for name in ("stock fp32", "stock bf16")] == [False, True]
    assert contenders["mae_hf"].work.keywords["precision"] == "bf16"
    in_fp32 = contenders_of("pretrain", dataclasses.replace(setup, mixed_precision="no"))
    assert in_fp32["mae_hf"].work.keywords["precision"] == "no"
    assert in_fp32["mae_hf"].precision == "fp32"


def test_all_train_the_same_shape_and_half_the_decoding_counts_half(setup: Setup):
    contenders = contenders_of("pretrain", setup)
    configs = {name: contender.work.keywords["config"] for name, contender in contenders.items() if contender.gflop}
    half = configs.pop("mae_hf, decode_ratio 0.5")
    assert set(map(repr, configs.values())) == {repr(setup.config)}
    assert half.model == dataclasses.replace(MODEL, decode_ratio=0.5)
    assert contenders["mae_hf, decode_ratio 0.5"].gflop == pretraining_gflop(half.model)
    assert contenders["stock fp32"].gflop == contenders["mae_hf"].gflop == pretraining_gflop(MODEL)


def test_compiled_layers_are_compared_with_eager_ones(setup: Setup):
    eager, compiled, _ = contenders_of("compile", setup).values()
    assert [c.work.keywords["config"].train.compile for c in (eager, compiled)] == ["never", "always"]
    assert (eager.is_baseline, compiled.is_baseline) == (True, False)


def test_sizes_differ_only_in_their_images(setup: Setup, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measures, "NUM_IMAGES", (10, 2_500))
    contenders = [c for c in contenders_of("size", setup).values() if c.gflop]
    assert [len(c.work.keywords["open_images"]()) for c in contenders] == [10, 2_500]
    assert all(c.work.func is ours.pretrain and c.work.keywords["config"] == setup.config for c in contenders)


def test_features_are_taken_in_batches_of_one_size(setup: Setup):
    assert contenders_of("features", setup)["mae_hf"].work.keywords["batch_size"] == stock.FEATURES_BATCH


def test_the_folder_holds_the_generated_images(setup: Setup):
    assert isinstance(setup.folder, Path)
    assert len(setup.images()) == 100_000
