"""Any number of arms: validation chooses the best, probes are arms, every pair is tested, the page shows all."""

import json
from pathlib import Path

import pytest
from report_pages import page_of
from run_folders import PROBED, write_probes, write_run

from mae_hf.errors import ConfigError
from mae_hf.evaluation import statistics
from mae_hf.report import page, pictures
from mae_hf.report.comparison import Comparison, compare_arms

LABELS = tuple(i % 2 for i in range(60))


def right(count: int) -> tuple[bool, ...]:
    """The first `count` of the 60 images are predicted right."""
    return tuple(i < count for i in range(60))


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, list[Path]]:
    """Fine-tuning and probes of one encoder, and a run from scratch; by validation the linear probe is the best."""
    own = write_run(tmp_path / "own", "encoder", right(40), labels=LABELS, curve=(0.6, 0.7), init_digest="e")
    probes = write_probes(
        tmp_path / "probes",
        "encoder",
        {"knn": (right(20), 0.5), "linear": (right(52), 0.8)},
        labels=LABELS,
        init_digest="e",
    )
    scratch = write_run(tmp_path / "scratch", "scratch", right(25), labels=LABELS, curve=(0.4, 0.5))
    return {"scratch": [scratch], "own <b>": [own], "probes": [probes]}


@pytest.fixture
def comparison(folders: dict[str, list[Path]]) -> Comparison:
    """The three arms of `folders`."""
    return compare_arms(folders)


def test_the_answer_names_the_arm_that_is_best_on_validation_and_its_gain_over_the_next(comparison):
    assert list(comparison.arms) == ["probes", "own <b>", "scratch"]
    results = comparison.results
    assert results.gain == pytest.approx(12 / 60)
    interval = f"95 % interval {100 * results.gain_interval.low:+.1f} to {100 * results.gain_interval.high:+.1f}"
    assert comparison.answer() == (
        "With 270 labels, probes is the best of 3 arms on validation images (use the probe linear-cls) and reaches "
        f"86.7 % test accuracy, the next best, own <b>, 66.7 %: +20.0 points ({interval}, over 60 test images and the "
        "choice of arm and recipe on 100 validation images)."
    )


def test_a_probe_that_beats_fine_tuning_of_its_encoder_is_advised(comparison, folders):
    advice = "Use the probe instead of own <b>: "
    assert f"{advice}{folders['probes'][0]} linear-cls reaches 80.0 % on validation images" in comparison.details()
    other = json.loads((folders["probes"][0] / "run.json").read_text()) | {"init_digest": "another"}
    (folders["probes"][0] / "run.json").write_text(json.dumps(other))
    config = folders["probes"][0] / "config.yaml"
    config.write_text(config.read_text().replace("model: encoder", "model: another"))
    assert "Use the probe instead" not in compare_arms(folders).details()


def test_each_probe_and_pooling_is_a_recipe_of_its_arm(comparison):
    rows = {row["run"].split()[-1]: row for row in comparison.table() if row["arm"] == "probes"}
    assert list(rows) == ["linear-cls", "linear-mean", "knn-cls", "knn-mean"]
    assert [row["chosen"] for row in rows.values()] == [True, False, False, False]
    assert rows["knn-mean"]["recipe"] == "probe knn-mean" and rows["knn-mean"]["best_validation_accuracy"] == 0.49
    assert {row["seed"] for row in rows.values()} == {row["best_epoch"] for row in rows.values()} == {None}


def test_every_pair_of_arms_is_tested_with_holms_correction(comparison):
    pairs = comparison.results.pairs
    assert [pair.arms for pair in pairs] == [("probes", "own <b>"), ("probes", "scratch"), ("own <b>", "scratch")]
    # 12, 27 and 15 images that only one of the two has right: a fair coin gives 2 / 2^k
    expected = [2 / 2**12, 2 / 2**27, 2 / 2**15]
    assert [pair.p_value for pair in pairs] == pytest.approx(expected)
    assert [pair.corrected_p_value for pair in pairs] == pytest.approx([expected[0], 3 * expected[1], 2 * expected[2]])
    assert f"The two best arms: p = {expected[0]:.2g} (exact McNemar test, with Holm's" in comparison.details()


def test_a_gain_whose_corrected_p_value_is_large_may_be_chance(tmp_path):
    counts = {"a": (35, 0.8), "b": (30, 0.6), "c": (10, 0.4)}
    arms = {
        name: [write_run(tmp_path / name, name, right(count), labels=LABELS, curve=(best,))]
        for name, (count, best) in counts.items()
    }
    comparison = compare_arms(arms)
    assert comparison.results.gain_interval.low > 0
    assert comparison.results.pairs[0].corrected_p_value == pytest.approx(2 / 2**5)
    assert "+8.3 points, which may be chance" in comparison.answer()


def test_the_interval_contains_the_choice_of_the_arm(tmp_path):
    """Two arms that validation cannot tell apart change places in half of the resamples."""
    first = write_run(tmp_path / "a", "encoder", right(50), labels=LABELS, validation=(True, False) * 10, curve=(0.5,))
    second = write_run(tmp_path / "b", "scratch", right(30), labels=LABELS, validation=(False, True) * 10, curve=(0.5,))
    results = compare_arms({"a": [first], "b": [second]}).results
    assert results.gain_interval.low < -0.2 and results.gain_interval.high > 0.2
    assert [arm.best_in for arm in results.arms.values()] == pytest.approx([0.5, 0.5], abs=0.1)
    pair = results.pairs[0].gain_interval
    assert pair.low > 0.1  # without the choice of the arm


def test_the_page_has_all_arms_and_pairs_and_escapes_their_names(comparison):
    parsed = page_of(comparison)
    assert "b" not in parsed.tags
    arms = parsed.table("The arms, the best on validation images first")
    assert arms["test accuracy (%)"] == ["86.7", "66.7", "41.7", "+20.0 points"]
    assert arms["trained by"] == ["probe linear-cls", "fine-tuning", "fine-tuning", ""]
    assert arms["parameters"] == ["1,000", "1,234", "1,234", ""]
    assert arms["network"][0] == "1 x 8, patches of 6, images of 12"
    assert len(parsed.table("Every pair of arms")) == 1 + 2  # two pairs begin with the probes
    settings = parsed.table("Settings of each arm's chosen recipe")
    assert settings["probe"] == ["linear-cls", "–", "–"] and settings["train.layer_decay"] == ["–", "0.65", "0.65"]
    assert settings["model.init"] == ["encoder", "encoder", "≠ scratch"]
    assert any("--arm 'own <b>=" in text for tag, text in parsed.texts if tag == "code")


def test_the_files_of_the_report_hold_everything_by_arm(comparison, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    report = page.write_report(comparison, tmp_path / "out")
    numbers = json.loads((report.parent / "comparison.json").read_text())
    names = ["probes", "own <b>", "scratch"]
    for key in ("f1_per_class", "confusion_matrix", "calibration_error"):
        assert list(numbers[key]) == names
    assert list(numbers["results"]["arms"]) == names and {row["arm"] for row in numbers["runs"]} == set(names)
    assert {"intervals.png", "curves.png", "confusion.png"} <= {path.name for path in report.parent.iterdir()}
    head, _, *rows = page.text_table(comparison).splitlines()
    assert head.split()[:2] == ["arm", "run"] and [row.startswith("* ") for row in rows] == [
        True,
        *[False] * 3,
        True,
        True,
    ]


def test_probes_alone_have_no_curves(tmp_path):
    probes = [write_probes(tmp_path / name, name, {"linear": (right(30), 0.5)}, labels=LABELS) for name in ("a", "b")]
    comparison = compare_arms({path.name: [path] for path in probes})
    drawn = pictures.Pictures(tmp_path)
    pictures.draw_scores(comparison, drawn)
    assert list(drawn.captions) == ["intervals", "confusion", "f1_per_class", "reliability"]
    assert comparison.results.target is comparison.results.epochs is None
    assert "less than 0.1 points apart" in comparison.answer() and page_of(comparison).table("The arms")


def test_eight_arms_are_tested_and_drawn(tmp_path):
    arms = {
        f"arm {i}": [write_run(tmp_path / str(i), f"e{i}", right(30 + i), labels=LABELS, curve=(0.5 + i / 100,))]
        for i in range(8)
    }
    comparison = compare_arms(arms)
    assert len(comparison.results.pairs) == 28
    drawn = pictures.Pictures(tmp_path)
    pictures.draw_scores(comparison, drawn)
    assert len(drawn.captions) == 5 and page_of(comparison).table("Every pair of arms")


def test_networks_of_other_sizes_are_compared_by_source_splits_and_labels(folders, tmp_path):
    probes = {"linear": (right(45), 0.6)}
    large = PROBED | {"image_size": 24, "hidden_size": 16}
    other = write_probes(tmp_path / "large", "large", probes, labels=LABELS, fingerprint="f", shape=large)
    notes = compare_arms(folders | {"large": [other]}).notes()
    assert any(note.startswith("The networks take images of different sizes, or") for note in notes)
    moved = write_probes(tmp_path / "m", "large", probes, source="photos", labels=LABELS, shape=large)
    with pytest.raises(ConfigError, match=r"on different images or labels \(data.source\)"):
        compare_arms(folders | {"moved": [moved]})


def test_seen_test_images_are_left_out_of_all_arms_and_unknown_arms_are_named(folders, tmp_path):
    seen = (True,) * 10 + (False,) * 50
    known = write_run(tmp_path / "known", "known", right(35), labels=LABELS, curve=(0.6,), seen=seen)
    comparison = compare_arms(folders | {"known": [known]})
    assert "near-duplicates of them (probes and own <b>). If it has" in comparison.leak()
    assert "Pre-training has seen 10 of the 60 test images" in comparison.leak()
    unseen = comparison.results.unseen
    assert unseen["num_images"] == 50 and unseen["accuracy"]["known"].center == pytest.approx(25 / 50)


def test_arms_that_cannot_be_compared_are_refused_in_one_line(folders, tmp_path):
    own, probe = folders["own <b>"][0], {"knn": (right(4), 0.5)}
    for arms, message in (
        ({"a": [own], "b": [own / ".." / "own"]}, "own is named twice: name each run once, in one arm (--arm)"),
        ({"a": [own], "b": [tmp_path]}, "has no config.yaml"),
        (
            {"a": [own], "b": [write_probes(tmp_path / "x", "e", probe, labels=LABELS, fingerprint="f")]},
            "were trained on different images or labels (data_fingerprint 0123456789abcdef and f in run.json)",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            compare_arms(arms)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_several_seeds_are_tested_by_welch_and_corrected(tmp_path):
    counts = {"a": (50, 48, 52), "b": (40, 38, 42), "c": (20, 30, 22)}
    arms = {
        name: [
            write_run(
                tmp_path / f"{name}{i}", name, right(n), labels=LABELS, seed=i, init_digest=f"{name}{i}", curve=(0.5,)
            )
            for i, n in enumerate(of_arm)
        ]
        for name, of_arm in counts.items()
    }
    pairs = compare_arms(arms).results.pairs
    values = [statistics.welch(*([n / 60 for n in counts[name]] for name in pair.arms))["p_value"] for pair in pairs]
    assert [pair.p_value for pair in pairs] == pytest.approx(values)
    assert [pair.corrected_p_value for pair in pairs] == pytest.approx(statistics.holm(values))


def test_details_and_notes_are_about_what_the_arms_have(folders, tmp_path):
    """An arm without a spread is not listed, and a choice in a third arm does not change the gain."""
    more = [write_run(tmp_path / f"more{i}", "scratch", right(20), labels=LABELS, curve=(0.3,), seed=i) for i in (1, 2)]
    again = write_run(tmp_path / "flat", "scratch", right(20), labels=LABELS, curve=(0.2,), layer_decay=1.0)
    own = write_run(tmp_path / "o", "other", right(42), labels=LABELS, curve=(0.65,))
    comparison = compare_arms({"own": folders["own <b>"], "o": [own], "scratch": [*folders["scratch"], *more, again]})
    assert comparison.details().startswith("± is the standard deviation over 3 seeds (scratch). The two best arms: p =")
    assert not any(note.startswith("Depending on the recipe") for note in comparison.notes())
