"""The config of each command besides `pretrain` and `finetune`, whose configs are in runs.py."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mae_hf.config.data import DataConfig, StoredImages
from mae_hf.config.fields import Count, Range, Settings, Text, ending, words
from mae_hf.config.model import Size
from mae_hf.errors import require


@dataclass(frozen=True)
class PrepareConfig(StoredImages):
    """Decode the images of every source before the runs need them.

    Args:
        image_size: side of the square images, the same as `model.image_size` of the runs.
        audit_against: search this split, `train`, `validation` or `test`, for duplicates of the unlabelled images:
            identical pixels, or copies that were compressed, resized, slightly cropped, brightened or mirrored.
    """

    several_sources = True
    image_size: Size = 96
    audit_against: Literal["train", "validation", "test"] | None = None


@dataclass(frozen=True)
class EvaluateConfig(StoredImages):
    """Evaluate a classifier on test images, or probe the frozen features of an encoder.

    Args:
        model: run folder, model folder or Hub id of a classifier, a masked autoencoder or an encoder.
        probe: probes of the features, such as `knn,linear`. `knn` is a vote of the nearest neighbours. `linear` is
            logistic regression. `head` is the paper's batch normalisation and linear layer. `rank` counts the
            dimensions in use, without labels. By default, the model's own classifier is evaluated.
        batch_size: images per device and forward pass.
        output_dir: folder for metrics.json, and predictions.parquet or predictions/PROBE-POOLING.parquet. With probes,
            the folder can be an arm of `compare`.
    """

    model: str
    output_dir: str
    probe: Annotated[str, words("knn", "linear", "head", "rank")] | None = None
    batch_size: Count = 256

    @property
    def probes(self) -> tuple[str, ...]:
        """The names of the probes."""
        return tuple(self.probe.split(",")) if self.probe else ()


@dataclass(frozen=True)
class FiguresConfig(Settings):
    """The format of the figures, which fit a paper.

    Args:
        format: `png`, with 300 dots per inch, or `svg`.
    """

    section = "figures"
    format: Literal["png", "svg"] = "png"


@dataclass(frozen=True)
class FewLabelsConfig(StoredImages):
    """Measure an encoder with few labels: on ten folds of the training images, or on budgets of 1 to 100 % of them.

    Args:
        model: run folder, model folder or Hub id of a masked autoencoder or an encoder.
        output_dir: folder for results.jsonl, summary.json and the plot; the same command resumes where it stopped.
        protocol: `folds`, STL-10's ten folds of 1,000 images, or ten random ones if the source has no
            fold_indices.txt; `budgets`, 1, 5, 10, 25 and 100 % of the labels.
        method: one or several, such as `knn,linear`: `knn` and `linear` probe frozen features, `finetune` trains.
        scratch: also measure the same network with random weights.
        draws: random label sets per budget.
        finetune_config: YAML or preset of a fine-tuning run, for its recipe; required by `finetune`. If its
            `train.min_steps` is 0, every fine-tuning run has at least 200 steps.
        batch_size: images per device and forward pass when features are computed.
    """

    model: str
    output_dir: str
    protocol: Literal["folds", "budgets"] = "folds"
    method: Annotated[str, words("knn", "linear", "finetune")] = "knn,linear"
    scratch: bool = False
    draws: Count = 3
    finetune_config: str | None = None
    figures: FiguresConfig = field(default_factory=FiguresConfig)
    batch_size: Count = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        problem = "method finetune needs a recipe: give the YAML of a fine-tuning run (--finetune_config digits)"
        require(self.finetune_config is not None or "finetune" not in self.method, problem)
        problem = "are chosen by this command: remove them, and choose --protocol folds or budgets"
        require(not self.data.has_label_set, f"data.fold and data.label_fraction {problem}")


@dataclass(frozen=True)
class CompareFiguresConfig(FiguresConfig):
    """The figures of a comparison.

    Args:
        thumbnails: also draw the t-SNE maps with small pictures of the test images.
        attention: also draw the attention of the CLS token, of each head and their mean.
    """

    thumbnails: bool = False
    attention: bool = False


_ARM = "NAME=RUN or NAME=RUN,RUN, with a name of at most 40 characters"


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Settings):
    """Compare fine-tuning from a pre-trained encoder with the same training from scratch, or any number of arms.

    Args:
        pretrained: run folders of fine-tuning runs that started from a pre-trained encoder; one or several.
        scratch: run folders of fine-tuning runs with `--model.init scratch` on the same images; equal seeds are paired.
        arm: the name of an arm and its runs, `--arm NAME=RUN,RUN`. Give two or more, instead of `pretrained` and
            `scratch`. A run is the folder of a fine-tuning run, or of `evaluate --probe`, whose probes are recipes.
        output_dir: folder for index.html, comparison.json and the figures; files of these names are replaced.
    """

    pretrained: list[str] | str | None = None
    scratch: list[str] | str | None = None
    arm: list[Annotated[str, Text(r"(?!\s*=)[^=]{1,40}=[^,]+(,[^,]+)*", _ARM)]] | None = None
    figures: CompareFiguresConfig = field(default_factory=CompareFiguresConfig)
    output_dir: str

    def __post_init__(self) -> None:
        super().__post_init__()
        has_two = (self.pretrained is not None, self.scratch is not None)
        problem = "--arm names all arms: remove --pretrained and --scratch, and name their runs with --arm NAME=RUN"
        require(self.arm is None or not any(has_two), problem)
        fix = "--pretrained RUN --scratch RUN, or --arm NAME=RUN --arm NAME=RUN"
        num_arms = sum(has_two) if self.arm is None else len(self.arm)
        require(num_arms > 1, f"the runs of two arms are missing: give {fix}")
        names = [text.split("=")[0] for text in self.arm or ()]
        for name in names:
            require(names.count(name) == 1, f"two arms are named {name}: join their runs, --arm {name}=RUN,RUN")

    @property
    def arms(self) -> dict[str, list[str]]:
        """The runs of each arm, by its name."""
        if self.arm is None:
            two = {"pretrained": self.pretrained, "scratch": self.scratch}
            return {name: [runs] if isinstance(runs, str) else runs or [] for name, runs in two.items()}
        named = (text.partition("=") for text in self.arm)
        return {name: runs.split(",") for name, _, runs in named}


@dataclass(frozen=True)
class ReconstructConfig(StoredImages):
    """Draw how a masked autoencoder reconstructs masked patches.

    Args:
        model: run folder, model folder or Hub id of a masked autoencoder.
        output: the PNG or SVG file to write.
        num_images: number of images in the figure.
    """

    several_sources = True
    model: str
    output: Annotated[str, ending(".png", ".svg")]
    num_images: Count = 8


@dataclass(frozen=True)
class EmbedConfig(StoredImages):
    """Compute the features of images, and draw nearest neighbours and a map.

    Args:
        model: run folder, model folder or Hub id of a masked autoencoder, an encoder or a classifier.
        output: the parquet file to write; the same command resumes. Pictures are written beside it.
        split: take only the images of this split; null takes all.
        neighbours: draw this number of nearest neighbours for each of eight images.
        map: draw a t-SNE map of up to 1,000 images.
        pooling: the features of both pictures: `cls`, the CLS token, or `mean`, the mean of the patch tokens.
        batch_size: images per forward pass.
    """

    several_sources = True
    model: str
    output: Annotated[str, ending(".parquet")]
    split: Literal["unlabeled", "train", "validation", "test"] | None = None
    neighbours: Annotated[int, Range(at_least=1, at_most=16)] | None = None
    map: bool = False
    pooling: Literal["cls", "mean"] = "cls"
    figures: FiguresConfig = field(default_factory=FiguresConfig)
    batch_size: Count = 256


@dataclass(frozen=True)
class PredictConfig(StoredImages):
    """Predict the classes of images with or without labels: of a source, any folder or image files.

    Args:
        model: run folder, model folder or Hub id of a classifier.
        output: the csv or parquet file to write, a row for each image. It is replaced if it exists.
        batch_size: images per forward pass.
    """

    several_sources = True
    model: str
    output: Annotated[str, ending(".csv", ".parquet")]
    batch_size: Count = 256


@dataclass(frozen=True)
class ExportConfig(Settings):
    """Export a classifier, or the encoder of a masked autoencoder, for programs without PyTorch.

    Args:
        model: run folder, model folder or Hub id of a classifier, a masked autoencoder or an encoder.
        output: a new folder for model.onnx, preprocessor_config.json, config.json, and a README.md with code.
        format: `onnx`; needs the extra `onnx`.
    """

    model: str
    output: str
    format: Literal["onnx"] = "onnx"


@dataclass(frozen=True)
class DoctorConfig(StoredImages):
    """Say what is wrong with a model or with images, and how to mend it.

    Args:
        name: a run folder, model folder or Hub id; or images, as for `data.source`. `--name` may be left out.
        kind: whether the name is a model or a source of images. null decides by the files, or asks the Hub.
        image_size: side of the square images that are compared. Use `model.image_size` of the runs.
    """

    first_word = "name"
    name: str
    kind: Literal["model", "source"] | None = None
    image_size: Size = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        problem = "is not used by doctor: its first word names the images. Remove the flag"
        self.data.check("source", self.data.source == DataConfig.source, problem)


@dataclass(frozen=True)
class DemoConfig(Settings):
    """Serve a web page to try a classifier or a masked autoencoder, by default for this machine only.

    Args:
        model: run folder, model folder or Hub id of a classifier or a masked autoencoder.
        port: port of the page, whose address is http://127.0.0.1:port.
        host: `0.0.0.0` also serves everyone who can reach this machine; there is no password.
        export_space: write a Hugging Face Space with the page into this new folder, and serve no page here.
    """

    model: str
    port: Annotated[int, Range(at_least=1024, at_most=2**16 - 1)] = 7860
    host: Literal["127.0.0.1", "0.0.0.0"] = "127.0.0.1"
    export_space: str | None = None
