"""Comparing runs: the numbers come from the files, and what cannot be compared is refused in one line."""

import math
from pathlib import Path

import pytest
from run_folders import write_run

from mae_hf.errors import ConfigError
from mae_hf.report.comparison import compare_runs

ALL, HALF = (True,) * 4, (True, True, False, False)
THREE = (True, True, True, False)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A pre-trained run of 75 % and a scratch run of 50 % test accuracy."""
    pretrained = write_run(tmp_path / "mae", "runs/pretrain/digits", THREE, curve=(0.6, 0.7, 0.9))
    return pretrained, write_run(tmp_path / "scratch", "scratch", HALF, curve=(0.3, 0.65, 0.6))


# 8 test images of two classes: with 4 no difference is more than chance.
LABELS = (0, 0, 0, 0, 1, 1, 1, 1)


def right(count: int) -> tuple[bool, ...]:
    """The first `count` of the 8 images are predicted right."""
    return tuple(i < count for i in range(8))


def test_the_answer_is_one_sentence_with_both_numbers_and_what_they_are_worth(tmp_path):
    ours = write_run(tmp_path / "mae", "runs/pretrain/digits", right(8), labels=LABELS)
    baseline = write_run(tmp_path / "scratch", "scratch", right(3), labels=LABELS)
    # Of 8 differences image by image 5 are 1: the quantiles of Binomial(8, 5/8) are 2 and 7; a fair coin gives 2 / 2^5.
    assert compare_runs([ours], [baseline]).answer() == (
        "With 270 labels, the MAE-pre-trained ViT reaches 100.0 % test accuracy, the same network from scratch 37.5 %: "
        "+62.5 points (95 % interval +25.0 to +87.5, over 8 test images)."
    )
    assert compare_runs([ours], [baseline]).details() == (
        "Each arm has one run, so the spread over seeds is unknown. Exact McNemar test: p = 0.062."
    )


def test_a_loss_against_scratch_is_said_plainly(tmp_path):
    worse = write_run(tmp_path / "mae", "encoder", right(3), labels=LABELS)
    better = write_run(tmp_path / "scratch", "scratch", right(8), labels=LABELS)
    assert "-62.5 points, so pre-training did not help here (95 %" in compare_runs([worse], [better]).answer()


@pytest.mark.parametrize(("ours", "baseline", "sign"), [(THREE, HALF, "+"), (HALF, THREE, "-")])
def test_a_difference_whose_interval_holds_zero_may_be_chance(tmp_path, ours, baseline, sign):
    arms = [write_run(tmp_path / "mae", "encoder", ours), write_run(tmp_path / "scratch", "scratch", baseline)]
    assert f"{sign}25.0 points, which may be chance (95 %" in compare_runs(arms[:1], arms[1:]).answer()


def test_equal_runs_are_not_called_a_gain_and_get_no_interval_of_width_zero(tmp_path):
    arms = [write_run(tmp_path / init, init, HALF) for init in ("encoder", "scratch")]
    answer = compare_runs(arms[:1], arms[1:]).answer()
    assert "less than 0.1 points apart (no interval, as the difference is the same for each of the 4" in answer


def test_the_baseline_is_the_recipe_that_is_best_on_validation_not_on_test(tmp_path, runs):
    lucky = write_run(tmp_path / "lucky", "scratch", ALL, curve=(0.2, 0.4), layer_decay=1.0)
    comparison = compare_runs([runs[0]], [lucky, runs[1]])
    assert [run.path.name for run in comparison.arms["from scratch"]] == ["scratch", "lucky"]
    assert "+25.0 points" in comparison.answer()
    assert comparison.details().endswith(
        "Validation chose among 2 recipes from scratch. The interval includes that choice, p-values do not."
    )
    assert [row["chosen"] for row in comparison.table()] == [True, True, False]
    assert [row["recipe"] for row in comparison.table()] == [
        "the only one",
        *(f"train.layer_decay {x}" for x in (0.65, 1.0)),
    ]


def test_a_recipe_counts_with_all_its_seeds_and_is_chosen_by_their_mean(tmp_path, runs):
    steady = [
        write_run(tmp_path / f"steady{i}", "scratch", right, curve=(0.3, best), layer_decay=1.0, seed=i)
        for i, (right, best) in enumerate([(HALF, 0.6), (THREE, 0.75), (ALL, 0.7)])
    ]
    shaky = [write_run(tmp_path / f"shaky{i}", "scratch", HALF, curve=(b,), seed=i) for i, b in enumerate([0.9, 0.1])]
    comparison = compare_runs([runs[0]], [*shaky, *steady])
    assert [run.path.name for run in comparison.arms["from scratch"]] == [
        "steady1",
        "steady2",
        "steady0",
        "shaky0",
        "shaky1",
    ]
    assert [run.path.name for run in comparison.chosen["from scratch"]] == ["steady1", "steady2", "steady0"]
    answer = comparison.answer()
    assert "from scratch 75.0 ± 25.0 %: less than 0.1 points apart" in answer  # 50, 75 and 100 %
    details = comparison.details()
    assert "Exact McNemar test of the pair of equal seed: p = 1." in details
    assert details.startswith("± is the standard deviation over 3 seeds (from scratch). ")
    assert any(note.endswith(f"{runs[0]} and {tmp_path / 'steady1'}.") for note in comparison.notes())


def test_classes_without_test_images_or_predictions_are_noted(tmp_path):
    names, labels = ("cat", "dog", "cow"), (0, 0, 1, 1)
    ours = write_run(tmp_path / "mae", "encoder", ALL, labels=labels, class_names=names)
    never_dog = write_run(tmp_path / "scratch", "scratch", HALF, labels=labels, class_names=names)
    notes = compare_runs([ours], [never_dog]).notes()
    assert any(note.startswith("No test image belongs to cow. Such classes have no F1") for note in notes)
    assert compare_runs([ours], [never_dog]).results.arms["MAE pre-trained"].f1.center == 1


def test_epochs_to_the_scratch_models_best_are_counted_or_not_reached(tmp_path, runs):
    slow = write_run(tmp_path / "slow", "encoder", HALF, curve=(0.1, 0.2), seed=1)
    rows = {Path(row["run"]).name: row for row in compare_runs([runs[0], slow], [runs[1]]).table()}
    # Scratch's best is 0.65, at epoch 2; the pre-trained run has 0.6 after epoch 1 and 0.7 after epoch 2.
    assert {name: row["epochs_to_scratch_best"] for name, row in rows.items()} == {
        "mae": 2,
        "slow": math.inf,
        "scratch": 2,
    }
    assert rows["mae"]["best_epoch"] == 3 and rows["mae"]["num_parameters"] == 1234


def refuses(pretrained: list[Path], scratch: list[Path]) -> str:
    """The message with which these arms are refused, one line."""
    with pytest.raises(ConfigError) as error:
        compare_runs(pretrained, scratch)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_in_the_wrong_arm_is_refused(runs):
    assert "has model.init scratch: name it after --scratch" in refuses([runs[1]], [runs[0]])
    message = refuses([runs[0]], [runs[1], _copy(runs[0])])
    assert "has model.init runs/pretrain/digits: name it after --pretrained" in message


def _copy(run: Path) -> Path:
    return write_run(run.with_name("again"), "runs/pretrain/digits", THREE)


def test_a_seed_that_a_recipe_has_twice_is_refused(tmp_path, runs):
    again = write_run(tmp_path / "again", "scratch", HALF, curve=(0.5,))
    message = refuses([runs[0]], [runs[1], again])
    assert "scratch and " in message and "again are the same recipe with the same train.seed 0" in message


def test_an_encoder_that_is_named_in_two_ways_is_one_seed(tmp_path, runs):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.yaml").write_text("{}")
    twice = [write_run(tmp_path / name, f"{tmp_path}/encoder{end}", THREE) for name, end in (("a", ""), ("b", "/."))]
    assert "are the same recipe with the same train.seed 0" in refuses(twice, [runs[1]])


def test_a_gain_that_is_within_the_spread_of_the_seeds_may_be_chance(tmp_path):
    ours = [
        write_run(tmp_path / f"encoder{i}", "encoder", right(n), labels=LABELS, seed=i, init_digest=str(i))
        for i, n in enumerate((8, 5))
    ]
    scratch = [write_run(tmp_path / f"s{i}", "scratch", right(n), labels=LABELS, seed=i) for i, n in enumerate((2, 5))]
    comparison = compare_runs(ours, scratch)
    assert comparison.results.gain_interval.low > 0  # images alone would call it a gain
    assert "+37.5 points, which may be chance" in comparison.answer()
    # t = sqrt(2) with 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    assert comparison.details().startswith(
        "± is the standard deviation over 2 encoders (MAE pre-trained) and 2 seeds (from scratch). Welch's t-test over "
        "them: p = 0.29. "
    )


def test_fine_tuning_seeds_of_one_encoder_are_called_so(tmp_path):
    ours, scratch = (
        [write_run(tmp_path / f"{init}{i}", init, right(n), labels=LABELS, seed=i) for i, n in enumerate(counts)]
        for init, counts in (("encoder", (8, 5)), ("scratch", (2, 5)))
    )
    comparison = compare_runs(ours, scratch)
    assert comparison.details().startswith(
        "± is the standard deviation over 2 fine-tuning seeds of one encoder (MAE pre-trained) and 2 seeds (from "
        "scratch). One encoder gives no p-value for pre-training as a whole. "
    )
    assert any(
        note.startswith("The spread of MAE pre-trained is over fine-tuning seeds") for note in comparison.notes()
    )


def test_a_choice_on_few_validation_images_is_part_of_the_interval_of_the_headline(tmp_path):
    """The baseline's recipes are right on 10 and 9 of 30 validation images, and 5 points apart on test images."""
    labels = tuple(i % 2 for i in range(300))

    def run(name: str, init: str, num_right: int, validation: range, layer_decay: float = 0.65) -> Path:
        return write_run(
            tmp_path / name, init, tuple(i < num_right for i in range(300)), labels=labels, layer_decay=layer_decay,
            curve=(len(validation) / 30,), validation=tuple(i in validation for i in range(30)),
        )  # fmt: skip

    ours = run("mae", "encoder", 195, range(15))
    lucky, unlucky = run("lucky", "scratch", 177, range(10)), run("unlucky", "scratch", 192, range(10, 19), 1.0)
    alone = compare_runs([ours], [lucky])
    assert "+6.0 points (95 % interval +3.3 to +9.0, over 300 test images)." in alone.answer()
    comparison = compare_runs([ours], [unlucky, lucky])
    interval = comparison.results.gain_interval
    assert interval.low < 0.005 and interval.high > 0.08
    assert "over 300 test images and the choice of recipe on 30 validation images" in comparison.answer()
    chosen = [round(choice["chosen"], 1) for choice in comparison.results.choices]
    assert chosen == [1.0, 0.6, 0.4]
    assert [round(choice["gain"], 3) for choice in comparison.results.choices] == [0.06, 0.06, 0.01]
    notes = " ".join(comparison.notes())
    assert "Depending on the recipe, the gain is +1.0 to +6.0 points" in notes
    assert "chosen on 30 validation images, where one image is 3.3 points." in notes
    assert "repeat the runs with a larger --data.validation_fraction" in notes


def test_a_run_that_is_given_twice_is_refused(runs):
    assert "are the same recipe with the same train.seed 0" in refuses(
        [runs[0], runs[0] / ".." / runs[0].name], [runs[1]]
    )


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"class_names": ("cat", "cow")}, "has the classes cat, dog"),
        ({"labels": (0, 1, 0, 1)}, "were tested on different images or labels"),
        ({"index": (0, 1, 2, 4)}, "were tested on different images or labels"),
        (
            {"test_fingerprint": "f"},
            "tested on different images or labels (test_fingerprint None and f in run.json)",
        ),
        ({"validation": (True, True, False, False), "curve": (0.5,)}, "were validated on different images or labels"),
        ({"fingerprint": "another"}, "were trained on different images or labels"),
        ({"hidden_size": 16}, "are different networks: they differ in model.hidden_size"),
    ],
)
def test_runs_that_answer_different_questions_are_refused(tmp_path, runs, difference, message):
    other = write_run(tmp_path / "other", "scratch", HALF, **difference)
    assert message in refuses([runs[0]], [other])


def test_runs_that_end_at_their_best_epoch_and_recipes_that_differ_in_more_than_the_start_are_noted(tmp_path):
    ours = write_run(tmp_path / "mae", "encoder", ALL, curve=(0.5, 0.7))
    ended = write_run(tmp_path / "scratch", "scratch", HALF, curve=(0.4, 0.3), layer_decay=1.0)
    notes = compare_runs([ours], [ended]).notes()
    (growing,) = (note for note in notes if note.startswith("Longer training may"))
    assert f"the best one of {ours}." in growing and str(ended) not in growing
    assert "The chosen recipes differ in more than their first weights: train.layer_decay." in notes
    alike = compare_runs([ours], [write_run(tmp_path / "alike", "scratch", HALF, curve=(0.4, 0.3))]).notes()
    assert not any(note.startswith("The chosen recipes differ") for note in alike)


def test_an_encoder_that_several_runs_started_from_is_found_once(tmp_path, runs):
    inits = ("me/b", "me/a", "me/b")
    ours = [write_run(tmp_path / f"run{i}", init, THREE, seed=i) for i, init in enumerate(inits)]
    assert [origin.init for origin in compare_runs(ours, [runs[1]]).origins] == ["me/b", "me/a"]
