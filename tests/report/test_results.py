"""The numbers of two arms on runs small enough to count by hand."""

import json
import math
from pathlib import Path

import pytest
from run_folders import write_run
from scipy.stats import ttest_ind

from mae_hf.config import parse
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.report.results import Results, measure
from mae_hf.training.finished_runs import Run, read_run

ALL, THREE, TWO, ONE = (True,) * 4, (True, True, True, False), (True, True, False, False), (True, False, False, False)


def arm(folder: Path, init: str, *runs: tuple[int, tuple[bool, ...], tuple[float, ...]]) -> list[Run]:
    """Runs of (seed, right, curve)."""
    return [
        read_run(write_run(folder / f"{init}-{seed}", init, right, curve=curve, seed=seed))
        for seed, right, curve in runs
    ]


def measure_two(ours: list[Run], scratch: list[Run]) -> Results:
    """The results of two arms of one recipe each."""
    return measure({"ours": [ours], "scratch": [scratch]})


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two seeds each, one of them in both arms."""
    ours = arm(tmp_path, "encoder", (0, ALL, (0.5, 0.7, 0.9)), (1, THREE, (0.4, 0.6, 0.8)))
    return measure_two(ours, arm(tmp_path, "scratch", (1, TWO, (0.2, 0.4, 0.6)), (2, ONE, (0.1, 0.5, 0.4))))


def test_means_and_spreads_are_over_seeds(results):
    assert results.arms["ours"].accuracy.center == pytest.approx(0.875)
    assert results.arms["ours"].accuracy.sd == pytest.approx(0.25 / math.sqrt(2))
    assert results.arms["scratch"].accuracy.values == (0.5, 0.25)
    assert results.gain == pytest.approx(0.875 - 0.375)
    assert (results.arms["ours"].seeds, results.arms["scratch"].seeds) == ((0, 1), (1, 2))


def test_the_interval_is_over_test_images_of_the_mean_over_seeds(results):
    # Image by image the arms gain 0, 1/2, 1 and 1/2: resampled means are between 0 and 1, and seldom at the ends.
    assert results.gain_interval is not None
    assert 0 < results.gain_interval.low < 0.5 < results.gain_interval.high < 1


def test_runs_of_equal_seed_are_paired_and_others_are_not(results):
    (pair,) = results.pairs[0].tests
    assert (*(Path(run).name for run in pair["runs"]), pair["seed"]) == ("encoder-1", "scratch-1", 1)
    assert (pair["test"]["only_first"], pair["test"]["only_second"]) == (1, 0)


def test_without_equal_seeds_the_best_runs_by_validation_are_paired(tmp_path):
    ours = arm(tmp_path, "encoder", (0, ALL, (0.9,)), (1, THREE, (0.8,)))
    (pair,) = measure_two(ours, arm(tmp_path, "scratch", (5, TWO, (0.6,)))).pairs[0].tests
    assert (*(Path(run).name for run in pair["runs"]), pair["seed"]) == ("encoder-0", "scratch-5", None)


def test_the_target_is_the_mean_of_the_scratch_runs_best_and_epochs_to_it_are_counted(results):
    assert results.target == pytest.approx(0.55)
    assert results.arms["ours"].epochs_to_target.values == (2, 2)
    assert results.arms["scratch"].epochs_to_target.values == (3, math.inf)


def test_the_area_under_the_curves_is_over_the_epochs_that_all_runs_have(tmp_path):
    ours = arm(tmp_path, "encoder", (0, ALL, (0.5, 0.7, 0.9, 1.0)))
    results = measure_two(ours, arm(tmp_path, "scratch", (0, TWO, (0.2, 0.4, 0.6))))
    assert results.epochs == (1, 3)
    assert results.arms["ours"].mean_validation_accuracy.center == pytest.approx(0.7)
    assert results.arms["scratch"].mean_validation_accuracy.center == pytest.approx(0.4)


def test_without_a_range_of_epochs_there_is_no_area(tmp_path):
    results = measure_two(arm(tmp_path, "encoder", (0, ALL, (0.9,))), arm(tmp_path, "scratch", (0, TWO, (0.5, 0.6))))
    assert results.epochs is results.arms["ours"].mean_validation_accuracy is None


def test_images_that_any_pre_training_has_seen_are_left_out_of_both_arms(tmp_path):
    masks = [(True, False, False, False), (False, True, False, False)]
    ours = [
        read_run(write_run(tmp_path / f"ours {seed}", "encoder", right, seed=seed, seen=mask))
        for seed, right, mask in zip((0, 1), (ALL, THREE), masks, strict=True)
    ]
    other = read_run(write_run(tmp_path / "other", "scratch", TWO, seen=(False,) * 4))
    results = measure_two(ours, [other])
    assert results.num_seen_test_images == 2 and results.unseen["num_images"] == 2
    assert [spread.values for spread in results.unseen["accuracy"].values()] == [(1.0, 0.5), (0.0,)]
    assert results.unseen["gain"] == pytest.approx(0.75)
    unknown = read_run(write_run(tmp_path / "unknown", "encoder", ALL, seed=2))
    assert measure_two([*ours, unknown], [other]).num_seen_test_images is None


def of_encoders(folder: Path, rights: dict[str, list[tuple[bool, ...]]]) -> list[Run]:
    """Fine-tuning runs of encoders with one pre-training recipe, a seed each."""
    runs = []
    for number, (encoder, of_encoder) in enumerate(rights.items()):
        pretraining = folder / encoder
        pretraining.mkdir(parents=True)
        (pretraining / "run.json").write_text(json.dumps({"data_fingerprint": "f"}))
        (pretraining / "config.yaml").write_text(parse.to_yaml(PretrainConfig(train=PretrainTrainConfig(seed=number))))
        for seed, right in enumerate(of_encoder):
            run = write_run(folder / f"{encoder}-{seed}", str(pretraining), right, seed=seed, init_digest=encoder)
            runs.append(read_run(run))
    return runs


def test_with_several_encoders_the_unit_is_the_encoder(tmp_path):
    ours = of_encoders(tmp_path, {"one": [ALL, TWO], "two": [ALL, ALL], "three": [THREE, TWO]})
    assert len({run.recipe for run in ours}) == 1
    scratch = arm(tmp_path, "scratch", (0, TWO, (0.6,)), (1, ONE, (0.6,)))
    results = measure_two(ours, scratch)
    assert results.arms["ours"].accuracy.values == (0.75, 1.0, 0.625)
    assert (results.arms["ours"].num_units, results.arms["ours"].spread_over) == (3, "encoders")
    assert results.pairs[0].seeds_test["p_value"] == pytest.approx(
        ttest_ind([0.75, 1.0, 0.625], [0.5, 0.25], equal_var=False).pvalue
    )


def test_several_fine_tunings_of_one_encoder_have_a_spread_of_their_own_and_no_p_value_for_the_pipeline(tmp_path):
    ours = of_encoders(tmp_path, {"one": [ALL, ALL, THREE]})
    results = measure_two(ours, arm(tmp_path, "scratch", (0, TWO, (0.6,)), (1, ONE, (0.6,))))
    assert results.arms["ours"].spread_over == "fine-tuning seeds of one encoder"
    assert results.arms["scratch"].spread_over == "seeds" and results.pairs[0].seeds_test is None


def test_encoders_with_different_numbers_of_runs_have_equal_weight(tmp_path):
    ours = of_encoders(tmp_path, {"one": [ALL, ALL, ALL], "two": [(False,) * 4]})
    results = measure_two(ours, arm(tmp_path, "scratch", (0, TWO, (0.6,))))
    assert results.arms["ours"].accuracy.center == 0.5 == results.gain + 0.5
    assert results.gain_interval.low == pytest.approx(-0.5) and results.gain_interval.high == pytest.approx(0.5)
