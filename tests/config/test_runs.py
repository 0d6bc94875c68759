"""The configs of both runs and of the upload: rules between their sections."""

import pytest
from refused import check_refused, id_of

from mae_hf.config.data import DataConfig
from mae_hf.config.model import MAEConfig
from mae_hf.config.runs import HubConfig, PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.errors import ConfigError

WRONG = [
    (
        PretrainConfig,
        {"data": DataConfig(fold=1)},
        "data.fold 1 restricts labels, .. give it to finetune instead (--data.fold)",
    ),
    (
        PretrainConfig,
        {"data": DataConfig(label_fraction=0.1)},
        "does not use: set it to null, .. (--data.label_fraction)",
    ),
    (
        PretrainConfig,
        {"data": DataConfig(streaming=True, stream_readers=7)},
        "train.batch_size 512 cannot be divided among 7 readers .. data.stream_readers (--train.batch_size)",
    ),
    (HubConfig, {"push": True}, "hub.push True needs a repository .. --hub.repo_id user/name .. (--hub.push)"),
    (HubConfig, {"repo_id": "name"}, "hub.repo_id is name but must be of the form user/name (--hub.repo_id)"),
]


@pytest.mark.parametrize(("config_class", "fields", "message"), WRONG, ids=id_of)
def test_a_wrong_value_of_a_run_is_named_with_what_is_allowed_and_the_flag(config_class, fields, message):
    check_refused(config_class, fields, message)


def test_all_labels_may_be_named_in_pre_training_since_this_restricts_nothing():
    PretrainConfig(data=DataConfig(label_fraction=1.0))


def test_an_upload_with_a_repository_is_accepted():
    assert HubConfig(push=True, repo_id="user/name").push


@pytest.mark.parametrize(("batch_size", "micro_batch_size"), [(8, 4), (1, 1)])
def test_uniformity_needs_a_batch_of_several_images_without_accumulation(batch_size, micro_batch_size):
    train = PretrainTrainConfig(batch_size=batch_size)
    PretrainConfig(train=train).check_uniformity(train.plan(10, 1, micro_batch_size))
    config = PretrainConfig(train=train, model=MAEConfig(uniformity=0.01))
    with pytest.raises(
        ConfigError, match=rf"a batch of {batch_size} is computed in .* steps: .* --train\.batch_size, or 0"
    ):
        config.check_uniformity(train.plan(10, 1, micro_batch_size))
    config.check_uniformity(PretrainTrainConfig(batch_size=8).plan(10, 2, 4))
