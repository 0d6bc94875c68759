"""What lies behind the numbers: data, leaks, recipe, environment and commands, as the runs' files have them."""

import json
import re
from pathlib import Path

import pytest
from run_folders import write_run

from mae_hf import background, cli
from mae_hf.comparison import Comparison, compare
from mae_hf.config import PretrainConfig
from mae_hf.provenance import Provenance

NOTHING = Provenance(None, {}, None, None)


def change(folder: Path, name: str, **values: object) -> None:
    """Sets values in a JSON file of a run."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A run of either arm; the one from scratch has a recipe of its own."""
    ours = write_run(tmp_path / "mae", "runs/pretrain/x", (True, True, True, False))
    other = write_run(tmp_path / "scratch", "scratch", (True, False, False, False), layer_decay=1.0, seed=4)
    times = {"start": "2026-11-24T10:42:55+00:00", "end": "2026-11-24T10:44:25+00:00"}
    machine = {"device": "cpu: <X>", "num_processes": 2, "mixed_precision": "bf16", "git_commit": "f" * 40 + "-dirty"}
    change(ours, "run.json", num_validation_images=30, **times, **machine)
    return ours, other


@pytest.fixture
def comparison(runs: tuple[Path, Path]) -> Comparison:
    """The comparison of `runs`."""
    return compare(runs[:1], runs[1:])


def text(html: str) -> str:
    """The words of a piece of HTML, cells divided by |."""
    return re.sub(r"(\s*\|\s*)+", " | ", re.sub(r"<[^>]*>", "|", html))


def test_data_are_counted_and_those_of_pre_training_where_they_are_known(comparison):
    words = text(background.data(comparison, Provenance(None, {"num_train_images": 1240}, None, None)))
    for expected in (
        "training images, with labels | 270",
        "validation images, for every decision | unknown",
        "test images, looked at once | 4",
        "| 2: cat, dog |",
        "smallest and largest class | 2 and 2",
        "fingerprint of the training images | 0123456789abcdef",
        "without labels | 1,240",
    ):
        assert expected in words
    assert "without labels | unknown" in text(background.data(comparison, NOTHING))


def audit(**values: object) -> Provenance:
    """Of a pre-training run that looked for 4 test images and found copies of 3."""
    tests = [{"source": "<b>", "images": 4, "num_copied": 3, "num_seen": 2, "fingerprint": "f"}]
    return Provenance(None, {}, {"left_out": False, "tests": tests, **values}, None)


def test_without_an_audit_the_page_says_that_leaks_are_not_known(comparison):
    words = text(background.leaks(comparison, NOTHING))
    assert "It is not known whether pre-training has seen these test images" in words
    assert "runs/pretrain/x has no audit.json" in words
    assert "(broken)" in text(background.leaks(comparison, Provenance(None, {}, None, "broken")))
    assert "not known" in (words := text(background.leaks(comparison, audit()))) and "(others were looked for)" in words


def test_test_images_that_were_seen_are_counted_and_the_score_without_them_is_given(runs):
    change(runs[0], "metrics.json", **{"num_seen_test_images": 2, "test_unseen/accuracy": 0.5})
    html = background.leaks(compare(runs[:1], runs[1:]), audit())
    words = text(html)
    assert "seen 2 of the 4 test images" in words and "reaches 50.00 %, on all 75.00 %." in words
    assert "which were kept" in words and "| &lt;b&gt; | 4 | 3 | 2 |" in words and "not known" not in words
    assert "which were left out" in background.leaks(compare(runs[:1], runs[1:]), audit(left_out=True))


def test_none_and_all_test_images_seen_are_said_as_such(runs):
    change(runs[0], "metrics.json", num_seen_test_images=0)
    words = text(background.leaks(compare(runs[:1], runs[1:]), audit(tests=[])))
    assert "has left none of the 4 test images" in words and "audit.json" not in words
    change(runs[0], "metrics.json", num_seen_test_images=4)
    assert "No score without them can be given" in text(background.leaks(compare(runs[:1], runs[1:]), audit()))


def test_settings_in_which_the_arms_differ_are_marked_and_named(comparison):
    html = background.recipe(comparison)
    assert "The arms differ in model.init, train.layer_decay, marked with ≠, and in nothing else" in text(html)
    assert re.findall(r"<mark>(.*?)</mark>", html) == ["≠ scratch", "≠ 1.0"]
    assert "output_dir" not in html and "train.seed" not in html


def test_the_settings_of_a_pre_training_run_that_is_there_have_a_table(tmp_path, runs):
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre" / "run.json").write_text("{}")
    (tmp_path / "pre" / "config.yaml").write_text(cli.dump(PretrainConfig(output_dir="pre")))
    ours = write_run(tmp_path / "ours", str(tmp_path / "pre"), (True, True, True, False))
    words = text(background.recipe(compare([ours], [runs[1]])))
    assert "The arms differ in model.init" in words
    assert "Settings of its pre-training" in words and "model.mask_ratio | 0.75" in words


def test_the_environment_of_every_run_is_there_and_unknown_is_said(comparison):
    html = background.environment(comparison, NOTHING)
    assert "cpu: &lt;X&gt;" in html
    words = text(html)
    assert "| 2 | bf16 | 1,234 | ffffffffffff-dirty | 2026-11-24T10:42:55 | 1.5 |" in words
    assert "scratch | unknown | unknown | unknown | 1,234 | unknown | unknown | unknown |" in words
    assert "torch 2.13.0" in words


def test_the_commands_are_those_of_the_runs_in_their_order(comparison, runs):
    provenance = Provenance(None, {"command": "scripts/pretrain.py --x 1", "num_processes": 1}, None, None)
    html = background.reproduce(comparison, provenance, "out dir")
    assert re.findall(r"<code>(.*?)</code>", html) == [
        "accelerate launch --num_processes 1 scripts/pretrain.py --x 1",
        "accelerate launch --mixed_precision bf16 --num_processes 2 scripts/finetune.py --model.init runs/pretrain/x",
        "accelerate launch scripts/finetune.py --model.init scratch",
        f"python scripts/compare.py --pretrained {runs[0]} --scratch {runs[1]} --output_dir &#x27;out dir&#x27;",
    ]
