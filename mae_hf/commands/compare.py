"""Compare fine-tuning from a pre-trained encoder with training from scratch, or any number of arms."""

from mae_hf.config.commands import CompareConfig
from mae_hf.report.comparison import compare_arms, compare_runs
from mae_hf.report.page import text_table, write_report


def compare(config: CompareConfig) -> None:
    """Read the runs, write the report, and print its table."""
    comparison = compare_runs(*config.arms.values()) if config.arm is None else compare_arms(config.arms)
    report = write_report(comparison, config.output_dir, config.figures)
    print(f"{comparison.answer()}\n{comparison.details()}\n\n{text_table(comparison)}\n\nreport: {report}")
