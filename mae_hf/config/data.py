"""Where the images come from, how they are split, and which duplicates of test images are searched for."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Literal

from mae_hf.config.fields import Count, FromInit, Positive, Range, Rate, Seed, Settings, Share, Switch
from mae_hf.errors import MAX_NAME, is_plain, require

STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
STL10_MEAN = (0.4467, 0.4398, 0.4066)
STL10_STD = (0.2603, 0.2566, 0.2713)
NUM_FOLDS = 10
Triple = tuple[float, float, float]
Resize = Literal["crop", "pad", "squash"]


def check_class_names(names: tuple[str, ...], where: str) -> None:
    """Raise ConfigError unless class names differ and can be printed, drawn and written into model cards."""
    for name in names:
        problem = f"has a class name of {len(name)} characters, {name[:40]!r}"
        fix = f"use at most {MAX_NAME} and no control characters, or name all classes (--data.class_names)"
        require(len(name) <= MAX_NAME and is_plain(name), f"{where} {problem}: {fix}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    problem = f"has two classes named {', '.join(twice[:1])}: give each its own name (--data.class_names)"
    require(not twice, f"{where} {problem}")


@dataclass(frozen=True)
class DataConfig(Settings):
    """Where the images come from and how they are split.

    Args:
        source: `digits`, a Hub dataset id, a folder of parquet files or one parquet file, a folder of images, or the
            folder of the official STL-10 binaries. Pre-training accepts several: `[first, second]`. `embed`, `predict`
            and `reconstruct` also take image files.
        revision: branch, tag or commit of a Hub dataset, so that a run can be repeated on the same rows.
        class_names: the class names of the labelled splits, in order, or names for integer labels. null: the source's.
        image_mean: channel means that normalise the images, for pixels in [0, 1]. null takes them from `model.init`.
            Commands with `--model` use the model's, here and for the next two settings.
        image_std: channel standard deviations, likewise.
        resize: how an image becomes a square: `crop` keeps its centre, `pad` keeps all of it between borders in the
            mean colour, `squash` keeps all of it and changes its proportions. null: as in `model.init`, or `crop`.
        validation_fraction: share of `train`, of each class, that is set aside for validation if the source has no
            validation split, or with `fold` or `label_fraction`.
        test_fraction: share of `train` that becomes `test` if the source has no test split.
        split_seed: seed of these two splits.
        on_bad_image: `raise` stops at images that cannot be decoded; `skip` leaves them out and counts them.
        cache_dir: folder for decoded images; null is `~/.cache/mae_hf`, or `$MAE_HF_CACHE`.
        fold: train on one of ten folds of `train`. They come from `fold_indices.txt` beside STL-10's binaries;
            otherwise each is a random fifth. Validation images are taken from the fold.
        label_fraction: share of the labels of `train` that are used, per class; validation images are taken from it.
            1 uses all labels. null also uses all, and keeps the source's own validation split if it has one.
        label_seed: seed of `label_fraction`; with one seed, a smaller share is part of a larger one.
        on_device: whether a GPU keeps all training images in its memory as uint8: `always`, `never`, or `auto` (if
            they need at most a quarter of its free memory). Results do not change.
        streaming: pre-train on shards that are read while training and not stored: parquet files or webdataset tars,
            local, at a URL (`https://host/{000..099}.tar`) or on the Hub. Labels are not used.
        stream_readers: number of positions of the stream that are read at once and mixed in every batch. It must
            divide `train.batch_size`, and be a multiple of the number of processes.
        stream_buffer: images that are shuffled together, over all readers; the same number is read ahead.
        stream_held_out: number of first images of the stream that are held out to evaluate the loss.
    """

    section = "data"
    source: list[str] | str = "jxie/stl10"
    revision: str | None = None
    class_names: tuple[str, ...] | None = None
    image_mean: FromInit[Triple] = STL10_MEAN
    image_std: FromInit[tuple[Positive, Positive, Positive]] = STL10_STD
    resize: FromInit[Resize] = "crop"
    validation_fraction: Annotated[float, Range(above=0, below=1)] = 0.1
    test_fraction: Rate = 0.0
    split_seed: Seed = 0
    on_bad_image: Literal["raise", "skip"] = "raise"
    cache_dir: str | None = None
    fold: Annotated[int, Range(at_least=0, at_most=NUM_FOLDS - 1)] | None = None
    label_fraction: Share | None = None
    label_seed: Seed = 0
    on_device: Switch = "auto"
    streaming: bool = False
    stream_readers: Count = 8
    stream_buffer: Count = 4096
    stream_held_out: Count = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.sources) > 0, "data.source is empty: name at least one source (--data.source digits)")
        is_list = isinstance(self.source, str) and re.match(r"\s*(\[|-(\s|$))", self.source)
        self.check("source", not is_list, "reads like a list: write [first,second], or rename the folder")
        check_class_names(self.class_names or (), "data.class_names")
        problem = f"and data.label_fraction {self.label_fraction} both restrict the labels: set one to null"
        self.check("fold", self.fold is None or self.label_fraction is None, problem)
        problem = f"is below the number of readers, {self.stream_readers}: choose {self.stream_readers} or more"
        self.check("stream_buffer", self.stream_buffer >= self.stream_readers, problem)

    @property
    def has_label_set(self) -> bool:
        """Whether only a fold or a share of `train`'s labels may be used, for validation too."""
        return self.fold is not None or self.label_fraction is not None

    @property
    def sources(self) -> tuple[str, ...]:
        """All sources as a tuple."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)


@dataclass(frozen=True, kw_only=True)
class StoredImages(Settings):
    """Base of the commands that decode their images once and store them, unlike a stream."""

    several_sources = False  # whether data.source may name several; labels come from one
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data.check("streaming", not self.data.streaming, "is only for pretrain: set it to false")
        has_one = len(self.data.sources) == 1
        self.data.check("source", has_one or self.several_sources, "is a list: this command uses the labels of one")


@dataclass(frozen=True)
class AuditConfig(Settings):
    """The search of the pre-training images for duplicates and near-duplicates of test and validation images.

    Args:
        sources: further sources whose test and validation images are searched for: `[first, second]`.
        leave_out: exclude the duplicates from pre-training; otherwise they are only counted and recorded.
    """

    section = "audit"
    sources: tuple[str, ...] = ()
    leave_out: bool = True
