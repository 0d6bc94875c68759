"""Whether and where a finished model is uploaded."""

from dataclasses import dataclass

from mae_hf.config.fields import Settings
from mae_hf.errors import require


@dataclass(frozen=True)
class HubConfig(Settings):
    """Whether and where the finished model is uploaded.

    Args:
        push: upload `model/` when the run is finished; needs `repo_id` and a token (`hf auth login` or `HF_TOKEN`).
        repo_id: the repository, `user/name`; it is created if it does not exist.
        private: make a new repository private.
    """

    section = "hub"
    push: bool = False
    repo_id: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.repo_id is not None or not self.push,
            "hub.push needs a repository: name it (--hub.repo_id user/name)",
        )
        require(
            self.repo_id is None or self.repo_id.count("/") == 1,
            f"hub.repo_id {self.repo_id} is not of the form user/name: give both parts (--hub.repo_id user/name)",
        )
