"""The config of each command."""

from dataclasses import dataclass, field
from typing import Literal

from mae_hf.config.augment import AugmentConfig, CropConfig
from mae_hf.config.checks import check_above_zero, check_words
from mae_hf.config.data import AuditConfig, DataConfig, check_not_streamed
from mae_hf.config.hub import HubConfig
from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.config.train import FinetuneTrainConfig, PretrainTrainConfig
from mae_hf.errors import require

# Settings that have no part in a result, and that an unfinished run may change: where things lie, how the machine is
# used, who else is told, what is done about failures. (A run that went on has met no bad image; stored images are known
# by fingerprint.)
MACHINE_SETTINGS = frozenset(
    {"output_dir", "data.cache_dir", "data.on_device", "data.on_bad_image", "hub.push", "hub.repo_id", "hub.private"}
    | {"train.per_device_batch_size", "train.compile", "train.max_skipped_windows", "train.timeout_minutes"}
    | {"train.trackers"}
)


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train a masked autoencoder.

    Args:
        output_dir: the run folder; the same command on an unfinished run resumes it.
    """

    data: DataConfig = field(default_factory=DataConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    model: MAEConfig = field(default_factory=MAEConfig)
    augment: CropConfig = field(default_factory=CropConfig)
    train: PretrainTrainConfig = field(default_factory=PretrainTrainConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    output_dir: str = "runs/pretrain/stl10_base"

    def __post_init__(self) -> None:
        require(
            not (self.data.streaming and self.train.max_skipped_windows),
            f"max_skipped_windows {self.train.max_skipped_windows} would go back to batches that a stream has passed: "
            "leave it out with data.streaming (--train.max_skipped_windows 0)",
        )
        require(
            self.data.fold is None and self.data.label_fraction in (None, 1.0),
            "data.fold and data.label_fraction restrict labels, which pre-training does not use: leave them to "
            "scripts/finetune.py (--data.fold null --data.label_fraction null)",
        )
        readers = self.data.stream_readers
        require(
            not self.data.streaming or self.train.batch_size % readers == 0,
            f"batch_size {self.train.batch_size} cannot be shared out to {readers} readers of the stream: choose a "
            f"multiple of {readers} (--train.batch_size, --data.stream_readers)",
        )


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune a classifier from a pre-trained encoder, or train the same network from scratch.

    Args:
        output_dir: the run folder; the same command on an unfinished run resumes it.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    output_dir: str = "runs/finetune/stl10_base"

    def __post_init__(self) -> None:
        require(
            len(self.data.sources) == 1,
            f"data.source names {len(self.data.sources)} sources: fine-tuning takes one, with labels (--data.source)",
        )
        check_not_streamed(self.data)


@dataclass(frozen=True)
class PrepareConfig:
    """Decode the images of every source ahead of the runs.

    Args:
        image_size: side of the square images, the `model.image_size` of the runs.
        audit_against: look for the unlabeled images in this split, `train`, `validation` or `test`: equal pixels, and
            copies that were compressed, resized, slightly cropped, brightened or mirrored.
    """

    data: DataConfig = field(default_factory=DataConfig)
    image_size: int = 96
    audit_against: Literal["train", "validation", "test"] | None = None

    def __post_init__(self) -> None:
        require(
            self.image_size > 0,
            f"image_size {self.image_size} is not above 0: choose 96, or 32 for digits (--image_size)",
        )
        check_not_streamed(self.data)


PROBES = ("knn", "linear", "head", "rank")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a classifier on test images, or probe the frozen features of an encoder.

    Args:
        model: run folder, model folder or Hub id of a classifier, a masked autoencoder or an encoder.
        probe: how features are probed, several as `knn,linear`: `knn`, a vote of nearest neighbours; `linear`,
            logistic regression; `head`, the paper's batch normalisation and linear layer; `rank`, the dimensions in
            use, without labels. Left out, the model's own classifier is evaluated.
        batch_size: images at once per device.
        output_dir: folder for metrics.json, and predictions.parquet or predictions/PROBE-POOLING.parquet.
    """

    model: str
    output_dir: str
    data: DataConfig = field(default_factory=DataConfig)
    probe: str | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        check_words("probe", self.probes, PROBES)
        check_not_streamed(self.data)
        check_above_zero("batch_size", self.batch_size)

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes asked for."""
        return tuple(self.probe.split(",")) if self.probe else ()


METHODS = ("knn", "linear", "finetune")


@dataclass(frozen=True)
class FewLabelsConfig:
    """Measure an encoder with few labels: on ten folds of the training images, or on budgets of 1 to 100 % of them.

    Args:
        model: run folder, model folder or Hub id of a masked autoencoder or an encoder.
        output_dir: folder for results.jsonl, summary.json and the picture; the same command goes on where it stopped.
        protocol: `folds`, STL-10's ten of 1,000 images, or ten drawn ones where the source has no fold_indices.txt;
            `budgets`, 1, 5, 10, 25 and 100 % of the labels.
        method: how labels are used, several as `knn,linear`: `knn` and `linear` on frozen features, and `finetune`.
        scratch: also measure the same network from random weights.
        draws: sets of labels that are drawn for each budget.
        finetune_config: YAML of fine-tuning, for its recipe; needed by `finetune`.
        min_steps: optimizer steps of a fine-tuning at least; where few labels would give fewer, epochs are stretched.
        batch_size: images at once per device, when features are computed.
    """

    model: str
    output_dir: str
    data: DataConfig = field(default_factory=DataConfig)
    protocol: Literal["folds", "budgets"] = "folds"
    method: str = "knn,linear"
    scratch: bool = False
    draws: int = 3
    finetune_config: str | None = None
    min_steps: int = 200
    batch_size: int = 256

    def __post_init__(self) -> None:
        check_words("method", self.methods, METHODS)
        check_not_streamed(self.data)
        for name in ("draws", "min_steps", "batch_size"):
            check_above_zero(name, getattr(self, name))
        require(
            "finetune" not in self.methods or self.finetune_config is not None,
            "method finetune needs a recipe: name the YAML of a fine-tuning (--finetune_config "
            "configs/finetune/digits.yaml)",
        )
        require(
            not self.data.has_label_set,
            "data.fold and data.label_fraction are what this command varies: leave them out, and choose --protocol "
            "folds or budgets",
        )
        require(
            len(self.data.sources) == 1,
            f"data.source names {len(self.data.sources)} sources: labels come from one (--data.source)",
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods asked for."""
        return tuple(self.method.split(","))


@dataclass(frozen=True)
class ReconstructConfig:
    """Draw what a masked autoencoder makes of hidden patches.

    Args:
        model: run folder, model folder or Hub id of a masked autoencoder.
        output: the PNG file to write.
        num_images: images in the picture.
    """

    model: str
    output: str
    data: DataConfig = field(default_factory=DataConfig)
    num_images: int = 8

    def __post_init__(self) -> None:
        check_not_streamed(self.data)
        check_above_zero("num_images", self.num_images)
        require(
            self.output.endswith(".png"), f"output {self.output} is not a PNG file: give it the ending .png (--output)"
        )


@dataclass(frozen=True)
class DemoConfig:
    """Show a classifier or a masked autoencoder at work on a web page of this machine.

    Args:
        model: run folder, model folder or Hub id of a classifier or a masked autoencoder.
        port: the page is at http://127.0.0.1:port; other machines do not see it.
    """

    model: str
    port: int = 7860

    def __post_init__(self) -> None:
        require(
            1024 <= self.port < 2**16, f"port {self.port} is not a port for a page: choose 1024 to 65535 (--port 7860)"
        )
