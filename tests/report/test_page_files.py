"""The report of real files: a page that needs nothing else, numbers as in the runs, pictures of the same images."""

import json
import re
import subprocess
import sys
from pathlib import Path

from run_folders import HALF, write_run

from mae_hf.commands import compare as compare_command
from mae_hf.config.commands import CompareConfig
from mae_hf.models.io import open_encoder, weights_digest
from mae_hf.report import page
from mae_hf.report.comparison import compare_runs
from mae_hf.report.pictures import Pictures

ROOT = Path(__file__).parents[2]


def test_every_picture_and_the_numbers_are_files_of_their_own(comparison, tmp_path, capsys):
    out = page.write_report(comparison, tmp_path / "out").parent
    assert "warning" not in capsys.readouterr().err
    assert {path.name for path in out.iterdir() if path.suffix != ".png"} == {"index.html", "comparison.json"}
    html = (out / "index.html").read_text()
    assert html.count('src="data:image/png;base64,') == len(list(out.glob("*.png"))) and len(html) < 5e6
    numbers = json.loads((out / "comparison.json").read_text())
    assert numbers["points"] == 25 and numbers["answer"] == comparison.answer()
    assert numbers["notes"] == comparison.notes()
    assert numbers["results"]["arms"]["MAE pre-trained"]["accuracy"]["values"] == [0.75]
    assert [row["test_accuracy"] for row in numbers["runs"]] == [0.75, 0.5]
    assert numbers["confusion_matrix"]["MAE pre-trained"] == [[2, 0], [1, 1]]
    assert set(numbers["knn_accuracy"]) == {"MAE before fine-tuning", "untrained", "from scratch, trained"}


def test_the_page_and_a_warning_say_what_is_gone(runs, comparison, tmp_path, capsys):
    for path in (runs[0] / "figures").iterdir():
        path.unlink()
    assert "No reconstruction: " in page.write_report(comparison, tmp_path / "out").read_text()
    assert "warning: No reconstruction: " in capsys.readouterr().err


def test_an_encoder_that_changed_since_a_run_started_from_it_is_said(runs, tmp_path, capsys):
    record = json.loads((runs[1] / "run.json").read_text())
    digest = weights_digest(open_encoder(str(runs[0]), "sdpa"))
    for known, is_said in ((digest, False), ("0" * 16, True)):
        (runs[1] / "run.json").write_text(json.dumps(record | {"init_digest": known}))
        report = page.write_report(compare_runs([runs[1]], [runs[2]]), tmp_path / "out")
        text = f"The encoder {runs[0]} has changed since {runs[1]} started from it"
        assert (text in capsys.readouterr().err) == is_said
        notes = json.loads((report.parent / "comparison.json").read_text())["notes"]
        assert any(note.startswith(text) for note in notes) == is_said == ("has changed since" in report.read_text())


def test_a_choice_of_recipe_on_few_validation_images_is_warned_of(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page, "draw_pictures", lambda comparison, folder, settings: Pictures(folder))
    few = {"curve": (0.5,), "validation": (True,) * 5 + (False,) * 5}
    ours = write_run(tmp_path / "ours", "encoder", HALF, **few)
    scratch = [write_run(tmp_path / f"s{i}", "scratch", HALF, layer_decay=1.0 - i / 10, **few) for i in range(2)]
    page.write_report(compare_runs([ours], scratch[:1]), tmp_path / "out")
    assert "warning" not in capsys.readouterr().err
    page.write_report(compare_runs([ours], scratch), tmp_path / "out")
    assert "warning: Recipes and epochs were chosen on 10 validation images, where one image is 10.0 points" in (
        capsys.readouterr().err
    )


def test_json_says_null_where_a_target_was_not_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "draw_pictures", lambda comparison, folder, settings: Pictures(folder))
    slow = write_run(tmp_path / "slow", "encoder", HALF, curve=(0.1, 0.2))
    scratch = write_run(tmp_path / "scratch", "scratch", HALF, curve=(0.3, 0.65))
    report = page.write_report(compare_runs([slow], [scratch]), tmp_path / "out")
    text = (report.parent / "comparison.json").read_text()
    numbers = json.loads(text)
    assert numbers["results"]["arms"]["MAE pre-trained"]["epochs_to_target"]["values"] == [None]
    assert [run["epochs_to_scratch_best"] for run in numbers["runs"]] == [None, 2]
    assert "Infinity" not in text and "NaN" not in text


def test_the_table_marks_the_chosen_runs_and_says_not_reached(tmp_path):
    slow = write_run(tmp_path / "slow", "encoder", HALF, curve=(0.1, 0.2))
    scratch = [
        write_run(tmp_path / f"s{i}", "scratch", HALF, curve=(0.3, 0.65 - i / 10), layer_decay=1.0 - i / 10)
        for i in range(2)
    ]
    head, _, *rows = page.text_table(compare_runs([slow], scratch)).splitlines()
    assert re.split(r"  +", head)[2:] == [
        "accuracy",
        "macro-F1",
        "loss",
        "best val",
        "at epoch",
        "epochs to scratch best",
    ]
    assert re.split(r"  +", rows[0])[1:] == ["encoder", "50.00", "33.33", "1.204", "20.00", "2", "not reached"]
    assert [row.startswith("* ") for row in rows] == [True, True, False]


def command(*words: object) -> subprocess.CompletedProcess:
    """scripts/compare.py as it is typed."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "compare.py"), *map(str, words)],
        capture_output=True, text=True, env=None, cwd=ROOT,
    )  # fmt: skip


def test_the_command_prints_the_table_and_ends_with_the_path_of_the_report(runs, tmp_path, capsys):
    arms = {"pretrained": str(runs[1]), "scratch": [str(runs[2])]}
    compare_command.compare(CompareConfig(**arms, output_dir=str(tmp_path / "out")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("With 270 labels, the MAE-pre-trained ViT reaches 75.0 %")
    assert any("scratch" in line and "50.00" in line for line in lines)
    assert lines[-1] == f"report: {tmp_path / 'out' / 'index.html'}" and (tmp_path / "out" / "index.html").exists()


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    done = command("--pretrained", tmp_path / "nowhere", "--scratch", tmp_path, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert re.fullmatch(r"error: .*nowhere is not a folder: .*\n", done.stderr)
    assert command("--scratch", tmp_path).returncode == 2
