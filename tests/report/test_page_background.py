"""The background of the numbers: data, leakage, recipe, environment and commands, as the runs' files have them."""

import dataclasses
from pathlib import Path

import pytest
from report_pages import page_of
from run_folders import write_run

from mae_hf.config import parse
from mae_hf.config.runs import PretrainConfig
from mae_hf.leakage.audit import NOT_PRETRAINED, AuditedSplit
from mae_hf.leakage.matches import DuplicatePair
from mae_hf.report.comparison import Comparison, compare_runs
from mae_hf.training.provenance import Provenance, RunRecord

NOTHING = Provenance("runs/pretrain/x")
TIMES = {"start": "2026-11-24T10:42:55+00:00", "end": "2026-11-24T10:44:25+00:00"}
MACHINE = {"device": "cpu: <X>", "num_processes": 2, "mixed_precision": "bf16", "git_commit": "f" * 40 + "-dirty"}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A run of either arm; the run from scratch has a different recipe."""
    ours = write_run(tmp_path / "mae", "runs/pretrain/x", (True, True, True, False), **TIMES, **MACHINE)
    return ours, write_run(tmp_path / "scratch", "scratch", (True, False, False, False), layer_decay=1.0, seed=4)


@pytest.fixture
def comparison(runs: tuple[Path, Path]) -> Comparison:
    """The comparison of `runs`."""
    return compare_runs(runs[:1], runs[1:])


def with_origins(comparison: Comparison, *origins: Provenance) -> Comparison:
    """The comparison, with encoders of which this is known."""
    object.__setattr__(comparison, "origins", list(origins))
    return comparison


def leakage_notes(comparison: Comparison, *origins: Provenance) -> list[str]:
    """The paragraphs about leakage."""
    texts = page_of(with_origins(comparison, *origins)).texts
    section = texts[texts.index(("h2", "Data leakage")) : texts.index(("h2", "Recipe"))]
    return [text for tag, text in section if tag == "p"]


def commands(comparison: Comparison, *origins: Provenance) -> list[str]:
    """The commands of the page."""
    return [text for tag, text in page_of(with_origins(comparison, *origins)).texts if tag == "code"]


def test_data_are_counted_and_those_of_pre_training_where_they_are_known(comparison):
    data = page_of(with_origins(comparison, Provenance("x", record=RunRecord(num_train_images=1240)))).table(
        "The same for"
    )
    assert {name: data[name][0] for name in (
        "training images, with labels", "validation images, for every decision", "test images, scored once", "classes",
        "test images in the smallest and largest class", "fingerprint of the training images",
        "images of pre-training, without labels",
    )} == {
        "training images, with labels": "270",
        "validation images, for every decision": "100",
        "test images, scored once": "4",
        "classes": "2: cat, dog",
        "test images in the smallest and largest class": "2 and 2",
        "fingerprint of the training images": "0123456789abcdef",
        "images of pre-training, without labels": "1,240",
    }  # fmt: skip
    unknown = page_of(with_origins(comparison, NOTHING)).table("The same for")
    assert unknown["images of pre-training, without labels"] == ["unknown"]


def audited(init: str = "runs/pretrain/x", **values: object) -> Provenance:
    """Of a pre-training run that searched for 4 test images and found duplicates of 3."""
    tests = (AuditedSplit("<b>", "test", 4, "f", num_duplicated=3, num_seen=2),)
    found = {"pretrained": True, "audited": tests, **values}
    return Provenance(init, audit=dataclasses.replace(NOT_PRETRAINED, **found))


def test_without_an_audit_the_page_says_that_leakage_is_unknown(comparison):
    unknown, missing = leakage_notes(comparison, NOTHING)
    assert unknown.startswith("It is unknown whether pre-training has seen these test images")
    assert missing == "runs/pretrain/x has no audit.json."
    assert "broken" in leakage_notes(comparison, Provenance("x", problem="broken"))
    note = leakage_notes(comparison, audited(streamed=True))[1]
    assert note == "The images of runs/pretrain/x were streamed, and not searched for near-duplicates of test images."
    assert page_of(comparison).table("The audit before pre-training (audit.json): exact duplicates in the stream")


def seen(tmp_path: Path, pretrained: tuple[bool, ...] | None) -> Comparison:
    """Runs that have 3 and 1 of 4 test images right, some of which the pre-training of the first has seen."""
    ours = write_run(tmp_path / "ours", "runs/pretrain/x", (True, True, True, False), seen=pretrained)
    other = write_run(tmp_path / "other", "scratch", (True, False, False, False), seen=(False,) * 4)
    return compare_runs([ours], [other])


def test_test_images_that_were_seen_are_counted_and_both_arms_are_scored_without_them(tmp_path):
    comparison = seen(tmp_path, (True, False, False, False))
    (note,) = leakage_notes(comparison, audited())
    assert "seen 1 of the 4 test images" in note
    assert "On the other 3, the accuracy is 66.7 % MAE pre-trained and 0.0 % from scratch: +66.7 points" in note
    assert note in comparison.notes()
    of = "The audit before pre-training (audit.json): exact and near-duplicates, which were"
    assert page_of(comparison).table(f"{of} kept in")["<b>"] == ["4", "3", "2"]
    assert page_of(with_origins(comparison, audited(left_out=True))).table(f"{of} left out of")


def test_several_encoders_have_a_table_each(comparison):
    page = page_of(with_origins(comparison, audited("one"), audited("two")))
    for name in ("one", "two"):
        assert page.table(f"The audit before pre-training of {name} (audit.json)")


def test_none_and_all_test_images_seen_are_said_as_such(tmp_path):
    none = seen(tmp_path / "none", (False,) * 4)
    (note,) = leakage_notes(none, audited())
    assert "contain no test image" in note and none.leak() is None
    (note,) = leakage_notes(seen(tmp_path, (True,) * 4), audited())
    assert "No other test images are left to score" in note


def test_labelled_training_images_that_are_duplicates_of_test_images_are_counted(tmp_path):
    pair = DuplicatePair("digits", "train", 3, "digits", "test", 5, "near", 0.9)
    changes = {"row": 4}, {"split": "unlabeled", "row": 6}, {"source": "other"}, {"against_split": "validation"}
    pairs = (pair, *(dataclasses.replace(pair, **change) for change in changes))
    comparison = seen(tmp_path, (False,) * 4)
    note = leakage_notes(comparison, audited(pairs=pairs))[-1]
    assert note.startswith("2 labelled training images are duplicates or near-duplicates of 1 test images.")
    assert len(leakage_notes(comparison, audited(pairs=pairs[2:]))) == 1


def test_settings_in_which_the_arms_differ_are_marked_and_named(comparison):
    page = page_of(comparison)
    assert any(text.startswith("The arms differ in model.init, train.layer_decay, marked") for _, text in page.texts)
    settings = page.table("Settings of each arm's chosen recipe")
    marked = {name: cells[1] for name, cells in settings.items() if cells[1].startswith("≠")}
    assert marked == {"model.init": "≠ scratch", "train.layer_decay": "≠ 1.0"}
    assert not {"output_dir", "train.seed"} & settings.keys()


def test_the_settings_of_a_pre_training_run_have_a_table(tmp_path, runs):
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre" / "run.json").write_text("{}")
    (tmp_path / "pre" / "config.yaml").write_text(parse.to_yaml(PretrainConfig(output_dir="pre")))
    ours = write_run(tmp_path / "ours", str(tmp_path / "pre"), (True, True, True, False))
    settings = page_of(compare_runs([ours], [runs[1]])).table("Settings of its pre-training")
    assert settings["model.mask_ratio"] == ["0.75"]


def test_the_environment_of_every_run_is_shown_and_unknown_is_said(comparison, runs):
    page = page_of(with_origins(comparison, NOTHING))
    _, ours, scratch = page.table("Where and when").values()
    assert ours == ["cpu: <X>", "2", "bf16", "1,234", "ffffffffffff-dirty", "2026-11-24T10:42:55", "1.5"]
    assert scratch == ["unknown", "unknown", "unknown", "1,234", "unknown", "unknown", "unknown"]
    assert ("li", "torch 2.13.0") in page.texts


def test_the_commands_are_those_of_the_runs_in_their_order(comparison, runs):
    lines = ("scripts/pretrain.py --x 1", "scripts/pretrain.py --x 2")
    origins = [Provenance(line, record=RunRecord(command=line, num_processes=1)) for line in lines]
    assert commands(comparison, *origins) == [
        "accelerate launch --num_processes 1 scripts/pretrain.py --x 1",
        "accelerate launch --num_processes 1 scripts/pretrain.py --x 2",
        "accelerate launch --mixed_precision bf16 --num_processes 2 scripts/finetune.py --model.init runs/pretrain/x",
        "accelerate launch scripts/finetune.py --model.init scratch",
        f"mae_hf compare --pretrained {runs[0]} --scratch {runs[1]} --output_dir 'out dir'",
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
    origin = Provenance("x", record=RunRecord(command="x.py", **record))
    assert commands(comparison, origin)[0] == expected
