"""The configs of the commands: rules between their sections."""

import pytest
from refused import check_refused, id_of

from mae_hf.config.commands import (
    DemoConfig,
    EvaluateConfig,
    FewLabelsConfig,
    FinetuneConfig,
    HubConfig,
    PrepareConfig,
    PretrainConfig,
    ReconstructConfig,
)
from mae_hf.config.data import DataConfig

FEW = {"model": "m", "output_dir": "o"}
STREAMED = "data.streaming is only for scripts/pretrain.py .. switch it off (--data.streaming false)"
NOT_STREAMED = {
    FinetuneConfig: {},
    PrepareConfig: {},
    EvaluateConfig: FEW,
    FewLabelsConfig: FEW,
    ReconstructConfig: {"model": "m", "output": "o.png"},
}
WRONG = [
    (PretrainConfig, {"data": DataConfig(fold=1)}, "does not use: .. scripts/finetune.py .. --data.fold null"),
    (PretrainConfig, {"data": DataConfig(label_fraction=0.1)}, "does not use: .. --data.label_fraction null"),
    (
        PretrainConfig,
        {"data": DataConfig(streaming=True, stream_readers=7)},
        "batch_size 512 cannot be divided among 7 readers .. multiple of 7 .. --data.stream_readers",
    ),
    *((cls, {**fields, "data": DataConfig(streaming=True)}, STREAMED) for cls, fields in NOT_STREAMED.items()),
    (FinetuneConfig, {"data": DataConfig(source=["a", "b"])}, "data.source names 2 sources .. --data.source"),
    (PrepareConfig, {"image_size": 0}, "image_size is 0 but must be above 0 .. such as 96 (--image_size)"),
    (EvaluateConfig, {**FEW, "probe": "knn,svm"}, "probe is knn,svm but must be one or more of knn,linear,head,rank ("),
    (FewLabelsConfig, {**FEW, "method": "knn,svm"}, "method is knn,svm but must be one or more of knn,linear,finetune"),
    (FewLabelsConfig, {**FEW, "method": "finetune"}, "needs a recipe: .. --finetune_config configs/finetune/digits"),
    (FewLabelsConfig, {**FEW, "data": DataConfig(fold=0)}, "chosen by this command .. --protocol folds or budgets"),
    (FewLabelsConfig, {**FEW, "data": DataConfig(source=["a", "b"])}, "names 2 sources .. --data.source"),
    (EvaluateConfig, {**FEW, "data": DataConfig(source=["a", "b"])}, "names 2 sources .. --data.source"),
    (ReconstructConfig, {"model": "m", "output": "o.jpg"}, "output is o.jpg but .. ends in .png (--output)"),
    (HubConfig, {"push": True}, "hub.push needs a repository .. --hub.repo_id user/name"),
    (HubConfig, {"repo_id": "name"}, "hub.repo_id is name but must be of the form user/name (--hub.repo_id)"),
    (DemoConfig, {"model": "m", "port": 80}, "port is 80 but must be at least 1024 and at most 65535, such as 7860"),
]


@pytest.mark.parametrize(("config_class", "fields", "message"), WRONG, ids=id_of)
def test_a_wrong_value_is_named_with_what_is_allowed_and_the_flag(config_class, fields, message):
    check_refused(config_class, fields, message)


def test_all_labels_may_be_named_in_pre_training_since_this_restricts_nothing():
    PretrainConfig(data=DataConfig(label_fraction=1.0))


def test_probes_and_methods_are_split():
    assert EvaluateConfig(**FEW, probe="knn,linear").probes == ("knn", "linear")
    assert EvaluateConfig(**FEW).probes == ()
    config = FewLabelsConfig(**FEW, method="knn,finetune", finetune_config="recipe.yaml")
    assert config.methods == ("knn", "finetune")


def test_an_upload_with_a_repository_is_accepted():
    assert HubConfig(push=True, repo_id="user/name").push
