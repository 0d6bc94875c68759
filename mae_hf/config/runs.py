"""The config of both runs, pre-training and fine-tuning, and of the upload."""

from dataclasses import dataclass, field
from typing import Annotated

from mae_hf.config.augment import AugmentConfig, CropConfig
from mae_hf.config.data import AuditConfig, DataConfig, StoredImages
from mae_hf.config.fields import Settings, Text
from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.config.train import FinetuneTrainConfig, Plan, PretrainTrainConfig

# Settings that do not affect results: paths, hardware, trackers, error handling. An unfinished run may change them.
MACHINE_SETTINGS = frozenset(
    {"output_dir", "data.cache_dir", "data.on_device", "data.on_bad_image", "hub.push", "hub.repo_id", "hub.private"}
    | {"hub.license", "hub.pictures"}
    | {"train.per_device_batch_size", "train.compile", "train.timeout_minutes", "train.trackers"}
)


@dataclass(frozen=True)
class HubConfig(Settings):
    """Whether and where the finished model is uploaded.

    Args:
        push: upload `model/` when the run is finished; needs `repo_id` and a token (`hf auth login` or `HF_TOKEN`).
        repo_id: the repository, `user/name`; it is created if it does not exist.
        private: make a new repository private.
        license: the licence of the model in its card, as the Hub names it, such as `mit`.
        pictures: show pictures in the card: curves, and the confusion matrix or reconstructions of held-out images.
    """

    section = "hub"
    push: bool = False
    repo_id: Annotated[str, Text("[^/]*/[^/]*", "of the form user/name")] | None = None
    private: bool = False
    license: Annotated[str, Text("[a-z0-9][a-z0-9.-]*", "a licence's name on the Hub, such as mit")] | None = None
    pictures: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        problem = "needs a repository: name it with --hub.repo_id user/name, or set it to false"
        self.check("push", self.repo_id is not None or not self.push, problem)


@dataclass(frozen=True)
class PretrainConfig(Settings):
    """Pre-train a masked autoencoder.

    Args:
        output_dir: the run folder; the same command resumes an unfinished run.
    """

    presets = "pretrain"
    data: DataConfig = field(default_factory=DataConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    model: MAEConfig = field(default_factory=MAEConfig)
    augment: CropConfig = field(default_factory=CropConfig)
    train: PretrainTrainConfig = field(default_factory=PretrainTrainConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    output_dir: str = "runs/pretrain/stl10_base"

    def __post_init__(self) -> None:
        super().__post_init__()
        problem = "restricts labels, which pre-training does not use: set it to null, and give it to finetune instead"
        self.data.check("fold", self.data.fold is None, problem)
        self.data.check("label_fraction", self.data.label_fraction in (None, 1.0), problem)
        readers = self.data.stream_readers if self.data.streaming else 1
        problem = f"cannot be divided among {readers} readers of the stream: choose a multiple of data.stream_readers"
        self.train.check("batch_size", self.train.batch_size % readers == 0, problem)

    def check_uniformity(self, plan: Plan) -> None:
        """Check that `model.uniformity` finds several images in a batch, which are computed at once."""
        size, steps = plan.train.batch_size, plan.accumulation_steps
        problem = f"compares several images, but a batch of {size} is computed in {steps} accumulation steps"
        is_right = not self.model.uniformity or (steps == 1 and size > 1)
        self.model.check("uniformity", is_right, f"{problem}: choose another --train.batch_size, or 0")


@dataclass(frozen=True)
class FinetuneConfig(StoredImages):
    """Fine-tune a classifier from a pre-trained encoder, or train the same network from scratch.

    Args:
        output_dir: the run folder; the same command resumes an unfinished run.
    """

    presets = "finetune"
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    output_dir: str = "runs/finetune/stl10_base"


RunConfig = PretrainConfig | FinetuneConfig  # of what trains, in a run folder
