"""The settings of the upload."""

from refused import check_refused

from mae_hf.config.hub import HubConfig


def test_an_upload_needs_a_repository_with_user_and_name():
    check_refused(HubConfig, {"push": True}, "hub.push needs a repository .. --hub.repo_id user/name")
    check_refused(HubConfig, {"repo_id": "name"}, "hub.repo_id name is not of the form user/name .. --hub.repo_id")
    assert HubConfig(push=True, repo_id="user/name").push
