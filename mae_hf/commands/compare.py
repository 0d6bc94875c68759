"""Compare fine-tuning from a pre-trained encoder with the same training from scratch, from the runs' folders.

python scripts/compare.py --pretrained runs/finetune/digits --scratch runs/finetune/digits-scratch \
    --output_dir runs/compare/digits

Several seeds of each arm: --pretrained runs/finetune/seed-* --scratch runs/finetune/scratch-seed-*
"""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the runs, refuses what cannot be compared, writes the report and prints its table."""
    parser = argparse.ArgumentParser(
        prog="scripts/compare.py",
        description="Compare fine-tuning from a pre-trained encoder with the same training from scratch.",
        epilog="Runs of an arm that differ in train.seed alone are one recipe: the answer is about all its seeds. Of "
        "several recipes in an arm, the one with the best mean validation accuracy speaks for it; all runs are listed.",
    )
    parser.add_argument(
        "--pretrained",
        nargs="+",
        required=True,
        metavar="RUN",
        help="run folders of scripts/finetune.py that started from a pre-trained encoder, of one seed or more",
    )
    parser.add_argument(
        "--scratch",
        nargs="+",
        required=True,
        metavar="RUN",
        help="run folders of scripts/finetune.py --model.init scratch on the same images; equal seeds are paired",
    )
    parser.add_argument(
        "--output_dir",
        required=True,
        metavar="DIR",
        help="where index.html, comparison.json and the PNG files go; made if needed, files of that name are replaced",
    )
    arguments = parser.parse_args(argv)

    from mae_hf.report.comparison import compare_runs

    comparison = compare_runs(arguments.pretrained, arguments.scratch)

    from mae_hf.report.write import text_table, write_report  # needs torch, which takes longer than to refuse runs

    report = write_report(comparison, arguments.output_dir)
    print(f"{comparison.answer()}\n{comparison.details()}\n\n{text_table(comparison)}\n\nreport: {report}")
