"""The configs of both runs and of the upload: rules between their sections."""

import pytest
from refused import check_refused, id_of

from mae_hf.config.data import DataConfig
from mae_hf.config.runs import HubConfig, PretrainConfig

WRONG = [
    (PretrainConfig, {"data": DataConfig(fold=1)}, "does not use: .. give them to finetune .. --data.fold null"),
    (PretrainConfig, {"data": DataConfig(label_fraction=0.1)}, "does not use: .. --data.label_fraction null"),
    (
        PretrainConfig,
        {"data": DataConfig(streaming=True, stream_readers=7)},
        "batch_size 512 cannot be divided among 7 readers .. multiple of 7 .. --data.stream_readers",
    ),
    (HubConfig, {"push": True}, "hub.push needs a repository .. --hub.repo_id user/name"),
    (HubConfig, {"repo_id": "name"}, "hub.repo_id is name but must be of the form user/name (--hub.repo_id)"),
]


@pytest.mark.parametrize(("config_class", "fields", "message"), WRONG, ids=id_of)
def test_a_wrong_value_of_a_run_is_named_with_what_is_allowed_and_the_flag(config_class, fields, message):
    check_refused(config_class, fields, message)


def test_all_labels_may_be_named_in_pre_training_since_this_restricts_nothing():
    PretrainConfig(data=DataConfig(label_fraction=1.0))


def test_an_upload_with_a_repository_is_accepted():
    assert HubConfig(push=True, repo_id="user/name").push
