"""What lies behind the numbers: data, leaks, recipe, environment and commands, as the runs' files have them."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from run_folders import write_run

from mae_hf.config import parse
from mae_hf.config.commands import PretrainConfig
from mae_hf.leakage.record import NOT_PRETRAINED, AuditedSplit, Pair
from mae_hf.report import background
from mae_hf.report.comparison import Comparison, compare
from mae_hf.training.provenance import Provenance

NOTHING = [Provenance("runs/pretrain/x")]


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
    return re.sub(r"(\s*\|\s*)+", " | ", re.sub(r"<[^>]*>", "|", html.replace("<wbr>", "")))


def test_data_are_counted_and_those_of_pre_training_where_they_are_known(comparison):
    words = text(background.data(comparison, [Provenance("x", record={"num_train_images": 1240})]))
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


def audit(init: str = "runs/pretrain/x", **values: object) -> Provenance:
    """The provenance of an encoder whose audit searched for 4 test images and found duplicates of 3."""
    tests = (AuditedSplit("<b>", "test", 4, "f", num_duplicated=3, num_seen=2),)
    return Provenance(
        init, audit=dataclasses.replace(NOT_PRETRAINED, **{"pretrained": True, "audited": tests, **values})
    )


def test_without_an_audit_the_page_says_that_leaks_are_not_known(comparison):
    words = text(background.leaks(comparison, NOTHING))
    assert "It is not known whether pre-training has seen these test images" in words
    assert "runs/pretrain/x has no audit.json" in words
    assert "broken" in text(background.leaks(comparison, [Provenance("x", problem="broken")]))
    words = text(background.leaks(comparison, [audit(streamed=True)]))
    assert (
        "images of runs/pretrain/x were streamed: near-duplicates" in words
        and "exact duplicates among streamed" in words
    )


def seen(tmp_path: Path, pretrained: tuple[bool, ...] | None) -> Comparison:
    """Runs that have 3 and 1 of 4 test images right, some of which the pre-training of the first has seen."""
    ours = write_run(tmp_path / "ours", "runs/pretrain/x", (True, True, True, False), seen=pretrained)
    return compare([ours], [write_run(tmp_path / "other", "scratch", (True, False, False, False), seen=(False,) * 4)])


def test_test_images_that_were_seen_are_counted_and_both_arms_are_scored_without_them(tmp_path):
    comparison = seen(tmp_path, (True, False, False, False))
    html = background.leaks(comparison, [audit()])
    words = text(html)
    assert "seen 1 of the 4 test images" in words
    assert "On the 3 others it is 66.7 % pre-trained and 0.0 % from scratch, +66.7 points" in words
    assert "which were kept" in words and "| &lt;b&gt; | 4 | 3 | 2 |" in words and "not known" not in words
    assert "which were left out" in background.leaks(comparison, [audit(left_out=True)])
    assert comparison.leak() in comparison.notes()


def test_several_encoders_have_a_table_each(tmp_path):
    words = text(background.leaks(seen(tmp_path, (False,) * 4), [audit("one"), audit("two")]))
    assert "before pre-training of one (audit.json)" in words and "before pre-training of two (audit.json)" in words


def test_none_and_all_test_images_seen_are_said_as_such(tmp_path):
    none = seen(tmp_path / "none", (False,) * 4)
    words = text(background.leaks(none, [audit(audited=())]))
    assert "contain no test image" in words and "audit.json" not in words
    assert none.leak() is None
    assert "No score without them can be given" in text(background.leaks(seen(tmp_path, (True,) * 4), [audit()]))


def test_labelled_training_images_that_duplicate_test_images_are_counted(tmp_path):
    pair = Pair("digits", "train", 3, "digits", "test", 5, "near", 0.9)
    changes = {"row": 4}, {"split": "unlabeled", "row": 6}, {"source": "other"}, {"against_split": "validation"}
    pairs = (pair, *(dataclasses.replace(pair, **change) for change in changes))
    words = text(background.leaks(seen(tmp_path, (False,) * 4), [audit(pairs=pairs)]))
    assert "2 labelled training images are duplicates or near-duplicates of 1 test images" in words
    assert "labelled" not in text(background.leaks(seen(tmp_path / "more", (False,) * 4), [audit(pairs=pairs[2:])]))


def test_settings_in_which_the_arms_differ_are_marked_and_named(comparison):
    html = background.recipe(comparison)
    assert "The arms differ in model.init, train.layer_decay, marked with ≠, and in nothing else" in text(html)
    assert re.findall(r"<mark>(.*?)</mark>", html) == ["≠ scratch", "≠ 1.0"]
    assert "output_dir" not in html and "train.seed" not in html


def test_the_settings_of_a_pre_training_run_that_is_there_have_a_table(tmp_path, runs):
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre" / "run.json").write_text("{}")
    (tmp_path / "pre" / "config.yaml").write_text(parse.to_yaml(PretrainConfig(output_dir="pre")))
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
    commands = ("scripts/pretrain.py --x 1", "scripts/pretrain.py --x 2")
    origins = [Provenance(command, record={"command": command, "num_processes": 1}) for command in commands]
    html = background.reproduce(comparison, origins, "out dir")
    assert re.findall(r"<code>(.*?)</code>", html) == [
        "accelerate launch --num_processes 1 scripts/pretrain.py --x 1",
        "accelerate launch --num_processes 1 scripts/pretrain.py --x 2",
        "accelerate launch --mixed_precision bf16 --num_processes 2 scripts/finetune.py --model.init runs/pretrain/x",
        "accelerate launch scripts/finetune.py --model.init scratch",
        f"python scripts/compare.py --pretrained {runs[0]} --scratch {runs[1]} --output_dir &#x27;out dir&#x27;",
    ]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"strategy": "NO", "num_processes": 1}, "accelerate launch --num_processes 1 x.py"),
        (
            {"strategy": "MULTI_CPU", "num_processes": 2, "mixed_precision": "bf16"},
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --mixed_precision bf16 --num_processes 2 x.py",
        ),
        ({"strategy": "MULTI_GPU", "num_processes": 8}, "accelerate launch --multi_gpu --num_processes 8 x.py"),
        (
            {"strategy": "FSDP", "num_processes": 8},
            "accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_processes 8 x.py",
        ),
        (
            {"strategy": "MULTI_GPU", "num_processes": 16, "num_machines": 2},
            "accelerate launch --multi_gpu --num_processes 16 x.py # on each of 2 machines, with --num_machines, "
            "--machine_rank and --main_process_ip",
        ),
    ],
)
def test_a_run_is_launched_again_with_the_strategy_that_it_had(comparison, record, expected):
    origin = Provenance("x", record={"command": "x.py", **record})
    assert f"<code>{expected}</code>" in background.reproduce(comparison, [origin], "out")
