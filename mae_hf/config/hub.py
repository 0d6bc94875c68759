"""Whether and where a finished model is uploaded."""

from dataclasses import dataclass

from mae_hf.errors import require


@dataclass(frozen=True)
class HubConfig:
    """Whether and where the finished model is uploaded.

    Args:
        push: upload `model/` when the run is done; needs `repo_id` and a token (`hf auth login` or `HF_TOKEN`).
        repo_id: the repository, `user/name`; made if it does not exist.
        private: make it private when it is made.
    """

    push: bool = False
    repo_id: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        require(
            self.repo_id is not None or not self.push,
            "hub.push needs a repository to push to: name it (--hub.repo_id user/name)",
        )
        require(
            self.repo_id is None or self.repo_id.count("/") == 1,
            f"repo_id {self.repo_id} is not of the form user/name: name both (--hub.repo_id user/name)",
        )
