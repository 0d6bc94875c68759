"""The configs of the commands that are no runs: rules between their sections."""

import pytest
from refused import check_refused, id_of

from mae_hf.__main__ import join_lists
from mae_hf.config import parse
from mae_hf.config.commands import (
    CompareConfig,
    DemoConfig,
    DoctorConfig,
    EmbedConfig,
    EvaluateConfig,
    FewLabelsConfig,
    PredictConfig,
    PrepareConfig,
    ReconstructConfig,
)
from mae_hf.config.data import DataConfig
from mae_hf.config.runs import FinetuneConfig

FEW = {"model": "m", "output_dir": "o"}
STREAMED = "data.streaming True is only for pretrain: set it to false (--data.streaming)"
NOT_STREAMED = {
    FinetuneConfig: {},
    PrepareConfig: {},
    EvaluateConfig: FEW,
    FewLabelsConfig: FEW,
    ReconstructConfig: {"model": "m", "output": "o.png"},
    EmbedConfig: {"model": "m", "output": "o.parquet"},
    PredictConfig: {"model": "m", "output": "o.csv"},
    DoctorConfig: {"name": "photos"},
}
WRONG = [
    *((cls, {**fields, "data": DataConfig(streaming=True)}, STREAMED) for cls, fields in NOT_STREAMED.items()),
    (
        FinetuneConfig,
        {"data": DataConfig(source=["a", "b"])},
        "data.source ['a', 'b'] is a list: .. labels of one (--data.source)",
    ),
    (PrepareConfig, {"image_size": 0}, "image_size is 0 but must be above 0 .. such as 96 (--image_size)"),
    (EvaluateConfig, {**FEW, "probe": "knn,svm"}, "probe is knn,svm but must be one or more of knn,linear,head,rank ("),
    (FewLabelsConfig, {**FEW, "method": "knn,svm"}, "method is knn,svm but must be one or more of knn,linear,finetune"),
    (FewLabelsConfig, {**FEW, "method": "finetune"}, "needs a recipe: .. --finetune_config digits"),
    (FewLabelsConfig, {**FEW, "data": DataConfig(fold=0)}, "chosen by this command .. --protocol folds or budgets"),
    (
        FewLabelsConfig,
        {**FEW, "data": DataConfig(source=["a", "b"])},
        "is a list: this command uses the labels of one (--data.source)",
    ),
    (
        EvaluateConfig,
        {**FEW, "data": DataConfig(source=["a", "b"])},
        "is a list: this command uses the labels of one (--data.source)",
    ),
    (ReconstructConfig, {"model": "m", "output": "o.jpg"}, "output is o.jpg but .. ends in .png or .svg (--output)"),
    (EmbedConfig, {"model": "m", "output": "o.csv"}, "output is o.csv but .. ends in .parquet (--output)"),
    (
        EmbedConfig,
        {"model": "m", "output": "o.parquet", "neighbours": 17},
        "neighbours is 17 but .. at most 16",
    ),
    (PredictConfig, {"model": "m", "output": "o.xlsx"}, "output is o.xlsx but .. ends in .csv or .parquet (--output)"),
    (CompareConfig, {"output_dir": "o"}, "runs of two arms are missing: give --pretrained RUN --scratch RUN, or --arm"),
    (CompareConfig, {"output_dir": "o", "scratch": "r"}, "the runs of two arms are missing"),
    (CompareConfig, {"output_dir": "o", "arm": ["a=r"]}, "the runs of two arms are missing"),
    (
        CompareConfig,
        {"output_dir": "o", "scratch": "r", "arm": ["a=r"]},
        "--arm names all arms: remove --pretrained and",
    ),
    (
        CompareConfig,
        {"output_dir": "o", "arm": ["a=r", "s"]},
        "arm is ['a=r', 's'] but must be NAME=RUN or NAME=RUN,RUN",
    ),
    (CompareConfig, {"output_dir": "o", "arm": ["a=r", "b=s,"]}, "but must be NAME=RUN or NAME=RUN,RUN"),
    (CompareConfig, {"output_dir": "o", "arm": ["a=r", " =s"]}, "but must be NAME=RUN or NAME=RUN,RUN"),
    (
        CompareConfig,
        {"output_dir": "o", "arm": ["a=r", "a=s"]},
        "two arms are named a: join their runs, --arm a=RUN,RUN",
    ),
    (
        CompareConfig,
        {"output_dir": "o", "arm": ["a=r", f"{'b' * 41}=s"]},
        "with a name of at most 40 characters (--arm)",
    ),
    (
        CompareConfig,
        {"output_dir": "o", "arm": ["a=r", "b\x1b[31m=s"]},
        "contains control characters: remove them (--arm)",
    ),
    (
        DoctorConfig,
        {"name": "a", "data": DataConfig(source="b")},
        "data.source b is not used by doctor: its first word names",
    ),
    (DemoConfig, {"model": "m", "port": 80}, "port is 80 but must be at least 1024 and at most 65535, such as 7860"),
]


@pytest.mark.parametrize(("config_class", "fields", "message"), WRONG, ids=id_of)
def test_a_wrong_value_is_named_with_what_is_allowed_and_the_flag(config_class, fields, message):
    check_refused(config_class, fields, message)


def test_probes_are_split():
    assert EvaluateConfig(**FEW, probe="knn,linear").probes == ("knn", "linear")
    assert EvaluateConfig(**FEW).probes == ()


@pytest.mark.parametrize(
    "words",
    [
        ("--arm", "own=a,b", "--arm", "the probe=c", "--output_dir", "o"),
        ("--arm=own=a,b", "--output_dir", "o", "--arm", "the probe=c"),
        ("--arm", "own=a,b", "the probe=c", "--output_dir", "o"),
    ],
)
def test_every_arm_is_read_wherever_it_is_on_the_command_line(words):
    config = parse.read_command(CompareConfig, join_lists(words), "compare")
    assert config.arms == {"own": ["a", "b"], "the probe": ["c"]} and config.output_dir == "o"


def test_arms_of_the_command_line_replace_those_of_a_file(tmp_path):
    (tmp_path / "arms.yaml").write_text("arm: [old=a, older=b]\noutput_dir: o\n")
    words = ("--config", str(tmp_path / "arms.yaml"), "--arm", "new=c", "--arm=newer=d")
    assert parse.read_command(CompareConfig, join_lists(words), "compare").arm == ["new=c", "newer=d"]
